import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unlearning.data.samples import Rows, TensorSamples
from unlearning.metrics.relearning import (
    RelearnConfig,
    RelearnCurve,
    RelearnTime,
    anamnesis_index,
    area_between,
    relearn,
    relearn_time,
)
from unlearning.training import build_seeded

SHORT = RelearnConfig(updates=6, batch_size=16, learning_rate=0.01)


def curve(*accuracies: float, every: int = 1) -> RelearnCurve:
    return RelearnCurve(
        updates=tuple(range(0, every * len(accuracies), every)), accuracies=accuracies, losses=accuracies
    )


def rows(count: int, seed: int = 0) -> TensorSamples:
    source = torch.Generator().manual_seed(seed)
    inputs = torch.randn((count, 4), generator=source)
    return TensorSamples(inputs, (inputs[:, 0] > 0).long(), mean=[0.0] * 4, std=[1.0] * 4)


def network() -> nn.Sequential:
    return build_seeded(_network, 0)  # type: ignore[return-value]


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# Times and indices


def test_times_by_hand() -> None:
    assert relearn_time(curve(0.0, 0.2, 0.5, 0.4, 0.9), 0.5) == RelearnTime(low=2, high=2)
    assert relearn_time(curve(0.9, 0.9), 0.5) == RelearnTime(low=1, high=1, already=True)
    assert relearn_time(curve(0.0, 0.2, 0.3), 0.5) == RelearnTime(low=3, high=math.inf)
    assert relearn_time(curve(0.0, 0.2, 0.6, every=10), 0.5) == RelearnTime(low=11, high=20)
    assert [str(relearn_time(curve(0.0, 0.2, 0.6, every=10), target)) for target in (0.1, 0.5, 0.9)] == [
        "1 to 10",
        "11 to 20",
        "> 20",
    ]
    assert str(RelearnTime(low=4, high=4)) == "4"


def test_the_index_by_hand_and_its_bounds() -> None:
    slow, fast, never = curve(0, 0, 0, 0, 1.0), curve(0, 1.0), curve(0, 0, 0, 0, 0)
    index = anamnesis_index(fast, slow, original_accuracy=1.0)
    assert (index.value, index.low, index.high, str(index), index.forgotten) == (0.25, 0.25, 0.25, "0.25", True)
    over = anamnesis_index(never, fast, original_accuracy=1.0)
    assert (over.value, over.low, over.high, str(over)) == (None, 5.0, math.inf, ">= 5")
    under = anamnesis_index(fast, never, original_accuracy=1.0)
    assert (under.value, under.low, under.high, str(under)) == (None, 0.0, 0.2, "<= 0.2")
    neither = anamnesis_index(never, never, original_accuracy=1.0)
    assert (neither.value, str(neither)) == (None, "undefined")
    sparse = anamnesis_index(curve(0, 1.0, every=4), curve(0, 0, 1.0), original_accuracy=1.0)
    assert (sparse.low, sparse.high, str(sparse)) == (0.5, 2.0, "0.5 to 2")


def test_the_target_is_a_share_of_the_originals_accuracy_and_meeting_it_at_once_is_not_forgotten() -> None:
    index = anamnesis_index(curve(0.8, 0.8), curve(0.0, 0.7, 0.77), original_accuracy=0.8, alpha=0.05)
    assert index.target == pytest.approx(0.76)
    assert (index.value, index.forgotten) == (0.5, False)


curves = st.lists(st.floats(0, 1), min_size=2, max_size=12).map(lambda values: curve(*values))


@settings(deadline=None)
@given(curves, curves, st.floats(0, 1), st.integers(1, 4))
def test_fewer_looks_only_widen_an_index(one: RelearnCurve, other: RelearnCurve, target: float, every: int) -> None:
    def thin(dense: RelearnCurve) -> RelearnCurve:
        kept = range(0, len(dense.updates), every)
        kept_values = [max(dense.accuracies[: k + 1]) for k in kept]
        return dataclasses.replace(
            dense,
            updates=tuple(dense.updates[k] for k in kept),
            accuracies=tuple(kept_values),
            losses=tuple(kept_values),
        )

    # accuracies that never fall: what is looked at later is not missed
    rising = [
        dataclasses.replace(each, accuracies=tuple(max(each.accuracies[: k + 1]) for k in range(len(each.updates))))
        for each in (one, other)
    ]
    exact = anamnesis_index(*rising, original_accuracy=target, alpha=0)
    rough = anamnesis_index(*map(thin, rising), original_accuracy=target, alpha=0)
    assert rough.low <= exact.low
    assert exact.high <= rough.high
    assert exact.low <= exact.high


@settings(deadline=None)
@given(curves)
def test_a_curve_against_itself_gives_one_or_nothing_and_no_area(one: RelearnCurve) -> None:
    index = anamnesis_index(one, one, original_accuracy=0.5)
    assert index.value == 1.0 or str(index) == "undefined"
    assert area_between(one, one) == 0


def test_the_area_by_hand() -> None:
    # differences 0, 1, 1 at updates 0, 10, 20: (10 * 1/2 + 10 * 1) / 20
    assert area_between(curve(0, 1, 1, every=10), curve(0, 0, 0, every=10)) == pytest.approx(0.75)
    assert area_between(curve(0, 0, 0), curve(0, 1, 1)) == pytest.approx(-0.75)


def test_what_is_no_curve_target_or_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="same updates"):
        area_between(curve(0, 1), curve(0, 1, 1))
    with pytest.raises(ValueError, match="same updates"):
        area_between(curve(0), curve(0))
    for updates in ((), (1, 2), (0, 2, 2)):
        with pytest.raises(ValueError, match="rise from 0"):
            RelearnCurve(updates=updates, accuracies=(0,) * len(updates), losses=(0,) * len(updates))
    with pytest.raises(ValueError, match="at every look"):
        RelearnCurve(updates=(0, 1), accuracies=(0,), losses=(0, 0))
    with pytest.raises(ValueError, match="between 0 and 1"):
        relearn_time(curve(0, 1), math.nan)
    with pytest.raises(ValueError, match="alpha"):
        anamnesis_index(curve(0, 1), curve(0, 1), original_accuracy=1, alpha=1)
    for wrong in ({"updates": 0}, {"batch_size": 0}, {"every": 0}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            RelearnConfig(**wrong)  # type: ignore[arg-type]


# Training again


def test_a_second_relearning_equals_the_first_and_the_model_stays_as_it_was() -> None:
    model = network().eval()
    model[0].requires_grad_(False)
    before, state = bits(model), torch.random.get_rng_state()
    first = relearn(model, rows(60), rows(20, 1), SHORT, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert relearn(model, rows(60), rows(20, 1), SHORT, seed=3) == first
    assert relearn(model, rows(60), rows(20, 1), SHORT, seed=4) != first
    assert not model.training
    assert [p.requires_grad for p in model.parameters()][:3] == [False, False, True]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_identical_models_have_an_index_of_exactly_one() -> None:
    config = dataclasses.replace(SHORT, updates=60)
    one, other = (relearn(network(), rows(60), rows(20, 1), config, seed=0) for _ in range(2))
    assert anamnesis_index(one, other, original_accuracy=0.8).value == 1.0


def test_looks_come_every_so_often_and_at_the_cap_and_agree_with_looks_at_every_update() -> None:
    dense = relearn(network(), rows(60), rows(20, 1), dataclasses.replace(SHORT, updates=8), seed=0)
    sparse = relearn(network(), rows(60), rows(20, 1), dataclasses.replace(SHORT, updates=8, every=3), seed=0)
    assert dense.updates == tuple(range(9))
    assert sparse.updates == (0, 3, 6, 8)
    assert sparse.accuracies == tuple(dense.accuracies[k] for k in sparse.updates)
    assert sparse.losses == tuple(dense.losses[k] for k in sparse.updates)


def test_relearning_stops_at_the_target_once_trained() -> None:
    whole = relearn(network(), rows(60), rows(20, 1), SHORT, seed=0)
    part = relearn(network(), rows(60), rows(20, 1), SHORT, seed=0, until=0.0)
    assert part.updates == (0, 1)
    assert part.accuracies == whole.accuracies[:2]


def test_the_first_look_is_the_models_own_accuracy_and_the_second_follows_one_step_of_adam() -> None:
    model, learner = (build_seeded(lambda: nn.Linear(4, 2), 0) for _ in range(2))
    one = rows(16)
    found = relearn(model, one, one, dataclasses.replace(SHORT, updates=1), seed=0)
    inputs, targets = one.batch(torch.arange(16))
    optimiser = torch.optim.Adam(learner.parameters(), lr=SHORT.learning_rate)
    losses = []
    for _ in range(2):
        learner.eval()
        losses.append(nn.functional.cross_entropy(learner(inputs), targets).item())
        learner.train()
        nn.functional.cross_entropy(learner(inputs), targets).backward()
        optimiser.step()
    assert found.losses == pytest.approx(losses, rel=1e-5)


def test_no_rows_and_divergence_are_refused() -> None:
    none = Rows(rows(2), torch.arange(0))
    for samples, watched in ((none, rows(2)), (rows(2), none)):
        with pytest.raises(ValueError, match="rows to learn and rows to watch"):
            relearn(network(), samples, watched, SHORT, seed=0)
    for every in (1, 50):
        config = RelearnConfig(updates=50, batch_size=16, learning_rate=3e37, every=every)
        with pytest.raises(FloatingPointError, match="lower the rate"):
            relearn(nn.Linear(4, 2), rows(60), rows(20, 1), config, seed=0)
    broken = nn.Linear(4, 2)
    nn.init.constant_(broken.bias, math.nan)
    with pytest.raises(ValueError, match="the model is broken"):
        relearn(broken, rows(60), rows(20, 1), SHORT, seed=0)


# Models that predict values


def values_of(count: int, seed: int = 0) -> TensorSamples:
    source = torch.Generator().manual_seed(seed)
    inputs = torch.randn((count, 4), generator=source)
    return TensorSamples(inputs, inputs[:, 0] + 3 * inputs[:, 1], mean=[0.0] * 4, std=[1.0] * 4)


def taught(seed: int, updates: int, outputs: int = 1) -> nn.Module:
    """A line through the data, taught for some updates."""
    model = build_seeded(lambda: nn.Linear(4, outputs), seed)
    data = values_of(200, 5)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(updates):
        optimiser.zero_grad()
        inputs, targets = data.batch(torch.arange(200))
        (model(inputs).mean(1) - targets).square().mean().backward()
        optimiser.step()
    return model


def test_a_regressor_that_still_knows_is_relearned_sooner_than_one_that_never_did() -> None:
    learned, watched = values_of(200), values_of(80, 1)
    how = RelearnConfig(updates=120, batch_size=50, learning_rate=0.05)
    knows, never, blank = taught(0, 60), taught(1, 0), taught(2, 0)
    before = bits(knows)
    curves = [relearn(model, learned, watched, how, seed=0, quantiles=()) for model in (knows, never, blank)]
    assert all(before[name].equal(tensor) for name, tensor in knows.state_dict().items())
    again = relearn(knows, learned, watched, how, seed=0, quantiles=())
    assert again == curves[0]
    for one in curves:
        assert all(0 <= value <= 1 for value in one.accuracies)
        assert one.accuracies[-1] > 0.9
        assert one.losses[-1] < one.losses[0]
    still = anamnesis_index(curves[0], curves[1], original_accuracy=0.95)
    assert still.high < 0.7
    alike = anamnesis_index(curves[2], curves[1], original_accuracy=0.95)
    assert 0.5 < alike.low <= alike.high < 2
    assert anamnesis_index(curves[1], curves[1], original_accuracy=0.95).value == 1
    assert area_between(curves[0], curves[1]) > 0.1


def test_the_first_look_at_a_regressor_is_its_skill_and_its_error() -> None:
    watched = values_of(80, 1)
    model = taught(0, 20, outputs=3)
    first = relearn(model, values_of(20), watched, RelearnConfig(updates=1), seed=0, quantiles=(0.1, 0.5, 0.9))
    inputs, targets = watched.batch(torch.arange(80))
    with torch.no_grad():
        errors = (model(inputs)[:, 1] - targets).abs().mean().item()
    spread = (targets - targets.double().quantile(0.5)).abs().double().mean().item()
    assert first.losses[0] == pytest.approx(errors, rel=1e-5)
    assert first.accuracies[0] == pytest.approx(max(0.0, 1 - errors / spread), rel=1e-4)
