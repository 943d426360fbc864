"""Networks for sequences: recurrent and convolutional ones, and one for pairs of texts."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from unlearning.models.architectures.arguments import Count, Dropout, Shape, Size, Width, checked

Vocabulary = Annotated[int, Field(ge=2, le=10_000_000)]


def _steps(shape: Shape) -> tuple[int, int]:
    if len(shape) != 2:
        raise ValueError("it takes (steps, values)")
    return shape[0], shape[1]


class _LastStep(nn.Module):
    """An LSTM, dropout, and a linear layer on what it puts out at the last step."""

    def __init__(self, values: int, hidden: int, layers: int, dropout: float, outputs: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(values, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, steps, values) to (N, outputs)."""
        states, _ = self.lstm(inputs)
        result: Tensor = self.linear(self.dropout(states[:, -1]))
        return result


@checked
def lstm(
    *, input_shape: Shape, outputs: int, hidden: Size = 64, layers: Count = 1, dropout: Dropout = 0.0
) -> nn.Module:
    """One or more LSTM layers over the steps, read at the last one."""
    _, values = _steps(input_shape)
    return _LastStep(values, hidden, layers, dropout, outputs)


def _conv1d(inputs: int, outputs: int, size: int, stride: int) -> nn.Sequential:
    """Convolution without bias, batch normalisation, ReLU."""
    conv = nn.Conv1d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm1d(outputs), nn.ReLU())


class _Convolutions(nn.Module):
    """Convolutions over time, the mean over time, dropout, one linear layer."""

    def __init__(self, values: int, sizes: tuple[int, int, int], dropout: float, outputs: int) -> None:
        super().__init__()
        a, b, c = sizes
        self.features = nn.Sequential(_conv1d(values, a, 7, 2), _conv1d(a, b, 5, 2), _conv1d(b, c, 3, 1))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(c, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, steps, values) or (N, features) to (N, outputs)."""
        sequence = inputs[:, None] if inputs.dim() == 2 else inputs.transpose(1, 2)
        result: Tensor = self.linear(self.dropout(self.features(sequence).mean(2)))
        return result


@checked
def cnn1d(*, input_shape: Shape, outputs: int, width: Width = 1.0, dropout: Dropout = 0.0) -> nn.Module:
    """Three convolutions over time (64, 128, 128; the first two with stride 2) and the mean over time.

    A row of features is taken as a signal with one value at each step: its order must mean something.
    """
    if len(input_shape) > 2 or input_shape[0] < 8:
        raise ValueError("it takes (steps, values) or (features,), with 8 steps or features or more")
    a, b, c = (max(1, round(size * width)) for size in (64, 128, 128))
    return _Convolutions(input_shape[1] if len(input_shape) == 2 else 1, (a, b, c), dropout, outputs)


class _PairNetwork(nn.Module):
    """Two texts through one embedding and one LSTM; linear layers on both of its last states."""

    def __init__(
        self, vocabulary: int, embedding: int, hidden: int, dropout: float, compare: bool, mean: bool, outputs: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, embedding, padding_idx=0)
        self.lstm = nn.LSTM(embedding, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.linear1 = nn.Linear(hidden * (4 if compare else 2), 64)
        self.linear2, self.linear3 = nn.Linear(64, 32), nn.Linear(32, 16)
        self.linear4 = nn.Linear(16, outputs)
        self.relu = nn.ReLU()
        self.compare, self.mean = compare, mean

    def forward(self, inputs: Tensor) -> Tensor:
        """Token ids (N, 2, L), int64, to (N, outputs)."""
        first, second = (self._read(inputs[:, side]) for side in (0, 1))
        joined = [first, second]
        if self.compare:
            joined += [(first - second).abs(), first * second]
        state = self.relu(self.linear1(self.dropout(torch.cat(joined, dim=1))))
        result: Tensor = self.linear4(self.relu(self.linear3(self.relu(self.linear2(state)))))
        return result

    def _read(self, tokens: Tensor) -> Tensor:
        """(N, L) to (N, hidden). The words go first and padding last, where the words' states know nothing of it."""
        words = tokens > 0
        order = words.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
        states, _ = self.lstm(self.embedding(tokens.gather(1, order)))
        places = torch.arange(tokens.shape[1], device=tokens.device)
        count = words.sum(1, keepdim=True)
        read = places < count if self.mean else places == count - 1
        weights = read.to(states.dtype)[:, :, None]
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)  # type: ignore[no-any-return]


@checked
def pair_lstm(
    *,
    input_shape: Shape,
    outputs: int,
    vocabulary: Vocabulary,
    embedding: Size = 300,
    hidden: Size = 64,
    dropout: Dropout = 0.3,
    joined: Literal["both", "compared"] = "both",
    read: Literal["last", "mean"] = "last",
) -> nn.Module:
    """An embedding and one LSTM for both texts, then linear layers of 64, 32 and 16 with ReLU between them.

    `joined`: what the linear layers see: both texts' states (as published), or also how far they differ and agree.
    `read`: a text's state: the LSTM's at its last word (as published), or the mean over its words; zeros for a text of
    none. Ids are below the `vocabulary`, which the data card has. 0 is padding, wherever it stands: it changes nothing,
    while the published network reads it as words.
    """
    if len(input_shape) != 2 or input_shape[0] != 2:
        raise ValueError("it takes two rows of token ids: (2, length)")
    return _PairNetwork(vocabulary, embedding, hidden, dropout, joined == "compared", read == "mean", outputs)
