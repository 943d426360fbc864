import copy
import math

import pytest
import torch
from support.digits import GONE, case
from torch import Tensor

from unlearning.attacks.probe import probe_attack
from unlearning.metrics.features import features
from unlearning.metrics.intervals import seed_interval


def normal(rows: int, seed: int, shift: float = 0.0, values: int = 5) -> Tensor:
    return torch.randn((rows, values), generator=torch.Generator().manual_seed(seed)) + shift


def test_features_that_tell_nothing_give_chance_and_its_standard_error() -> None:
    found = [probe_attack(normal(80, seed), normal(60, seed + 100), seed=seed) for seed in range(30)]
    assert seed_interval([one.auc for one in found], level=0.99).holds(0.5)
    assert found[0].rows == 70
    assert found[0].standard_error == pytest.approx(math.sqrt((40 + 30 + 1) / (12 * 40 * 30)))


def test_a_shift_is_found_as_well_as_it_can_be() -> None:
    # Two normals a distance d apart: AUC = Phi(d / sqrt 2); d = 0.5 sqrt 5 = 1.118: 0.785
    found = probe_attack(normal(3000, 0, 0.5), normal(3000, 1), seed=0)
    assert found.auc == pytest.approx(0.785, abs=0.02)
    assert probe_attack(normal(20, 0, 90), normal(500, 1), seed=0).auc == 1.0


def test_the_sides_the_units_and_constant_features_do_not_matter() -> None:
    forget, rest = normal(100, 0, 0.4), normal(300, 1)
    found = probe_attack(forget, rest, seed=0)
    scaled = torch.tensor([1e-3, 1, 10, 1e3, 1])
    again = probe_attack(forget * scaled + 7, rest * scaled + 7, seed=0)
    assert again.auc == pytest.approx(found.auc, abs=1e-3)
    constant = [torch.cat([side, torch.ones((len(side), 1))], dim=1) for side in (forget, rest)]
    assert probe_attack(*constant, seed=0).auc == pytest.approx(found.auc, abs=1e-6)


def test_rows_are_bounded_and_a_seed_repeats() -> None:
    forget, rest = normal(500, 0, 0.3), normal(400, 1)
    found = probe_attack(forget, rest, seed=0, most=100)
    assert found.rows == 100
    assert found == probe_attack(forget, rest, seed=0, most=100)
    assert found != probe_attack(forget, rest, seed=1, most=100)


def test_on_digits_an_edit_of_the_output_layer_leaves_the_probe_what_the_original_gave_it() -> None:
    digits = case("class")
    silenced = copy.deepcopy(digits.original)
    with torch.no_grad():
        silenced.get_submodule("classifier.4").bias[GONE] = -30  # type: ignore[operator]
    one, other = (
        probe_attack(features(model, digits.forget_test), features(model, digits.retain_test), seed=0)
        for model in (digits.original, silenced)
    )
    assert one == other
    assert one.auc > 0.99


@pytest.mark.parametrize(
    ("forget", "rest", "words"),
    [
        (torch.zeros((3, 2)), torch.zeros((9, 2)), "at least 4 rows of either side"),
        (torch.zeros((9, 2)), torch.zeros((0, 2)), "at least 4 rows of either side"),
        (torch.zeros((9, 2)), torch.zeros((9, 3)), "at least 4 rows of either side"),
        (torch.full((9, 2), math.nan), torch.zeros((9, 2)), "NaN"),
        (torch.zeros((9, 2)), torch.full((9, 2), math.inf), "NaN or infinity"),
    ],
)
def test_what_cannot_be_probed_is_refused(forget: Tensor, rest: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        probe_attack(forget, rest, seed=0)
