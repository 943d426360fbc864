import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kfp import dsl
from support.chain import Chain

from unlearning.audit import NOT_OF_VALUES
from unlearning.data.card import Scaling
from unlearning.errors import UsageError
from unlearning.models.bundle import read_bundle
from unlearning.policy.gates import policy_for
from unlearning_components.audits import Rescaled
from unlearning_components.surroundings import store
from unlearning_pipelines.deployment import train_model
from unlearning_pipelines.preflight import MARKER

ASKED = {
    "relearned_few_shots",
    "relearned_retain_only",
    "probe_auc",
    "update_loss_auc",
    "update_divergence_auc",
    "rmia_auc",
    "prototype_accuracy",
    "inversion_confidence",
    "inversion_similarity",
    "lira_auc",
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unlearned(place: Any) -> Chain:
    """A run up to its unlearned model, and a reference trained beside it."""
    chain: Chain = place.chain("audited")
    for stage in ("load_model", "select", "synthesize", "impair", "repair", "distill", "evaluate", "attack"):
        chain.call(stage)
    chain.call("retrain", reference="train")
    return chain


def found(chain: Chain) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(chain.artifacts["findings"].path, "audit.json").read_text())
    return content


def test_an_audit_with_shadows_is_judged_and_shown_and_goes_on_from_the_shadows_that_are_there(
    unlearned: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    unlearned.call("audit", audit="shadows:6")
    assert "shadow model 6 of 6" in capsys.readouterr().out
    first = found(unlearned)
    assert {one["metric"] for one in first["asked"]} == ASKED
    assert first["metrics"] == unlearned.artifacts["audit.metrics"].metadata
    assert first["anamnesis_index"]
    pictures = {path.name for path in Path(unlearned.artifacts["findings"].path).glob("*.*g")}
    assert pictures == {"relearning_curves.svg", "inverted_classes.png"}

    (kept,) = store().keys("audits/")
    content = json.loads(store().get(kept))
    del content["confidences"]["2"]
    store().put(kept, json.dumps(content).encode())
    unlearned.call("audit", audit="shadows:6")
    said = capsys.readouterr().out
    assert "shadow model 3 of 6" in said
    assert "shadow model 1 of 6" not in said
    assert found(unlearned) == first

    bounds = {**unlearned.parameters["policy"], "audit.lira_auc.unlearned": {"low": 2}}
    assert unlearned.call("gate", policy=bounds) == "fail"
    verdict = json.loads(Path(unlearned.artifacts["verdict"].path, "verdict.json").read_text())
    assert any("audit.lira_auc.unlearned" in reason for reason in verdict["reasons"])
    page = Path(unlearned.artifacts["report"].path).read_text()
    assert "What is left underneath" in page
    assert "U-LiRA" in page
    assert f"Anamnesis Index: {first['anamnesis_index']}" in page.replace("<bdi>", "").replace("</bdi>", "")


def test_without_an_audit_the_stage_passes_and_the_gate_asks_for_none_of_it(unlearned: Chain, tmp_path: Path) -> None:
    unlearned.call("audit", audit="none", findings=dsl.Artifact(name="findings", uri=str(tmp_path / "findings")))
    assert not list((tmp_path / "findings").iterdir())
    unlearned.call("gate", findings=dsl.Artifact(name="findings", uri=str(tmp_path / "findings")))
    assert "What is left underneath" not in Path(unlearned.artifacts["report"].path).read_text()


def test_an_audit_without_a_reference_is_refused_before_anything_is_trained(place: Any) -> None:
    chain: Chain = place.chain("unaudited")
    with pytest.raises(UsageError, match="an audit compares with a retrained model: give reference=train"):
        chain.call("load_model", audit="attacks")


def test_a_model_of_values_is_audited_by_what_asks_values_and_the_rest_is_said(
    place: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (place.home / MARKER).write_text("{}")
    recipe = {"epochs": 30, "learning_rate": 0.01, "batch_size": 32, "loss": "l1"}
    how: dict[str, Any] = {"architecture": "mlp", "arguments": {"hidden": [16]}, "recipe": recipe, "seed": 0}
    train_model(name="audited-values", manifest="diabetes", **how)
    policy = dict.fromkeys(set(policy_for("regression", "sample", reference=True)) - {"weights_changed"}, "none")
    chain = Chain(
        tmp_path_factory.mktemp("values"),
        manifest="diabetes",
        job="test/audited-values",
        model="models:/audited-values@champion",
        method="blindspot",
        request="sample",
        targets=[],
        ids="share:0.2",
        retain_per_class=0,
        settings={"epochs": 1, "blind_epochs": 1},
        policy=policy,
        reference="train",
        audit="attacks",
    )
    for stage in ("load_model", "select"):
        chain.call(stage)
    chain.artifacts["repaired"] = chain.artifacts["original"]
    for stage in ("distill", "retrain", "evaluate", "attack", "audit"):
        chain.call(stage)
    content = found(chain)
    own = read_bundle(Path(chain.artifacts["retrained"].path)).card.scaling
    assert own != read_bundle(Path(chain.artifacts["unlearned"].path)).card.scaling
    asked = {one["metric"] for one in content["asked"]}
    assert asked == {
        "relearned_few_shots",
        "relearned_retain_only",
        "probe_auc",
        "update_residual_auc",
        "update_shift_auc",
    }
    assert content["left_out"] == [NOT_OF_VALUES]
    assert content["metrics"]["audit.relearned_few_shots.retrained"] > 0.1, "asked with inputs that it understands"
    pictures = {path.name for path in Path(chain.artifacts["findings"].path).glob("*.*g")}
    assert pictures == {"relearning_curves.svg", "layer_distances.svg"}
    assert chain.call("gate") == "pass"
    page = Path(chain.artifacts["report"].path).read_text()
    assert "no prototypes, no inversion, no RMIA and no shadow models" in page
    assert "Relearning from a few forgotten rows, skill reached" in page


def test_a_network_that_scales_otherwise_answers_as_on_its_own_inputs() -> None:
    given, wanted = Scaling(mean=(1.0, 2.0), std=(2.0, 4.0)), Scaling(mean=(0.5, 3.0), std=(1.0, 5.0))
    rows = torch.randn((20, 2), generator=torch.Generator().manual_seed(0))
    network = torch.nn.Linear(2, 1)
    theirs, own = ((rows - torch.tensor(one.mean)) / torch.tensor(one.std) for one in (given, wanted))
    assert torch.allclose(Rescaled(network, given, wanted)(theirs), network(own), atol=1e-6)
