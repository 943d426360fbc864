"""The audit of models that predict values."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import unlearning.audit
from unlearning.attacks.membership import population_attack
from unlearning.attacks.update import update_attack_on_values
from unlearning.audit import NOT_OF_VALUES, NOTHING_TO_RELEARN, AuditConfig, AuditReport, audit
from unlearning.data.samples import Rows, Samples, TensorSamples
from unlearning.training import Recipe, build_seeded, generator, train

QUICK = AuditConfig(updates=20, repeats=2, cap=60, learning_rate=0.01, shots=20)
ASKED = {"relearned_few_shots", "relearned_retain_only", "probe_auc", "update_residual_auc", "update_shift_auc"}
FORGET, RETAIN, FORGET_TEST, RETAIN_TEST = (torch.arange(at, at + 100) for at in (0, 100, 200, 300))


def values() -> TensorSamples:
    """Rows 0 to 99 and 200 to 299 follow another rule than the rest: what is forgotten, and unseen rows like it."""
    inputs = torch.randn((400, 6), generator=torch.Generator().manual_seed(0))
    inputs[100:200, 5] -= 6
    inputs[300:, 5] -= 6
    targets = torch.where(inputs[:, 5] > -3, 4 * inputs[:, 0], 3 * inputs[:, 1])
    return TensorSamples(inputs, targets, mean=[0.0] * 6, std=[1.0] * 6)


def taught(rows: torch.Tensor, seed: int) -> nn.Module:
    network = build_seeded(lambda: nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 1)), seed)
    recipe = Recipe(epochs=40, learning_rate=0.02, batch_size=32, loss="mse")
    train(network, Rows(values(), rows), recipe, generator=generator(seed, "train"))
    return network


ORIGINAL, RETRAINED = taught(torch.cat([FORGET, RETAIN]), 0), taught(RETAIN, 1)


def audited(unlearned: nn.Module, *, whole: bool = True, original: nn.Module = ORIGINAL, **changed: Any) -> AuditReport:
    sets: dict[str, Samples] = {
        "forget.train": Rows(values(), FORGET),
        "retain.train": Rows(values(), RETAIN),
        "retain.test": Rows(values(), RETAIN_TEST),
    }
    sets |= {"forget.test": Rows(values(), FORGET_TEST)} if whole else {}
    models = {"original": original, "unlearned": unlearned, "retrained": RETRAINED}
    how: dict[str, Any] = {"classes": 0, "forget_classes": (), "input_shape": (6,), "levels": (), "config": QUICK}
    return audit(models, sets, **{**how, "seed": 0, **changed})


def test_the_unchanged_original_is_found_and_no_model_is_changed() -> None:
    before = [{key: value.clone() for key, value in one.state_dict().items()} for one in (ORIGINAL, RETRAINED)]
    report = audited(ORIGINAL)
    assert {one.metric for one in report.asked} == ASKED
    assert report.metrics["audit.relearning_area.retain_only"] > 0.3
    assert report.metrics["audit.relearning_area.few_shots"] > 0.2
    assert report.index is not None
    assert not report.index.forgotten
    assert report.metrics["audit.update_residual_auc.unlearned"] == 0.5
    assert report.metrics["audit.update_residual_auc.retrained"] == pytest.approx(0.5, abs=0.2)
    assert report.left_out == (NOT_OF_VALUES,)
    for old, one in zip(before, (ORIGINAL, RETRAINED), strict=True):
        assert all(old[key].equal(value) for key, value in one.state_dict().items())


def test_a_model_that_never_saw_the_rows_has_nothing_to_remember_and_a_seed_repeats() -> None:
    first, second = (audited(RETRAINED) for _ in range(2))
    assert first.metrics == second.metrics
    assert first.metrics["audit.relearning_area.few_shots"] == 0
    assert first.metrics["audit.relearning_area.retain_only"] == 0
    assert first.metrics["audit.probe_gap"] == 0
    assert first.index is not None
    assert first.index.forgotten
    assert first.index.value in (1, None)


def test_rows_that_somebody_picked_have_no_index_and_are_watched_themselves() -> None:
    report = audited(copy.deepcopy(ORIGINAL), whole=False)
    assert report.index is None
    assert {one.metric for one in report.asked} == ASKED
    (probe,) = [one for one in report.asked if one.metric == "probe_auc"]
    assert (probe.members, probe.non_members) == (100, 100)


def test_what_the_original_never_knew_is_not_relearned_and_that_is_said() -> None:
    ignorant = nn.Sequential(nn.Linear(6, 1))
    nn.init.constant_(ignorant[0].weight, 0.01)
    report = audited(RETRAINED, original=ignorant)
    assert report.left_out == (NOT_OF_VALUES, NOTHING_TO_RELEARN)
    assert report.relearning == {}
    assert report.index is None
    assert not any("relearn" in name for name in report.metrics)


@pytest.mark.parametrize("whole", [True, False])
def test_the_index_costs_two_relearnings_of_the_three_that_it_may(monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    counted: list[nn.Module] = []
    real = unlearning.audit.relearn

    def relearn(model: nn.Module, *given: Any, **more: Any) -> Any:
        counted.append(model)
        return real(model, *given, **more)

    monkeypatch.setattr("unlearning.audit.relearn", relearn)
    unlearned = copy.deepcopy(ORIGINAL)
    audited(unlearned, whole=whole)
    assert counted == ([unlearned, RETRAINED] if whole else [])


def test_predictions_before_and_after_are_held_against_each_other_by_hand() -> None:
    before, forecast = torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    after = torch.tensor([[1.0, 4.0], [2.0, 2.0]])  # the first row's residual rises by 1.5
    unseen, unseen_after = torch.zeros(2, 2), torch.tensor([[1.0, 1.0], [0.0, 0.0]])  # by 1 and 0
    found = update_attack_on_values(before, after, forecast, unseen, unseen_after, torch.zeros(2, 2))
    # 1.5 against 1 and 0: two pairs won; 0 against 1 lost, against 0 a tie.
    assert found["residual_rise"].auc == 2.5 / 4
    assert found["shift"].auc == 2.5 / 4
    nearer = update_attack_on_values(after, before, forecast, unseen, unseen_after, torch.zeros(2, 2))
    assert (
        nearer["residual_rise"].auc
        == population_attack(torch.tensor([1.5, 0.0]).double().numpy(), torch.tensor([-1.0, 0.0]).double().numpy()).auc
    )
    with pytest.raises(ValueError, match="differ in shape"):
        update_attack_on_values(before, after[:, :1], forecast, unseen, unseen_after, torch.zeros(2, 2))
