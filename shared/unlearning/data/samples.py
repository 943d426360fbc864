"""Training samples with random access, kept as small as they come and normalised batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Samples(Protocol):
    """What methods, metrics and attacks read: rows in, a normalised batch out."""

    @property
    def targets(self) -> Tensor:
        """Class indices, shape (N,), int64."""
        ...

    def __len__(self) -> int:
        """N, the number of samples."""
        ...

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised float inputs (B, ...) and targets (B,) of the given rows, in their order."""
        ...


class TensorSamples:
    """Samples held in memory: uint8 pixels or float features, normalised when a batch is taken.

    Args:
        inputs: uint8 in 0..255 (scaled to 0..1 before normalising) or float32, shape (N, C, H, W) or (N, D).
        targets: Class indices, shape (N,), int64.
        mean: Per channel (or feature), of the scaled values.
        std: Likewise; > 0.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(inputs) != len(targets):
            raise ValueError(f"inputs and targets must have one length, got {len(inputs)} and {len(targets)}")
        self.inputs = inputs
        self._targets = targets
        shape = (1, -1) + (1,) * (inputs.dim() - 2)
        scale = 255.0 if inputs.dtype == torch.uint8 else 1.0
        std_ = torch.tensor(std, dtype=torch.float32).view(shape) * scale
        self._factor = 1 / std_  # one multiply and one add a batch: x / scale / std - mean / std
        self._offset = -torch.tensor(mean, dtype=torch.float32).view(shape) * scale / std_

    @property
    def targets(self) -> Tensor:
        """Class indices, shape (N,), int64."""
        return self._targets

    def __len__(self) -> int:
        """N, the number of samples."""
        return len(self._targets)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised float32 inputs (B, ...) and targets (B,) of the given rows, in their order."""
        picked = self.inputs[rows].to(torch.float32)
        return picked.mul_(self._factor).add_(self._offset), self._targets[rows]


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
    def targets(self) -> Tensor:
        """Class indices, shape (M,), int64."""
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
        """Class indices of both, shape (len(first) + len(second),), int64."""
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
