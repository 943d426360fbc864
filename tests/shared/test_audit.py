import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.digits import Case, case, trained
from torch import nn

import unlearning.audit
from unlearning.audit import FEWEST, AuditConfig, AuditReport, audit
from unlearning.data.samples import Rows, Samples
from unlearning.policy.gates import AUDIT_POLICY, AUDITED, judge

QUICK = AuditConfig(updates=30, repeats=2, cap=60, inversion_steps=40, images=2)
pytestmark = pytest.mark.slow


def sets_of(given: Case) -> dict[str, Samples]:
    assert given.task.forget is not None
    assert given.task.retain is not None
    sets = {"forget.train": given.task.forget, "retain.train": given.task.retain, "retain.test": given.retain_test}
    return sets | ({"forget.test": given.forget_test} if given.task.forget_classes else {})


def audited(kind: str, unlearned: nn.Module, config: AuditConfig = QUICK, **changed: Any) -> AuditReport:
    given = case(kind)
    models = {"original": given.original, "unlearned": unlearned, "retrained": given.retrained}
    how: dict[str, Any] = {"classes": 10, "forget_classes": given.task.forget_classes, "input_shape": (1, 8, 8)}
    return audit(models, changed.pop("sets", sets_of(given)), **how, config=config, seed=0)


def states(*models: nn.Module) -> list[dict[str, torch.Tensor]]:
    return [{key: value.clone() for key, value in model.state_dict().items()} for model in models]


def test_the_unchanged_original_is_found_by_what_is_underneath_and_no_model_is_changed() -> None:
    given = case("class")
    before = states(given.original, given.retrained)
    report = audited("class", given.original)
    metrics = report.metrics
    assert judge(metrics, {}, AUDIT_POLICY).outcome == "fail"
    assert metrics["audit.relearning_area.retain_only"] > 0.5
    assert metrics["audit.relearning_area.few_shots"] > 0.2
    assert metrics["audit.prototype_accuracy.unlearned"] == metrics["audit.prototype_accuracy.original"]
    assert metrics["audit.update_loss_auc.unlearned"] == 0.5
    assert report.index is not None
    assert not report.index.forgotten
    assert report.images["unlearned"].equal(report.images["original"])
    assert report.images["unlearned"].shape == (2, 1, 8, 8)
    for old, new in zip(before, states(given.original, given.retrained), strict=True):
        assert all(old[key].equal(new[key]) for key in old)


def test_a_model_that_never_saw_the_class_passes_all_that_can_be_bounded() -> None:
    given = case("class")
    assert given.task.retain is not None
    again = trained(given.task.retain, 2)
    report = audited("class", again)
    known = {name: bound for name, bound in {**AUDIT_POLICY, **AUDITED}.items() if name in report.metrics}
    assert set(AUDIT_POLICY) < set(known)
    verdict = judge(report.metrics, report.standard_errors, known)
    assert verdict.outcome == "pass", verdict.reasons


def test_the_index_of_a_class_costs_two_relearnings(monkeypatch: pytest.MonkeyPatch) -> None:
    given, counted, real = case("class"), [], unlearning.audit.relearn

    def relearn(model: nn.Module, *rest: Any, **more: Any) -> Any:
        counted.append(model)
        return real(model, *rest, **more)

    monkeypatch.setattr("unlearning.audit.relearn", relearn)  # the attacks by relearning have their own
    unlearned = copy.deepcopy(given.original)
    audited("class", unlearned, replace(QUICK, updates=5, repeats=1, inversion_steps=1))
    assert counted == [unlearned, given.retrained], "the original's accuracy sets the target: it is not relearned"


def test_an_edit_of_the_last_layer_alone_leaves_prototypes_that_recognise_the_class() -> None:
    given = case("class")
    edited = copy.deepcopy(given.original)
    last = [layer for layer in edited.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[3] -= 100
    metrics = audited("class", edited).metrics
    assert metrics["audit.prototype_gap"] == pytest.approx(
        metrics["audit.prototype_accuracy.original"] - metrics["audit.prototype_accuracy.retrained"]
    )
    assert metrics["audit.prototype_gap"] > 0.2


def test_rows_are_asked_about_without_classes_and_the_same_seed_says_the_same() -> None:
    given = case("rows")
    first, second = (audited("rows", given.retrained) for _ in range(2))
    assert first.metrics == second.metrics
    assert first.index is None
    assert not first.images
    assert {one.metric for one in first.asked} == {
        "relearned_few_shots",
        "relearned_retain_only",
        "probe_auc",
        "update_loss_auc",
        "update_divergence_auc",
        "rmia_auc",
    }
    assert first.metrics["audit.relearning_area.few_shots"] == 0
    assert first.metrics["audit.probe_gap"] == 0


def test_too_few_rows_are_refused() -> None:
    given = case("rows")
    sets = sets_of(given)
    few = sets | {"forget.train": Rows(sets["forget.train"], torch.arange(FEWEST - 1))}
    with pytest.raises(ValueError, match=r"at least 8 rows of forget\.train, got 7"):
        audited("rows", given.retrained, sets=few)
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        replace(QUICK, repeats=0)


def test_further_retrained_models_are_references_of_rmia_alone() -> None:
    given = case("rows")
    models = {"original": given.original, "unlearned": given.original, "retrained": given.retrained}
    how: dict[str, Any] = {"classes": 10, "forget_classes": (), "input_shape": (1, 8, 8), "config": QUICK, "seed": 0}
    alone = audit(models, sets_of(given), **how).metrics
    same = audit(models, sets_of(given), **how, references=[given.retrained]).metrics
    assert same == pytest.approx(alone)  # the same model again adds nothing
    more = audit(models, sets_of(given), **how, references=[given.original]).metrics
    assert {name for name, value in more.items() if value != alone[name]} == {
        "audit.rmia_auc.unlearned",
        "audit.rmia_auc.original",
    }
