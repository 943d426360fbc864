import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unlearning.errors import ModelError
from unlearning.methods.attention import attended_modules, recorded
from unlearning.models.architectures import build
from unlearning.models.architectures.tft import TemporalFusionTransformer

torch.set_num_threads(1)
Weights = dict[str, Tensor]
ENCODER, HORIZON, OBSERVED, KNOWN, HIDDEN, HEADS = 5, 3, 2, 2, 8, 2


def network(seed: int = 0, outputs: int = HORIZON * 3, **arguments: Any) -> TemporalFusionTransformer:
    """In double precision and eval mode, every weight random, those that begin as 0 or 1 too."""
    series = arguments.get("series", 0)
    settings = {"encoder": ENCODER, "observed": OBSERVED, "hidden": HIDDEN, "heads": HEADS, **arguments}
    shape = (ENCODER + HORIZON, OBSERVED + KNOWN + bool(series))
    built = build("tft", settings, input_shape=shape, outputs=outputs)
    assert isinstance(built, TemporalFusionTransformer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in built.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return built.double().eval()


def windows(count: int = 3, *, series: int = 0, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, ENCODER + HORIZON, OBSERVED + KNOWN, generator=generator, dtype=torch.float64)
    inputs[:, ENCODER:, :OBSERVED] = 0
    if not series:
        return inputs
    numbers = torch.randint(series, (count, 1, 1), generator=generator).expand(-1, inputs.shape[1], 1)
    return torch.cat([inputs, numbers.double()], 2)


# The paper's equations, one sample and one step at a time. `w` holds the weights under the names of the state dict.


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = w[f"{name}.weight"] @ x
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / math.sqrt(float((centred**2).mean()) + 1e-5) * weight + bias


def elu(x: Tensor) -> Tensor:
    return torch.tensor([v if v > 0 else math.exp(v) - 1 for v in x.tolist()], dtype=torch.float64)


def sigmoid(x: Tensor) -> Tensor:
    return torch.tensor([1 / (1 + math.exp(-v)) for v in x.tolist()], dtype=torch.float64)


def softmax(x: Tensor) -> Tensor:
    powers = [math.exp(v) for v in x.tolist()]
    return torch.tensor(powers, dtype=torch.float64) / sum(powers)


def gated_skip(w: Weights, name: str, gamma: Tensor, skip: Tensor) -> Tensor:
    """LayerNorm(skip + GLU(gamma)), GLU(gamma) = sigmoid(W4 gamma + b4) * (W5 gamma + b5)."""
    both = linear(w, f"{name}.gate", gamma)
    five, four = both[: len(skip)], both[len(skip) :]
    return layer_norm(skip + sigmoid(four) * five, w[f"{name}.norm.weight"], w[f"{name}.norm.bias"])


def grn(w: Weights, name: str, a: Tensor, c: Tensor | None = None) -> Tensor:
    """LayerNorm(a + GLU(eta1)), eta1 = W1 eta2 + b1, eta2 = ELU(W2 a + W3 c + b2)."""
    inner = linear(w, f"{name}.linear2", a)
    if c is not None:
        inner = inner + w[f"{name}.context.weight"] @ c
    eta1 = linear(w, f"{name}.linear1", elu(inner))
    skip = linear(w, f"{name}.skip", a) if f"{name}.skip.weight" in w else a
    return gated_skip(w, f"{name}.out", eta1, skip)


def selected(w: Weights, name: str, variables: list[Tensor], c: Tensor | None) -> Tensor:
    """sum_j v_j GRN_j(xi_j), v = softmax(GRN(all, c))."""
    weights = softmax(grn(w, f"{name}.scores", torch.cat(variables), c))
    total = torch.zeros(HIDDEN, dtype=torch.float64)
    for j, xi in enumerate(variables):
        own = {key.rpartition(".")[2]: value[j] for key, value in w.items() if key.startswith(f"{name}.residuals.")}
        eta2 = elu(own["weight2"].T @ xi + own["bias2"][0])
        both = own["gate"].T @ (own["weight1"].T @ eta2 + own["bias1"][0]) + own["gate_bias"][0]
        gated = both[:HIDDEN] * sigmoid(both[HIDDEN:])
        total = total + weights[j] * layer_norm(xi + gated, own["norm_weight"][0], own["norm_bias"][0])
    return total


def lstm(w: Weights, name: str, steps: list[Tensor], h: Tensor, c: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
    outputs = []
    for x in steps:
        gates = (
            w[f"{name}.weight_ih_l0"] @ x
            + w[f"{name}.bias_ih_l0"]
            + w[f"{name}.weight_hh_l0"] @ h
            + w[f"{name}.bias_hh_l0"]
        )
        i, f, g, o = gates.split(HIDDEN)
        c = sigmoid(f) * c + sigmoid(i) * g.tanh()
        h = sigmoid(o) * c.tanh()
        outputs.append(h)
    return outputs, h, c


def attended(w: Weights, states: list[Tensor], step: int) -> Tensor:
    """W_H (1/m) sum_h A_h V W_V over the steps up to this one."""
    inner = HIDDEN // HEADS
    query, mean = linear(w, "attention.query", states[step]), torch.zeros(inner, dtype=torch.float64)
    for h in range(HEADS):
        part = slice(h * inner, (h + 1) * inner)
        scores = [
            float(query[part] @ linear(w, "attention.key", states[n])[part]) / math.sqrt(inner) for n in range(step + 1)
        ]
        for n, share in enumerate(softmax(torch.tensor(scores)).tolist()):
            mean = mean + share * linear(w, "attention.value", states[n]) / HEADS
    return w["attention.out.weight"] @ mean


def slow(w: Weights, window: Tensor, *, series: bool) -> Tensor:
    """Quantiles (HORIZON, Q), free to cross."""
    selecting = enriching = None
    h = c = torch.zeros(HIDDEN, dtype=torch.float64)
    if series:
        static = grn(w, "static", w["series.weight"][int(window[0, -1])])
        selecting, enriching, h, c = (grn(w, f"contexts.{n}", static) for n in range(4))
    steps = len(window)
    xi = [
        [float(window[t, j]) * w["embedding_weight"][j] + w["embedding_bias"][j] for j in range(OBSERVED + KNOWN)]
        for t in range(steps)
    ]
    past = [selected(w, "past_selection", xi[t], selecting) for t in range(ENCODER)]
    future = [selected(w, "future_selection", xi[t][OBSERVED:], selecting) for t in range(ENCODER, steps)]
    past_states, h, c = lstm(w, "past_lstm", past, h, c)
    future_states, _, _ = lstm(w, "future_lstm", future, h, c)
    phi = [
        gated_skip(w, "after_lstm", state, read)
        for state, read in zip(past_states + future_states, past + future, strict=True)
    ]
    theta = [grn(w, "enrichment", state, enriching) for state in phi]
    quantiles = []
    for t in range(ENCODER, steps):
        delta = gated_skip(w, "after_attention", attended(w, theta, t), theta[t])
        final = gated_skip(w, "after_positionwise", grn(w, "positionwise", delta), phi[t])
        quantiles.append(linear(w, "head", final))
    return torch.stack(quantiles)


@pytest.mark.parametrize("series", [0, 4])
def test_the_forecast_is_that_of_the_papers_equations(series: int) -> None:
    model, inputs = network(monotone=False, series=series), windows(series=series)
    with torch.no_grad():
        fast = model(inputs).view(3, HORIZON, 3)
        reference = torch.stack([slow(dict(model.state_dict()), one, series=bool(series)) for one in inputs])
    torch.testing.assert_close(fast, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("step", range(HORIZON))
def test_what_is_known_of_a_later_step_changes_no_earlier_forecast(step: int) -> None:
    model, inputs = network(), windows()
    changed = inputs.clone()
    changed[:, ENCODER + step, OBSERVED:] += 1.0
    with torch.no_grad():
        before, after = (model(one).view(3, HORIZON, 3) for one in (inputs, changed))
    assert torch.equal(before[:, :step], after[:, :step])
    assert bool((before[:, step:] != after[:, step:]).any(-1).all())


def test_attention_is_a_share_of_each_earlier_step_and_nothing_of_later_ones() -> None:
    model = network()
    with recorded(model, ("attention.weights", "past_selection.weights", "future_selection.weights")) as seen:
        model(windows())
    looks = seen["attention.weights"]
    assert looks.shape == (3, HEADS, HORIZON, ENCODER + HORIZON)
    for step in range(HORIZON):
        last = ENCODER + step
        assert not bool(looks[:, :, step, last + 1 :].any())
        assert bool((looks[:, :, step, : last + 1] > 0).all())
    assert seen["past_selection.weights"].shape == (3, ENCODER, OBSERVED + KNOWN)
    assert seen["future_selection.weights"].shape == (3, HORIZON, KNOWN)
    for weights in seen.values():
        torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))


def test_what_is_observed_within_the_horizon_is_never_read() -> None:
    model, inputs = network(), windows()
    leaked = inputs.clone()
    leaked[:, ENCODER:, :OBSERVED] = 7.0
    with torch.no_grad():
        assert torch.equal(model(inputs), model(leaked))


def test_the_number_of_the_series_changes_its_forecast() -> None:
    model, inputs = network(series=4), windows(1, series=4)
    with torch.no_grad():
        forecasts = []
        for number in range(4):
            inputs[..., -1] = number
            forecasts.append(model(inputs))
    assert all(not torch.allclose(a, b) for n, a in enumerate(forecasts) for b in forecasts[:n])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), quantiles=st.integers(1, 7))
def test_quantiles_never_cross_whatever_the_weights(seed: int, quantiles: int) -> None:
    model = network(seed, outputs=HORIZON * quantiles)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4)
        levels = model(windows(8, seed=seed)).view(8, HORIZON, quantiles)
    assert bool((levels.diff(dim=-1) >= 0).all())


def test_free_quantiles_do_cross_and_the_middle_one_is_the_same_either_way() -> None:
    free, ordered = network(monotone=False), network()
    ordered.load_state_dict(free.state_dict())
    with torch.no_grad():
        apart, sorted_ = (model(windows(16)).view(16, HORIZON, 3) for model in (free, ordered))
    assert bool((apart.diff(dim=-1) < 0).any())
    assert torch.equal(apart[..., 1], sorted_[..., 1])


@pytest.mark.parametrize(("season", "target"), [(1, 0), (2, 1), (5, 1)])
def test_a_forecast_may_count_from_the_season_before(season: int, target: int) -> None:
    levels, changes = network(), network(season=season, target=target)
    inputs = windows()
    with torch.no_grad():
        difference = (changes(inputs) - levels(inputs)).view(3, HORIZON, 3)
    for step in range(HORIZON):
        # the season before step 0 is the last one read; later steps repeat it
        before = inputs[:, ENCODER - season + step % season, target]
        torch.testing.assert_close(difference[:, step], before[:, None].expand(3, 3))


def test_a_batch_says_of_each_window_what_it_says_of_it_alone() -> None:
    model, inputs = network(series=4), windows(5, series=4)
    with torch.no_grad():
        torch.testing.assert_close(model(inputs), torch.cat([model(one[None]) for one in inputs]))


def test_several_layers_and_dropout_train_and_reach_every_weight() -> None:
    torch.manual_seed(0)
    model = network(series=4, layers=2, dropout=0.2).train()
    model(windows(series=4)).square().sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_the_layers_whose_activations_can_be_imitated_are_found() -> None:
    found = attended_modules(network().float(), (ENCODER + HORIZON, OBSERVED + KNOWN), hidden=True)
    assert {"past_lstm", "future_lstm", "attention"} <= set(found)
    assert "head" not in found


@pytest.mark.parametrize(
    ("arguments", "shape", "outputs", "says"),
    [
        ({"encoder": 8}, (8, 4), 6, "more steps than the 8 of the encoder"),
        ({"encoder": 5}, (8,), 6, "it takes (steps, values)"),
        ({"encoder": 5, "observed": 4}, (8, 4), 6, "4 values leave none known beforehand beside 4 observed ones"),
        ({"encoder": 5, "observed": 3, "series": 2}, (8, 4), 6, "leave none known"),
        ({"encoder": 5}, (8, 4), 7, "a multiple of the horizon of 3 steps"),
        ({"encoder": 5, "hidden": 10, "heads": 4}, (8, 4), 6, "hidden must be a multiple of the 4 heads, got 10"),
        ({"encoder": 5, "season": 6}, (8, 4), 6, "season must be at most 5"),
        ({"encoder": 5, "season": 1, "target": 2}, (8, 4), 6, "target below 2, got 1 and 2"),
        ({"encoder": 5, "dropout": 1.0}, (8, 4), 6, "dropout: Input should be less than 1"),
        ({"encoder": "5"}, (8, 4), 6, "encoder: Input should be a valid integer"),
        ({}, (8, 4), 6, "encoder: Missing"),
        ({"encoder": 5, "horizon": 3}, (8, 4), 6, 'unknown argument "horizon"'),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    arguments: dict[str, Any], shape: tuple[int, ...], outputs: int, says: str
) -> None:
    with pytest.raises(ModelError) as caught:
        build("tft", {"observed": 2, **arguments}, input_shape=shape, outputs=outputs)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_holds_modules_only_that_a_state_dict_carries() -> None:
    assert isinstance(network(), nn.Module)
    assert {name for name, _ in network().named_parameters()} == set(network().state_dict())
