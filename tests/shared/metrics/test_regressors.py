import math

import numpy as np
import pytest
import torch

from unlearning.metrics.classification import Outputs
from unlearning.metrics.regressors import compare_regressors

# Targets of each set, then what the original and the unlearned model predict.
TABLE: dict[str, tuple[list[float], list[float], list[float]]] = {
    "retain.train": ([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.5], [1.5, 2.0, 3.0, 4.0]),
    "forget.train": ([8.0, 9.0], [8.0, 9.0], [5.0, 5.0]),
    "retain.test": ([1.0, 3.0], [2.0, 3.0], [2.2, 3.0]),
    "forget.test": ([8.0, 10.0], [7.0, 9.0], [5.0, 6.0]),
}


def outputs(predicted: list[float], targets: list[float]) -> Outputs:
    return Outputs(logits=torch.tensor(predicted)[:, None], targets=torch.tensor(targets))


def models(*left_out: str) -> dict[str, dict[str, Outputs]]:
    kept = {name: columns for name, columns in TABLE.items() if name not in left_out}
    return {
        model: {name: outputs(columns[place], columns[0]) for name, columns in kept.items()}
        for place, model in ((1, "original"), (2, "unlearned"))
    }


def test_errors_their_rise_and_the_advantage_of_seen_rows_by_hand() -> None:
    report = compare_regressors(models())
    expected = {
        "forget_mae.train.original": 0.0,
        "forget_mae.train.unlearned": 3.5,
        "forget_rmse.train.unlearned": math.sqrt((9 + 16) / 2),
        "forget_mae.test.unlearned": 3.5,
        "retain_mae.test.original": 0.5,
        "retain_mae.test.unlearned": 0.6,
        "retain_error_rise.test": 0.2,
        "seen_advantage.forget.original": 1.0,  # off by 0 on the rows it saw, by 1 on others of their kind
        "seen_advantage.forget.unlearned": 0.0,
        "prediction_shift.forget": 3.5,  # 8 and 9 became 5 and 5
        "residual_ks.forget.unlearned": 0.0,
    }
    assert {name: report.metrics[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def test_standard_errors_by_hand() -> None:
    errors = compare_regressors(models()).standard_errors
    assert errors["forget_mae.train.unlearned"] == pytest.approx(0.5)  # of 3 and 4: deviation 1/sqrt(2), over sqrt(2)
    assert errors["retain_error_rise.test"] == pytest.approx(0.1 / 0.5)  # the changes 0.2 and 0, over the error before
    # The ratio of two means of 3.5, each with an error of 0.5.
    assert errors["seen_advantage.forget.unlearned"] == pytest.approx(math.sqrt(2) * 0.5 / 3.5)


def test_held_out_rows_of_all_kinds_stand_in_where_the_request_has_none_of_its_own() -> None:
    metrics = compare_regressors(models("forget.test")).metrics
    assert metrics["seen_advantage.forget.unlearned"] == pytest.approx(1 - 3.5 / 0.6, rel=1e-5)
    assert not any(name.startswith("residual_ks") or (".test" in name and "forget_" in name) for name in metrics)


def test_the_error_is_shown_by_target_over_all_held_out_rows() -> None:
    bins = compare_regressors(models()).bins
    for model in ("original", "unlearned"):
        assert [one.count for one in bins[model]] == [1, 0, 1, 0, 0, 0, 0, 1, 0, 1]
        assert (bins[model][0].low, bins[model][-1].high) == (1.0, 10.0)
    assert bins["unlearned"][-1].mae == pytest.approx(4)
    assert bins["unlearned"][-1].bias == pytest.approx(-4)


def test_of_quantiles_the_median_is_the_prediction() -> None:
    whole = models()
    spread = torch.tensor([[-100.0, 0.0, 100.0]])
    wide = {
        model: {name: Outputs(logits=one.logits + spread, targets=one.targets) for name, one in sets.items()}
        for model, sets in whole.items()
    }
    assert compare_regressors(wide, quantiles=(0.1, 0.5, 0.9)).metrics == compare_regressors(whole).metrics


def test_a_broken_model_and_missing_sets_are_refused() -> None:
    broken = models()
    broken["unlearned"]["retain.test"] = outputs([np.nan, 1.0], [1.0, 3.0])
    with pytest.raises(ValueError, match=r"the unlearned model's outputs on retain\.test are not finite"):
        compare_regressors(broken)
    with pytest.raises(ValueError, match="wanted all models' outputs on one choice of"):
        compare_regressors(models("retain.test"))
    lopsided = models()
    del lopsided["original"]["forget.test"]
    with pytest.raises(ValueError, match="wanted all models' outputs"):
        compare_regressors(lopsided)


def test_gaps_to_a_retrained_model_are_shares_of_its_error() -> None:
    said = {"retain.train": [1.0, 2.0, 3.0, 4.0], "forget.train": [4.0, 5.0], "retain.test": [1.5, 3.5]}
    retrained = {name: outputs(said.get(name, [4.0, 4.0]), TABLE[name][0]) for name in TABLE}
    metrics = compare_regressors({**models(), "retrained": retrained}).metrics
    assert metrics["forget_error_gap.train"] == pytest.approx(3.5 / 4 - 1)  # off by 3 and 4, the other by 4 and 4
    assert metrics["retain_error_gap.test"] == pytest.approx(0.6 / 0.5 - 1)
    assert metrics["wasserstein.forget"] == pytest.approx(0.5)  # 5 and 5 against 4 and 5
    assert "forget_error_gap.train" not in compare_regressors(models()).metrics
