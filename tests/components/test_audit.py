import json
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl
from support.chain import Chain

from unlearning.errors import UsageError
from unlearning_components.surroundings import store

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
