import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from unlearning.config import as_plain
from unlearning.metrics.classification import (
    SETS,
    ClassificationReport,
    Outputs,
    compare_classifiers,
    weights_changed,
)

CLASSES = ("cat", "dog", "emu", "fox")


def outputs(predicted: list[int], targets: list[int]) -> Outputs:
    return Outputs(logits=F.one_hot(torch.tensor(predicted), 4).float(), targets=torch.tensor(targets))


# Targets of each set, then what the original and the unlearned model predict. The emu is forgotten; no
# fox was held out.
TABLE: dict[str, tuple[list[int], list[int], list[int]]] = {
    "retain.train": ([0, 0, 1, 3], [0, 0, 1, 0], [0, 1, 1, 0]),
    "forget.train": ([2, 2], [2, 2], [0, 0]),
    "retain.test": ([0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]),
    "forget.test": ([2, 2, 2, 2], [2, 2, 2, 1], [1, 1, 0, 2]),
}


def models(*left_out: str) -> dict[str, dict[str, Outputs]]:
    kept = {name: columns for name, columns in TABLE.items() if name not in left_out}
    return {
        model: {name: outputs(columns[place], columns[0]) for name, columns in kept.items()}
        for place, model in ((1, "original"), (2, "unlearned"))
    }


def report(*left_out: str, forget: tuple[int, ...] = (2,)) -> ClassificationReport:
    return compare_classifiers(models(*left_out), classes=CLASSES, forget_classes=forget)


def agresti(share: float, count: int) -> float:
    p = (share * count + 2) / (count + 4)
    return math.sqrt(p * (1 - p) / (count + 4))


def test_the_table_covers_every_set() -> None:
    assert set(TABLE) == set(SETS)


def test_accuracies_and_drops_by_hand() -> None:
    assert report().metrics == pytest.approx(
        {
            "retain_accuracy.train.original": 3 / 4,
            "retain_accuracy.train.unlearned": 2 / 4,
            "retain_accuracy_drop.train": 1 / 4,
            "forget_accuracy.train.original": 1.0,
            "forget_accuracy.train.unlearned": 0.0,
            "forget_accuracy_drop.train": 1.0,
            "retain_accuracy.test.original": 5 / 6,
            "retain_accuracy.test.unlearned": 4 / 6,
            "retain_accuracy_drop.test": 1 / 6,
            "forget_accuracy.test.original": 3 / 4,
            "forget_accuracy.test.unlearned": 1 / 4,
            "forget_accuracy_drop.test": 1 / 2,
            "seen_gap.forget.original": 1 / 4,
            "seen_gap.forget.unlearned": -1 / 4,
            "worst_class_drop.test": 1 / 4,  # cat: 3 of 4, then 2 of 4; dog: none; the emu does not count
            "forget_top_prediction_share.test.unlearned": 1 / 2,  # dog
        }
    )


def test_standard_errors_by_hand() -> None:
    errors = report().standard_errors
    # 3 right of 4, with 2 more of each: 5 of 8.
    assert errors["retain_accuracy.train.original"] == pytest.approx(math.sqrt(5 / 8 * 3 / 8 / 8))
    # None right of 2 is not taken as certain: 2 of 6.
    assert errors["forget_accuracy.train.unlearned"] == pytest.approx(math.sqrt(2 / 6 * 4 / 6 / 6))
    # The differences of the 4 rows are 0, 1, 0, 0: variance 1/4 * 3/4, over 4 rows.
    assert errors["retain_accuracy_drop.train"] == pytest.approx(math.sqrt(3 / 16 / 4))
    # 1, 1, 1, and -1 where the unlearned model alone is right: mean 1/2, variance 1 - 1/4, over 4 rows.
    assert errors["forget_accuracy_drop.test"] == pytest.approx(math.sqrt(3 / 4 / 4))
    # The two sets have no row in common: their variances add.
    gap = math.hypot(agresti(0, 2), agresti(1 / 4, 4))
    assert errors["seen_gap.forget.unlearned"] == pytest.approx(gap)
    assert errors["worst_class_drop.test"] == pytest.approx(agresti(2 / 4, 4))


def test_the_error_of_a_drop_counts_rows_that_changed_not_rows_that_are_wrong() -> None:
    # Both models have half of the rows right: the same half, so that nothing is in doubt.
    same = {name: outputs([0, 0, 1, 1], [0, 0, 0, 0]) for name in TABLE}
    found = compare_classifiers({"original": same, "unlearned": same}, classes=CLASSES, forget_classes=())
    assert found.metrics["retain_accuracy_drop.test"] == 0
    assert found.standard_errors["retain_accuracy_drop.test"] == 0


def test_the_class_table_by_hand_with_nothing_where_there_are_no_rows() -> None:
    keys = ("test_rows", "train_rows", "train_original", "test_original", "train_unlearned", "test_unlearned")
    found = report().per_class
    assert [(row["class"], row["forgotten"]) for row in found] == [
        ("cat", False),
        ("dog", False),
        ("emu", True),
        ("fox", False),
    ]
    assert [[row[key] for key in keys] for row in found] == [
        [4, 2, 1.0, 3 / 4, 1 / 2, 2 / 4],
        [2, 1, 1.0, 1.0, 1.0, 1.0],
        [4, 2, 1.0, 3 / 4, 0.0, 1 / 4],
        [0, 1, 0.0, None, 0.0, None],
    ]


def test_confusion_and_destinations_by_hand() -> None:
    found = report()
    assert found.confusion == {
        "original": [[3, 1, 0, 0], [0, 2, 0, 0], [0, 1, 3, 0], [0, 0, 0, 0]],
        "unlearned": [[2, 2, 0, 0], [0, 2, 0, 0], [1, 2, 1, 0], [0, 0, 0, 0]],
    }
    assert found.forget_predictions == {"original": [0, 0.25, 0.75, 0], "unlearned": [0.25, 0.5, 0.25, 0]}


def test_without_held_out_rows_of_its_own_a_request_has_no_such_metrics() -> None:
    found = report("forget.test", forget=())
    assert not [name for name in found.metrics if name.startswith("forget") and "test" in name]
    assert found.forget_predictions == {}
    assert found.metrics["forget_accuracy.train.unlearned"] == 0.0
    # Held-out retain rows stand in: 0 of 2 and 4 of 6.
    assert found.metrics["seen_gap.forget.unlearned"] == pytest.approx(-4 / 6)
    assert not any(row["forgotten"] for row in found.per_class)


def test_a_report_goes_through_json() -> None:
    found = report()
    assert json.loads(json.dumps(as_plain(found)))["metrics"] == found.metrics


@pytest.mark.parametrize("missing", ["retain.train", "retain.test", "forget.train"])
def test_a_set_that_is_needed_must_be_there(missing: str) -> None:
    with pytest.raises(ValueError, match="wanted all models' outputs on one choice of"):
        report(missing)


def test_both_models_must_have_run_on_the_same_sets() -> None:
    mixed = {"original": models()["original"], "unlearned": models("forget.test")["unlearned"]}
    with pytest.raises(ValueError, match="wanted all models' outputs on one choice of"):
        compare_classifiers(mixed, classes=CLASSES, forget_classes=(2,))


def test_outputs_that_are_not_finite_are_refused() -> None:
    broken = models()
    broken["unlearned"]["forget.test"].logits[0, 0] = math.nan
    with pytest.raises(ValueError, match="outputs hold NaN"):
        compare_classifiers(broken, classes=CLASSES, forget_classes=(2,))


@given(st.data())
def test_the_order_of_rows_does_not_matter_and_every_share_is_in_bounds(data: Any) -> None:
    size = data.draw(st.integers(1, 12))
    labels = st.lists(st.integers(0, 2), min_size=size, max_size=size)
    columns = {name: [data.draw(labels) for _ in range(3)] for name in SETS}
    order = data.draw(st.permutations(range(size)))

    def build(order: list[int]) -> ClassificationReport:
        both = {
            model: {
                name: outputs([column[place][row] for row in order], [column[0][row] for row in order])
                for name, column in columns.items()
            }
            for place, model in ((1, "original"), (2, "unlearned"))
        }
        return compare_classifiers(both, classes=CLASSES, forget_classes=())

    found, again = build(list(range(size))), build(list(order))
    assert found.metrics == pytest.approx(again.metrics)
    assert found.standard_errors == pytest.approx(again.standard_errors)
    assert found.per_class == again.per_class
    for name, value in found.metrics.items():
        assert (-1 if "drop" in name or "gap" in name else 0) <= value <= 1
    assert all(0 <= error <= 1 for error in found.standard_errors.values())
    mean = (found.metrics["retain_accuracy_drop.test"] + found.metrics["forget_accuracy_drop.test"]) / 2
    assert found.metrics["worst_class_drop.test"] >= mean - 1e-9


def test_the_change_of_weights_by_hand() -> None:
    original = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}  # norm 5
    unlearned = {"a": torch.tensor([3.0, 2.0]), "b": torch.tensor([[3.0]])}  # moved by sqrt(4 + 1)
    assert weights_changed(original, unlearned) == pytest.approx(math.sqrt(5) / 5)
    assert weights_changed(original, original) == 0
    assert weights_changed(original, {name: 2 * tensor for name, tensor in original.items()}) == pytest.approx(1)


def test_a_change_too_small_for_single_precision_sums_is_seen() -> None:
    original = {"a": torch.full((1000,), 1000.0), "b": torch.tensor([1e-3])}
    moved = {"a": original["a"], "b": torch.tensor([2e-3])}
    assert weights_changed(original, moved) == pytest.approx(1e-3 / (1000 * math.sqrt(1000)), rel=1e-4)


def test_weights_that_are_not_numbers_are_no_small_change() -> None:
    assert math.isnan(weights_changed({"a": torch.ones(2)}, {"a": torch.tensor([1.0, math.nan])}))


def test_models_with_different_parameters_have_no_distance() -> None:
    with pytest.raises(ValueError, match="the models have different parameters"):
        weights_changed({"a": torch.ones(2)}, {"b": torch.ones(2)})


def test_gaps_to_a_retrained_model_by_hand() -> None:
    three = models()
    retrained = {  # right on all retain rows, calls every emu a cat
        name: outputs([0 if target == 2 else target for target in columns[0]], columns[0])
        for name, columns in TABLE.items()
    }
    report = compare_classifiers({**three, "retrained": retrained}, classes=CLASSES, forget_classes=(2,))
    gaps = {name: value for name, value in report.metrics.items() if "_gap" in name and "seen" not in name}
    ours = {name: value for name, value in gaps.items() if not name.startswith("control.")}
    assert ours == pytest.approx(
        {"retain_gap.train": -0.5, "forget_gap.train": 0.0, "retain_gap.test": -1 / 3, "forget_gap.test": 0.25}
    )
    for part in ("forget", "retain"):  # the original's gaps stand beside them
        for split in ("train", "test"):
            both = [report.metrics[f"{part}_accuracy.{split}.{model}"] for model in ("original", "retrained")]
            assert gaps[f"control.{part}_gap.{split}"] == pytest.approx(both[0] - both[1])
    assert report.metrics["divergence.forget"] == 0  # both call both emus they were trained on cats
    assert report.metrics["retain_accuracy.test.retrained"] == 1
    assert report.per_class[0]["test_retrained"] == 1
    # Of six rows two changed from right to wrong: mean -1/3, variance 1/3 - 1/9.
    assert report.standard_errors["retain_gap.test"] == pytest.approx(math.sqrt((1 / 3 - 1 / 9) / 6))
    assert "forget_gap.train" not in compare_classifiers(three, classes=CLASSES, forget_classes=(2,)).metrics


def test_several_retrained_models_give_the_mean_and_what_seeds_differ_by() -> None:
    three = models()
    right = {name: outputs(columns[0], columns[0]) for name, columns in TABLE.items()}
    wrong = {name: outputs([(target + 1) % 3 for target in columns[0]], columns[0]) for name, columns in TABLE.items()}
    report = compare_classifiers(
        {**three, "retrained": right, "retrained 2": wrong}, classes=CLASSES, forget_classes=(2,)
    )
    one = compare_classifiers({**three, "retrained": right}, classes=CLASSES, forget_classes=(2,))
    key = "retain_gap.test"
    assert report.metrics[key] == pytest.approx(report.metrics["retain_accuracy.test.unlearned"] - 0.5)
    # Accuracies 1 and 0: variance 1/2 over seeds, times 1 + 1/2 for the mean of two.
    assert report.standard_errors[key] == pytest.approx(math.hypot(one.standard_errors[key], math.sqrt(0.75)))
