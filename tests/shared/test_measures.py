"""Laws that every public function of metrics and attacks obeys, and independent values where no other test has one."""

import inspect
import math
import pkgutil
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import d2_absolute_error_score, mean_absolute_error, mean_squared_error, roc_auc_score
from support.measures import (
    MEASURES,
    Measure,
    called,
    curve,
    fingerprint,
    leaves,
    logits,
    network,
    plain,
    renamed,
    reordered,
    values,
)

import unlearning.attacks
import unlearning.metrics
from unlearning.attacks.lira import audit_by_shadow, audit_curve, leave_one_out
from unlearning.attacks.membership import population_attack
from unlearning.metrics.classification import weights_changed
from unlearning.metrics.divergence import activation_distance, legacy_zrf
from unlearning.metrics.intervals import auc_difference_interval, auc_gap_error, gap_to
from unlearning.metrics.regression import mae, mse, rmse, skill
from unlearning.metrics.relearning import area_between

NAMES = [measure.name for measure in MEASURES]
every = pytest.mark.parametrize("measure", MEASURES, ids=NAMES)


def some(condition: Any) -> Any:
    chosen = [measure for measure in MEASURES if condition(measure)]
    return pytest.mark.parametrize("measure", chosen, ids=[measure.name for measure in chosen])


def inputs(measure: Measure, seed: int = 0, rows: int = 9, classes: int = 3) -> dict[str, Any]:
    return measure.make(np.random.default_rng(seed), rows, classes)


def floats(given: dict[str, Any]) -> list[Any]:
    """Views of the arrays of numbers among the inputs: what is written to them is written to the inputs."""
    arrays = [one.numpy() if isinstance(one, torch.Tensor) and not one.requires_grad else one for one in leaves(given)]
    return [one for one in arrays if isinstance(one, np.ndarray) and one.dtype.kind == "f"]


def alike(one: Any, other: Any) -> None:
    """Equal but for the order of sums."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            alike(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            alike(first, second)
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-6, abs=1e-9, nan_ok=True)
    else:
        assert one == other


def test_every_public_function_is_here() -> None:
    there = {
        f"{module.__name__.removeprefix('unlearning.')}.{name}"
        for package in (unlearning.metrics, unlearning.attacks)
        for _, path, _ in pkgutil.iter_modules(package.__path__)
        for module in [import_module(f"{package.__name__}.{path}")]
        for name, function in vars(module).items()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    }
    assert there == set(NAMES)


@every
def test_no_input_is_changed_and_a_second_call_equals_the_first(measure: Measure) -> None:
    given = inputs(measure)
    before = fingerprint(given)
    torch.manual_seed(11)
    np.random.seed(11)
    drawn = torch.get_rng_state().clone(), np.random.get_state()[1].copy()  # type: ignore[index]
    first = called(measure, given)
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert np.array_equal(np.random.get_state()[1], drawn[1])  # type: ignore[index]
    assert fingerprint(given) == before
    torch.manual_seed(12)
    assert repr(plain(called(measure, given))) == repr(plain(first))  # NaN equals NaN, 0 is not -0
    assert fingerprint(given) == before


@some(lambda measure: any(isinstance(one, torch.nn.Module) for one in inputs(measure).values()))
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_model_keeps_its_mode_its_flags_and_takes_no_gradient(measure: Measure, mode: str) -> None:
    given = inputs(measure)
    models = [one for one in given.values() if isinstance(one, torch.nn.Module)]
    for model in models:
        getattr(model, mode)()
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 2.0)
    before = fingerprint(given)
    called(measure, given)
    assert fingerprint(given) == before
    assert all(bool((parameter.grad == 2).all()) for model in models for parameter in model.parameters())


@some(lambda measure: measure.order is not None)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(2, 30), classes=st.integers(2, 6))
def test_another_order_of_the_rows_changes_nothing_or_moves_the_values_with_them(
    measure: Measure, seed: int, rows: int, classes: int
) -> None:
    given = measure.make(np.random.default_rng(seed), rows, classes)
    first = plain(measure.named(called(measure, given)))
    for place, group in enumerate(measure.rows):

        def order(count: int, place: int = place) -> Any:
            return np.random.default_rng([seed, place]).permutation(count)

        turned = given | {name: reordered(given[name], order) for name in group}
        found = plain(measure.named(called(measure, turned)))
        if measure.order == "same":
            alike(first, found)
        elif isinstance(first, dict):
            alike({name: [one[at] for at in order(len(one))] for name, one in first.items()}, found)
        else:
            alike([first[at] for at in order(len(first))], found)


@some(lambda measure: measure.classes is not None)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(3, 20), classes=st.integers(2, 6))
def test_the_names_of_the_classes_do_not_matter(measure: Measure, seed: int, rows: int, classes: int) -> None:
    given = without_ties(measure.make(np.random.default_rng(seed), rows, classes), seed)
    names = torch.from_numpy(np.random.default_rng([seed, 9]).permutation(classes))
    assert measure.classes is not None
    turned = dict(given)
    for name in measure.classes[0]:
        turned[name] = renamed(given[name], names, logits=True)
    for name in measure.classes[1]:
        if name not in measure.classes[0]:
            turned[name] = renamed(given[name], names, logits=False)
    alike(plain(measure.named(called(measure, given))), plain(measure.named(called(measure, turned))))


def without_ties(given: dict[str, Any], seed: int) -> dict[str, Any]:
    """Of two equal logits the class with the lower index is predicted: there, names do matter."""
    draws = np.random.default_rng([seed, 5])
    for one in leaves(given):
        if isinstance(one, torch.Tensor) and one.is_floating_point():
            one += torch.from_numpy(draws.uniform(-1e-3, 1e-3, tuple(one.shape))).to(one.dtype)
    return given


@some(lambda measure: measure.mirror is not None)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(2, 20), classes=st.integers(2, 6))
def test_sides_that_change_places_give_the_same_or_the_opposite(
    measure: Measure, seed: int, rows: int, classes: int
) -> None:
    assert measure.mirror is not None
    one, other, what = measure.mirror
    given = measure.make(np.random.default_rng(seed), rows, classes)
    found, turned = (
        measure.named(called(measure, sides)) for sides in (given, given | {one: given[other], other: given[one]})
    )
    if measure.function is auc_difference_interval:
        assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))
    elif what == "same":
        alike(plain(found), plain(turned))
    else:
        assert np.asarray(turned) == pytest.approx(-np.asarray(found), abs=1e-12)


@every
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(2, 25), classes=st.integers(2, 12))
def test_every_value_keeps_its_bounds(measure: Measure, seed: int, rows: int, classes: int) -> None:
    given = measure.make(np.random.default_rng(seed), rows, classes)
    for value, low, high in measure.bounds(called(measure, given), given):
        assert low <= value <= high


@some(lambda measure: measure.rows)
def test_a_single_row_and_rows_all_alike_give_finite_values_or_are_refused_in_words(measure: Measure) -> None:
    tried = [inputs(measure, rows=1), inputs(measure, rows=6)]
    for one in leaves([value for value in tried[1].values() if not isinstance(value, torch.nn.Module)]):
        one[...] = one[:1] if isinstance(one, np.ndarray) else one[:1].clone()
    for rows in tried:
        try:
            found = called(measure, rows)
        except ValueError as error:
            assert len(str(error)) > 20  # noqa: PT017
            continue
        for value, low, high in measure.bounds(found, rows):
            assert low <= value <= high


@some(lambda measure: measure.rows and measure.empty is not None)
def test_no_rows_are_refused_or_give_no_values(measure: Measure) -> None:
    for group in measure.rows:
        given = inputs(measure)
        for name in group:
            given[name] = reordered(given[name], lambda count: np.arange(0))
        if measure.empty == "empty":
            assert len(called(measure, given)) == 0
            continue
        with pytest.raises(ValueError, match=r"want|at least|none|must"):
            called(measure, given)


@some(lambda measure: measure.broken is not None and any(one.size for one in floats(inputs(measure))))
def test_nan_is_refused_or_handed_on_but_never_swallowed(measure: Measure) -> None:
    for place in range(len(floats(inputs(measure)))):
        given = inputs(measure)
        floats(given)[place].reshape(-1)[0] = math.nan
        if measure.broken == "refused":
            with pytest.raises((ValueError, FloatingPointError), match=r"NaN|nan|finite|broken"):
                called(measure, given)
        else:
            assert np.isnan(np.asarray(plain(called(measure, given)), dtype=float)).any()


CLASSLESS = {
    "accuracy",
    "expected_calibration_error",
    "brier_score",
    "negative_log_likelihood",
    "jensen_shannon",
    "zero_retrain_forgetting",
    "activation_distance",
    "entropy",
    "cross_entropy",
    "doubt",
    "neighbour_shift",
}


@some(lambda measure: measure.function.__name__ in CLASSLESS)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 12), classes=st.integers(2, 6), shift=st.floats(-50, 50))
def test_a_class_that_nobody_says_and_a_constant_on_all_logits_change_nothing(
    measure: Measure, seed: int, rows: int, classes: int, shift: float
) -> None:
    given = measure.make(np.random.default_rng(seed), rows, classes)
    assert measure.classes is not None

    def changed(value: Any) -> Any:
        if isinstance(value, list):
            return [changed(one) for one in value]
        more = torch.cat([value, torch.full((len(value), 1), -1e4)], 1).double()
        return more + shift

    turned = given | {name: changed(given[name]) for name in measure.classes[0]}
    alike(plain(measure.named(called(measure, given))), plain(measure.named(called(measure, turned))))


def test_the_legacy_value_does_depend_on_how_many_classes_there_are() -> None:
    rng = np.random.default_rng(0)
    one, other = logits(rng, 8, 4), logits(rng, 8, 4)
    more = [torch.cat([side, torch.full((8, 4), -60.0)], 1) for side in (one, other)]
    assert 1 - legacy_zrf(more[0], more[1]) == pytest.approx((1 - legacy_zrf(one, other)) / 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30))
def test_errors_and_skill_are_scikit_learns(seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    found, wanted = rng.normal(size=rows), rng.normal(size=rows)
    assert mae(found, wanted) == pytest.approx(mean_absolute_error(wanted, found))
    assert mse(found, wanted) == pytest.approx(mean_squared_error(wanted, found))
    assert rmse(found, wanted) == pytest.approx(mean_squared_error(wanted, found) ** 0.5)
    if rows > 1:
        assert skill(found, wanted) == pytest.approx(max(0.0, d2_absolute_error_score(wanted, found)))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(2, 7))
def test_the_activation_distance_is_numpys(seed: int, rows: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = logits(rng, rows, classes), logits(rng, rows, classes)
    p, q = (np.exp(side.double().numpy() - side.double().numpy().max(1, keepdims=True)) for side in (one, other))
    apart = np.linalg.norm(p / p.sum(1, keepdims=True) - q / q.sum(1, keepdims=True), axis=1)
    assert activation_distance(one, other) == pytest.approx(apart.mean(), abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_the_area_between_two_curves_is_numpys(seed: int, looks: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = curve(rng, looks), curve(rng, looks)
    area = np.trapezoid(np.subtract(one.accuracies, other.accuracies), one.updates) / one.updates[-1]
    assert area_between(one, other) == pytest.approx(area, abs=1e-12)


def test_the_interval_of_a_difference_is_that_of_a_slow_bootstrap_that_draws_the_same_rows_of_both() -> None:
    rng = np.random.default_rng(3)
    ease = rng.normal(size=50), rng.normal(size=60)
    one, other = (tuple(side + rng.normal(at, 0.7, len(side)) for at, side in enumerate(ease)) for _ in range(2))
    drawn = []
    for _ in range(1500):
        rows = [rng.integers(0, len(side), len(side)) for side in ease]
        aucs = [
            population_attack(*(side[at] for side, at in zip(pair, rows, strict=True))).auc for pair in (one, other)
        ]
        drawn.append(aucs[0] - aucs[1])
    found = auc_difference_interval((one[0], one[1]), (other[0], other[1]), seed=0, draws=1500)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.02)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(2, 9))
def test_the_error_of_a_gap_equals_the_slow_sums_over_pairs(seed: int, members: int, others: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = ((values(rng, members), values(rng, others)) for _ in range(2))
    placed = []
    for low, high in (one, other):
        wins = (low[:, None] < high[None]) + 0.5 * (low[:, None] == high[None])  # (M, N)
        placed.append((wins.mean(1), wins.mean(0)))
    delong = sum((np.subtract(placed[0][side], placed[1][side])).var(ddof=1) / len(placed[0][side]) for side in (0, 1))
    ranks = [np.concatenate(pair) for pair in (one, other)]
    ranks = [((side[:, None] > side[None]) + 0.5 * (side[:, None] == side[None])).sum(1) for side in ranks]
    r = np.corrcoef(*ranks)[0, 1] if all(side.std() > 0 for side in ranks) else 0.0
    chance = (members + others + 1) / (6 * members * others) * (1 - r)
    assert auc_gap_error(one, other) == pytest.approx(math.sqrt(max(delong, chance, 0)), abs=1e-7)


def test_the_curve_of_an_audit_and_of_each_shadow_are_scikit_learns() -> None:
    made = next(measure for measure in MEASURES if measure.function is audit_curve)
    audit = inputs(made, seed=4, rows=12)["audit"]
    scores, truth = leave_one_out(audit)
    assert audit_curve(audit).auc == pytest.approx(roc_auc_score(truth.ravel(), scores.ravel()))
    each = [roc_auc_score(side, one) for side, one in zip(truth, scores, strict=True)]
    assert audit_by_shadow(audit) == pytest.approx(each)


def test_weights_of_nothing_and_of_other_shapes_have_no_share_that_changed() -> None:
    nothing, something = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    assert weights_changed(nothing, nothing) == 0
    assert weights_changed(nothing, something) == math.inf
    with pytest.raises(ValueError, match="differ in the shape of w"):
        weights_changed({"w": torch.ones(3)}, {"w": torch.ones(1)})


def test_a_gap_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="at least one retrained model"):
        gap_to(0.5, [], 0.1)


def test_the_model_used_here_would_show_a_careless_caller() -> None:
    model = network(3)
    assert [module.training for module in model] == [True] * 4 + [False, True]
    before = fingerprint({"model": model})
    model(torch.ones(2, 1, 5, 5))  # in train mode: BatchNorm's statistics move
    assert fingerprint({"model": model}) != before
