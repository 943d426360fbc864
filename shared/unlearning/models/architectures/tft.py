"""The Temporal Fusion Transformer: quantile forecasts from the past, the known future and who it is about.

Written from Lim, Arik, Loeff and Pfister, arXiv:1912.09363. Its layers are modules of their own, so that hooks can read
them: `past_selection.weights` and `future_selection.weights` put out how much each variable counts (N, T, variables),
`attention.weights` where each step to predict looks (N, heads, horizon, encoder + horizon).

Departures: attention is computed for the steps to predict only, as nothing else of it is used; of static variables
there is one, the number of the series, or none; quantiles cannot cross unless asked for (`monotone`); forecasts may
count from the past (`season`).
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from unlearning.models.architectures.arguments import Dropout, Shape, Size, checked

Heads = Annotated[int, Field(ge=1, le=64)]
Series = Annotated[int, Field(ge=0, le=1_000_000)]


class GatedSkip(nn.Module):
    """LayerNorm(skip + GLU(x)): x may be gated away altogether."""

    def __init__(self, size: int, dropout: float, *, inputs: int | None = None) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.gate = nn.Linear(inputs or size, 2 * size)
        self.norm = nn.LayerNorm(size)

    def forward(self, inputs: Tensor, skip: Tensor) -> Tensor:
        """(..., inputs) and (..., size) to (..., size)."""
        gated: Tensor = self.norm(skip + F.glu(self.gate(self.dropout(inputs)), dim=-1))
        return gated


class GatedResidual(nn.Module):
    """The gated residual network: two linear layers with ELU, perhaps under a context, that may be gated away."""

    def __init__(self, inputs: int, size: int, outputs: int, dropout: float, *, context: int = 0) -> None:
        super().__init__()
        self.linear2 = nn.Linear(inputs, size)
        self.context = nn.Linear(context, size, bias=False) if context else None
        self.linear1 = nn.Linear(size, size)
        self.skip = nn.Linear(inputs, outputs) if inputs != outputs else None
        self.out = GatedSkip(outputs, dropout, inputs=size)

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        """(..., inputs), and the context (..., context) if there is one, to (..., outputs)."""
        state = self.linear2(inputs)
        if self.context is not None and context is not None:
            state = state + self.context(context)
        skip = inputs if self.skip is None else self.skip(inputs)
        result: Tensor = self.out(self.linear1(F.elu(state)), skip)
        return result


class VariableResiduals(nn.Module):
    """A gated residual network of its own for each variable, all in one go."""

    def __init__(self, variables: int, size: int, dropout: float) -> None:
        super().__init__()
        self.weight2 = nn.Parameter(torch.empty(variables, size, size))
        self.bias2 = nn.Parameter(torch.empty(variables, 1, size))
        self.weight1 = nn.Parameter(torch.empty(variables, size, size))
        self.bias1 = nn.Parameter(torch.empty(variables, 1, size))
        self.gate = nn.Parameter(torch.empty(variables, size, 2 * size))
        self.gate_bias = nn.Parameter(torch.empty(variables, 1, 2 * size))
        self.norm_weight = nn.Parameter(torch.ones(variables, 1, size))
        self.norm_bias = nn.Parameter(torch.zeros(variables, 1, size))
        self.dropout = nn.Dropout(dropout)
        for parameter in (self.weight2, self.bias2, self.weight1, self.bias1, self.gate, self.gate_bias):
            nn.init.uniform_(parameter, -(size**-0.5), size**-0.5)  # as torch's own linear layers begin

    def forward(self, inputs: Tensor) -> Tensor:
        """(variables, rows, size) to the same shape."""
        state = torch.baddbmm(self.bias1, F.elu(torch.baddbmm(self.bias2, inputs, self.weight2)), self.weight1)
        gated = F.glu(torch.baddbmm(self.gate_bias, self.dropout(state), self.gate), dim=-1)
        return F.layer_norm(inputs + gated, inputs.shape[-1:]) * self.norm_weight + self.norm_bias


class VariableSelection(nn.Module):
    """Each variable through a network of its own, and their sum, weighted by a softmax over the variables."""

    def __init__(self, variables: int, size: int, dropout: float, *, context: int = 0) -> None:
        super().__init__()
        self.residuals = VariableResiduals(variables, size, dropout)
        self.scores = GatedResidual(variables * size, size, variables, dropout, context=context)
        self.weights = nn.Softmax(dim=-1)

    def forward(self, embedded: Tensor, context: Tensor | None = None) -> Tensor:
        """(N, T, variables, size), and a context (N, context), to (N, T, size)."""
        N, T, V, size = embedded.shape
        weights = self.weights(self.scores(embedded.flatten(2), None if context is None else context[:, None]))
        each = self.residuals(embedded.permute(2, 0, 1, 3).reshape(V, N * T, size)).view(V, N, T, size)
        return torch.einsum("vntd,ntv->ntd", each, weights)


class InterpretableAttention(nn.Module):
    """Attention whose heads share their values, so that the mean over heads tells where it looks."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.inner = heads, size // heads
        self.query, self.key = nn.Linear(size, heads * self.inner), nn.Linear(size, heads * self.inner)
        self.value = nn.Linear(size, self.inner)
        self.out = nn.Linear(self.inner, size, bias=False)
        self.weights = nn.Softmax(dim=-1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor, horizon: int) -> Tensor:
        """(N, T, size) to (N, horizon, size): the last steps look at themselves and at all before them."""
        N, T, _ = states.shape
        query = self.query(states[:, T - horizon :]).view(N, horizon, self.heads, self.inner).transpose(1, 2)
        key = self.key(states).view(N, T, self.heads, self.inner).permute(0, 2, 3, 1)
        later = torch.ones(horizon, T, dtype=torch.bool, device=states.device).triu(T - horizon + 1)
        scores = (query @ key * self.inner**-0.5).masked_fill(later, float("-inf"))
        looks = self.dropout(self.weights(scores)).mean(1)  # the heads share the values: their mean comes first
        result: Tensor = self.out(looks @ self.value(states))
        return result


class Quantiles(nn.Linear):
    """The last layer: the middle quantile as it is; each one beyond adds a softplus to its neighbour."""

    def __init__(self, size: int, quantiles: int, *, monotone: bool) -> None:
        super().__init__(size, quantiles)
        self.monotone = monotone

    def forward(self, inputs: Tensor, start: Tensor | None = None) -> Tensor:
        """(..., size), and perhaps what to count from (..., 1), to (..., quantiles), rising where `monotone`."""
        levels = super().forward(inputs)
        if self.monotone and self.out_features > 1:
            middle = self.out_features // 2
            center = levels[..., middle : middle + 1]
            above = center + F.softplus(levels[..., middle + 1 :]).cumsum(-1)
            below = center - F.softplus(levels[..., :middle]).flip(-1).cumsum(-1).flip(-1)
            levels = torch.cat([below, center, above], dim=-1)
        return levels if start is None else start + levels


class TemporalFusionTransformer(nn.Module):
    """The network; see `tft` for its settings."""

    def __init__(
        self,
        *,
        encoder: int,
        observed: int,
        known: int,
        series: int,
        hidden: int,
        heads: int,
        layers: int,
        dropout: float,
        horizon: int,
        quantiles: int,
        monotone: bool,
        season: int,
        target: int,
    ) -> None:
        super().__init__()
        self.season, self.target = season, target
        self.encoder, self.horizon, self.observed, self.known = encoder, horizon, observed, known
        variables, context = observed + known, hidden if series else 0
        self.embedding_weight = nn.Parameter(torch.empty(variables, hidden).uniform_(-1, 1))
        self.embedding_bias = nn.Parameter(torch.empty(variables, hidden).uniform_(-1, 1))
        self.layers = layers
        if series:
            self.series = nn.Embedding(series, hidden)
            self.static = GatedResidual(hidden, hidden, hidden, dropout)  # the selection from one variable
            self.contexts = nn.ModuleList(GatedResidual(hidden, hidden, hidden, dropout) for _ in range(4))
        self.has_static = bool(series)
        self.past_selection = VariableSelection(variables, hidden, dropout, context=context)
        self.future_selection = VariableSelection(known, hidden, dropout, context=context)
        between = dropout if layers > 1 else 0.0
        self.past_lstm = nn.LSTM(hidden, hidden, layers, batch_first=True, dropout=between)
        self.future_lstm = nn.LSTM(hidden, hidden, layers, batch_first=True, dropout=between)
        self.after_lstm = GatedSkip(hidden, dropout)
        self.enrichment = GatedResidual(hidden, hidden, hidden, dropout, context=context)
        self.attention = InterpretableAttention(hidden, heads, dropout)
        self.after_attention = GatedSkip(hidden, dropout)
        self.positionwise = GatedResidual(hidden, hidden, hidden, dropout)
        self.after_positionwise = GatedSkip(hidden, 0.0)
        self.head = Quantiles(hidden, quantiles, monotone=monotone)

    def forward(self, inputs: Tensor) -> Tensor:
        """(N, encoder + horizon, variables) to (N, horizon * quantiles), the quantiles fastest."""
        selecting = enriching = memory = state = None
        if self.has_static:
            static = self.static(self.series(inputs[:, 0, -1].to(torch.int64)))
            selecting, enriching, state, memory = (context(static) for context in self.contexts)
        values = inputs[:, :, : self.observed + self.known]
        embedded = values[..., None] * self.embedding_weight + self.embedding_bias
        past = self.past_selection(embedded[:, : self.encoder], selecting)
        future = self.future_selection(embedded[:, self.encoder :, self.observed :], selecting)
        begin = None
        if state is not None and memory is not None:
            begin = tuple(each.expand(self.layers, -1, -1).contiguous() for each in (state, memory))
        past_states, last = self.past_lstm(past, begin)
        future_states, _ = self.future_lstm(future, last)
        local = self.after_lstm(torch.cat([past_states, future_states], 1), torch.cat([past, future], 1))
        enriched = self.enrichment(local, None if enriching is None else enriching[:, None])
        looked = self.after_attention(self.attention(enriched, self.horizon), enriched[:, -self.horizon :])
        final = self.after_positionwise(self.positionwise(looked), local[:, -self.horizon :])
        quantiles: Tensor = self.head(final, self._season_before(values))
        return quantiles.flatten(1)

    def _season_before(self, values: Tensor) -> Tensor | None:
        """The target at the same step of the last season that was read, (N, horizon, 1)."""
        if not self.season:
            return None
        steps = torch.arange(self.horizon, device=values.device) % self.season + self.encoder - self.season
        return values[:, steps, self.target, None]


@checked
def tft(
    *,
    input_shape: Shape,
    outputs: int,
    encoder: Size,
    observed: Size,
    series: Series = 0,
    hidden: Size = 160,
    heads: Heads = 4,
    layers: Annotated[int, Field(ge=1, le=8)] = 1,
    dropout: Dropout = 0.1,
    monotone: bool = True,
    season: Annotated[int, Field(ge=0, le=16_384)] = 0,
    target: Annotated[int, Field(ge=0, le=16_384)] = 0,
) -> nn.Module:
    """Inputs (steps, values): `encoder` steps to read, the rest to predict; the first `observed` values are past only.

    The values after those are known beforehand, at every step. With `series`, how many there are, the last value is the
    number of the series. Outputs are horizon x quantiles. `monotone`: whether quantiles are built so that they cannot
    cross; the published network lets them. `season`: forecasts are changes from observed value number `target` that
    many steps before (1: the last one read; 24: the same hour of the last day), as a network of levels hardly follows
    a level that drifts; 0: levels, as published.
    """
    if len(input_shape) != 2 or input_shape[0] <= encoder:
        raise ValueError(f"it takes (steps, values) with more steps than the {encoder} of the encoder")
    horizon, known = input_shape[0] - encoder, input_shape[1] - observed - bool(series)
    if known < 1:
        raise ValueError(f"{input_shape[1]} values leave none known beforehand beside {observed} observed ones")
    if season > encoder or target >= observed:
        raise ValueError(
            f"season must be at most {encoder} and target below {observed}, got {season} and {target}: both are read"
        )
    if outputs % horizon:
        raise ValueError(f"the outputs must be a multiple of the horizon of {horizon} steps")
    if hidden % heads:
        raise ValueError(f"hidden must be a multiple of the {heads} heads, got {hidden}")
    return TemporalFusionTransformer(
        encoder=encoder,
        observed=observed,
        known=known,
        series=series,
        hidden=hidden,
        heads=heads,
        layers=layers,
        dropout=dropout,
        horizon=horizon,
        quantiles=outputs // horizon,
        monotone=monotone,
        season=season,
        target=target,
    )
