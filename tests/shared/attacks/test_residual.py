import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from unlearning.attacks.residual import (
    absolute_residuals,
    published_residual_attack,
    residual_attack,
    residual_attacks,
)
from unlearning.metrics.classification import Outputs


def spread(count: int, scale: float, seed: int) -> np.ndarray:
    return np.abs(np.random.default_rng(seed).normal(0, scale, count))


def test_residuals_are_absolute_and_averaged_over_a_forecast() -> None:
    assert absolute_residuals(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 3.0])).tolist() == [1.0, 2.0]
    assert absolute_residuals(torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, 3.0]])).tolist() == [1.5]
    with pytest.raises(ValueError, match=r"\(2, 1\) and targets \(2,\) differ in shape"):
        absolute_residuals(torch.zeros(2, 1), torch.zeros(2))


def test_the_attack_ranks_small_residuals_first() -> None:
    members, others = spread(200, 1.0, 0), spread(300, 2.0, 1)
    roc = residual_attack(members, others)
    labels = np.repeat([1, 0], [200, 300])
    assert roc.auc == pytest.approx(roc_auc_score(labels, -np.concatenate([members, others])))
    assert roc.auc > 0.6
    few = np.quantile(others, 0.01, method="lower")
    assert roc.tpr_at_1_percent_fpr == pytest.approx(np.mean(members <= few), abs=0.02)
    assert abs(residual_attack(others[:150], others[150:]).auc - 0.5) < 3 * roc.auc_standard_error


def test_the_published_attack_knows_members_by_their_residuals() -> None:
    retain, holdout = spread(500, 0.2, 0), spread(500, 3.0, 1)
    assert published_residual_attack(retain, holdout, spread(200, 0.2, 2), seed=0) > 0.9
    assert published_residual_attack(retain, holdout, spread(200, 30.0, 3), seed=0) < 0.1


def test_the_published_attack_is_at_chance_where_nothing_was_learned_by_heart() -> None:
    shares = [
        published_residual_attack(spread(400, 1, seed), spread(400, 1, seed + 99), spread(400, 1, seed + 999), seed=0)
        for seed in range(5)
    ]
    assert abs(np.mean(shares) - 0.5) < 0.2


def test_the_published_attack_takes_as_many_members_as_non_members() -> None:
    # alike but for their number: an unbalanced classifier would call everything a member
    share = published_residual_attack(spread(4000, 1, 0), spread(100, 1, 1), spread(500, 1, 2), seed=0)
    assert share < 0.9
    assert share == published_residual_attack(spread(4000, 1, 0), spread(100, 1, 1), spread(500, 1, 2), seed=0)


def test_sets_that_are_empty_or_broken_are_refused() -> None:
    some, none, broken = np.ones(3), np.empty(0), np.array([1.0, math.nan])
    for sets in ((none, some, some), (some, none, some), (some, some, none)):
        with pytest.raises(ValueError, match="wanted retain, holdout and forget rows"):
            published_residual_attack(*sets, seed=0)
    with pytest.raises(ValueError, match="NaN"):
        published_residual_attack(some, broken, some, seed=0)
    with pytest.raises(ValueError, match="NaN"):
        residual_attack(some, broken)


def outputs(count: int, scale: float, seed: int) -> Outputs:
    targets = torch.arange(count, dtype=torch.float32)
    off = torch.from_numpy(spread(count, scale, seed)).float()
    return Outputs(logits=torch.stack([targets - 9, targets + off, targets + 99], 1), targets=targets)


def test_a_model_is_judged_by_its_median_on_every_set_and_its_memory_of_retain_rows_is_the_control() -> None:
    sets = {"retain.train": (0.1, 0), "retain.test": (1.0, 1), "forget.train": (0.1, 2), "forget.test": (1.0, 3)}
    remembers = {name: outputs(150, *how) for name, how in sets.items()}
    forgot = remembers | {"forget.train": outputs(150, 1.0, 4)}
    report = residual_attacks({"original": remembers, "unlearned": forgot}, quantiles=(0.1, 0.5, 0.9), seed=0)
    assert report.metrics["membership_auc.residual.forget.original"] > 0.85
    assert report.metrics["membership_auc.residual.retain.original"] > 0.85
    assert abs(report.metrics["membership_auc.residual.forget.unlearned"] - 0.5) < 0.1
    assert report.metrics["residual_attack.forget.original"] > report.metrics["residual_attack.forget.unlearned"] + 0.3
    roc = report.curves["residual.forget.original"]
    assert report.standard_errors["membership_auc.residual.forget.original"] == roc.auc_standard_error
    exact = residual_attack(
        *(
            absolute_residuals(remembers[name].logits[:, 1], remembers[name].targets)
            for name in ("forget.train", "forget.test")
        )
    )
    assert roc.auc == exact.auc


def test_without_held_out_rows_of_the_forgotten_kind_the_others_stand_in() -> None:
    sets = {name: outputs(60, 1.0, seed) for seed, name in enumerate(("retain.train", "retain.test", "forget.train"))}
    report = residual_attacks({"original": sets}, quantiles=(0.1, 0.5, 0.9), seed=0)
    assert report.curves["residual.forget.original"].non_members == 60
