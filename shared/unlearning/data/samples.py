"""Training samples with random access, kept as small as they come and normalised batch by batch.

Whatever the data are, methods read them through `Samples` alone: pixels and features (`TensorSamples`), token rows
(`TokenSamples`), windows of time series (`WindowSamples`), and what is too much for memory (`StoredSamples`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor


class Samples(Protocol):
    """What methods, metrics and attacks read: rows in, a normalised batch out."""

    @property
    def targets(self) -> Tensor:
        """Class indices, shape (N,), int64; or numbers to predict, shape (N,) or (N, H), float32."""
        ...

    def __len__(self) -> int:
        """N, the number of samples."""
        ...

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised inputs (B, ...) and targets (B,) or (B, H) of the given rows, in their order."""
        ...


class TensorSamples:
    """Samples held in memory: uint8 pixels or float features, normalised when a batch is taken.

    Args:
        inputs: uint8 in 0..255 (scaled to 0..1 before normalising) or float32, shape (N, C, H, W), (N, D) or
            (N, steps, values).
        targets: Class indices, shape (N,), int64; or numbers, shape (N,) or (N, H), float32.
        mean: Per channel, feature or value (one for all will do), of the scaled values.
        std: Likewise; > 0.
        fill: What NaN becomes before normalising, per feature; empty: there is none.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        fill: Sequence[float] = (),
    ) -> None:
        if len(inputs) != len(targets):
            raise ValueError(f"inputs and targets must have one length, got {len(inputs)} and {len(targets)}")
        self.inputs = inputs
        self._targets = targets
        shape = (1, 1, -1) if inputs.dim() == 3 else (1, -1) + (1,) * (inputs.dim() - 2)
        scale = 255.0 if inputs.dtype == torch.uint8 else 1.0
        std_ = torch.tensor(std, dtype=torch.float32).view(shape) * scale
        self._factor = 1 / std_  # one multiply and one add a batch: x / scale / std - mean / std
        self._offset = -torch.tensor(mean, dtype=torch.float32).view(shape) * scale / std_
        self._fill = torch.tensor(fill, dtype=torch.float32).view(shape) if fill else None

    @property
    def targets(self) -> Tensor:
        """Class indices, shape (N,), int64; or numbers to predict, shape (N,) or (N, H), float32."""
        return self._targets

    def __len__(self) -> int:
        """N, the number of samples."""
        return len(self._targets)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised float32 inputs (B, ...) and the targets of the given rows, in their order."""
        picked = self.inputs[rows].to(torch.float32)
        if self._fill is not None:
            picked = torch.where(picked.isnan(), self._fill, picked)
        return picked.mul_(self._factor).add_(self._offset), self._targets[rows]


class StoredSamples:
    """Samples that are read when a batch is taken: no more of them are in memory at once.

    Args:
        read: Inputs of some rows, uint8 or float32, shape (M, ...), as of `TensorSamples`.
        targets: As of `TensorSamples`.
        mean: Likewise.
        std: Likewise.
        fill: Likewise.
    """

    def __init__(
        self,
        read: Callable[[NDArray[Any]], NDArray[Any]],
        targets: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        fill: Sequence[float] = (),
    ) -> None:
        self._read, self._targets = read, targets
        self._scaling: dict[str, Sequence[float]] = {"mean": mean, "std": std, "fill": fill}

    @property
    def targets(self) -> Tensor:
        """Class indices, shape (N,), int64; or numbers to predict, shape (N,) or (N, H), float32."""
        return self._targets

    def __len__(self) -> int:
        """N, the number of samples."""
        return len(self._targets)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised float32 inputs (B, ...) and the targets of the given rows, in their order."""
        targets = self._targets[rows]
        inputs = torch.from_numpy(self._read(rows.numpy()))
        return TensorSamples(inputs, targets, **self._scaling).batch(torch.arange(len(rows)))[0], targets


class TokenSamples:
    """Rows of token ids held in memory; a batch is int64 and nothing is scaled.

    Args:
        inputs: Ids >= 0, any integer type, shape (N, 2, L) for pairs of texts.
        targets: As of `TensorSamples`.
    """

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        if len(inputs) != len(targets):
            raise ValueError(f"inputs and targets must have one length, got {len(inputs)} and {len(targets)}")
        self.inputs = inputs
        self._targets = targets

    @property
    def targets(self) -> Tensor:
        """Numbers to predict, shape (N,), float32."""
        return self._targets

    def __len__(self) -> int:
        """N, the number of samples."""
        return len(self._targets)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Ids, shape (B, 2, L), int64, and targets (B,) of the given rows, in their order."""
        return self.inputs[rows].to(torch.int64), self._targets[rows]


class WindowSamples:
    """Windows of time series: a past to read, a horizon to predict. Only the series lie in memory, once.

    A batch is (B, encoder + horizon, values): the observed columns, 0 within the horizon; then the columns known
    beforehand, such as the calendar; then, of many series, the number of the series. Targets (B, horizon) are in
    deviations from the series' mean, as the observed columns are.

    Args:
        values: Scaled series, one column each, shape (T, V), float32.
        known: What is known of every step beforehand, shape (T, K), float32.
        firsts: Step of each window's first value to predict, shape (N,), int64, in encoder .. T - horizon.
        columns: The series that each window predicts, shape (N,), int64, below V.
        encoder: Steps to read; >= 1.
        horizon: Steps to predict; >= 1.
        alone: Whether a window observes its own series only, and carries its number; else it observes all of them.
    """

    def __init__(
        self, values: Tensor, known: Tensor, firsts: Tensor, columns: Tensor, *, encoder: int, horizon: int, alone: bool
    ) -> None:
        if len(firsts) and not (encoder <= int(firsts.min()) and int(firsts.max()) <= len(values) - horizon):
            raise ValueError(f"windows of {encoder} + {horizon} steps leave the {len(values)} steps of the series")
        self._values, self._known, self._firsts, self._columns = values, known, firsts, columns
        self._encoder, self._horizon, self._alone = encoder, horizon, alone
        self._steps = torch.arange(-encoder, horizon)

    @property
    def targets(self) -> Tensor:
        """Scaled values to predict, shape (N, horizon), or (N,) for a horizon of 1; float32."""
        return self._ahead(self._firsts, self._columns)

    def __len__(self) -> int:
        """N, the number of windows."""
        return len(self._firsts)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Windows (B, encoder + horizon, values) and targets (B, horizon) of the given rows, in their order."""
        firsts, columns = self._firsts[rows], self._columns[rows]
        steps = firsts[:, None] + self._steps
        observed = self._values[steps, columns[:, None]][:, :, None] if self._alone else self._values[steps]
        observed[:, self._encoder :] = 0
        parts = [observed, self._known[steps]]
        if self._alone:
            parts.append(columns[:, None, None].expand(-1, len(self._steps), 1).to(torch.float32))
        return torch.cat(parts, dim=2), self._ahead(firsts, columns)

    def _ahead(self, firsts: Tensor, columns: Tensor) -> Tensor:
        ahead = self._values[firsts[:, None] + torch.arange(self._horizon), columns[:, None]]
        return ahead.squeeze(1) if self._horizon == 1 else ahead


class Rows:
    """Some rows of other samples, as samples of their own; nothing is copied.

    Args:
        samples: Where they come from.
        rows: Row numbers, shape (M,), int64.
    """

    def __init__(self, samples: Samples, rows: Tensor) -> None:
        self._samples = samples
        self._rows = rows

    @property
    def rows(self) -> Tensor:
        """Their numbers among the samples that they come from, shape (M,), int64."""
        return self._rows

    @property
    def targets(self) -> Tensor:
        """Of these rows: shape (M,), or (M, H)."""
        return self._samples.targets[self._rows]

    def __len__(self) -> int:
        """M, the number of rows."""
        return len(self._rows)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The batch of these rows, counted within this subset."""
        return self._samples.batch(self._rows[rows])


class Joined:
    """Two sets of samples one after the other; a batch may mix them.

    Args:
        first: Rows 0 .. len(first) - 1.
        second: The rows after those, with the same input shape.
    """

    def __init__(self, first: Samples, second: Samples) -> None:
        self._first = first
        self._second = second

    @property
    def targets(self) -> Tensor:
        """Of both, first come first."""
        return torch.cat([self._first.targets, self._second.targets])

    def __len__(self) -> int:
        """The number of samples in both."""
        return len(self._first) + len(self._second)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The rows' batch in their order; those of each set are taken together."""
        in_first = rows < len(self._first)
        if bool(in_first.all()):
            return self._first.batch(rows)
        if not bool(in_first.any()):
            return self._second.batch(rows - len(self._first))
        first_inputs, first_targets = self._first.batch(rows[in_first])
        second_inputs, second_targets = self._second.batch(rows[~in_first] - len(self._first))
        inputs = first_inputs.new_empty((len(rows), *first_inputs.shape[1:]))
        inputs[in_first], inputs[~in_first] = first_inputs, second_inputs
        targets = first_targets.new_empty((len(rows), *first_targets.shape[1:]))
        targets[in_first], targets[~in_first] = first_targets, second_targets
        return inputs, targets
