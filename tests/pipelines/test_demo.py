"""A second demo in the same folder: it takes a model of its own, and asks about that one."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from unlearning.ledger.opening import open_ledger
from unlearning.ledger.overview import list_requests
from unlearning.settings import Settings
from unlearning.tracking import promote_bundle
from unlearning_components.surroundings import store, tracker
from unlearning_pipelines import demo
from unlearning_pipelines.runs import Result


@pytest.fixture
def quick(ready: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The demo with nothing to train and no batch to run; the names of the models that it asks a batch for."""
    batches: list[str] = []

    def train(*, name: str, **_: Any) -> dict[str, Any]:
        promote_bundle(tracker(), store(), tiny.bundle, name=name, run_id="", outcome="pass")
        return {"version": 1, "accuracy.test": 0.9}

    def run(pipeline: str, arguments: dict[str, Any], **_: Any) -> Result:
        batches.append(arguments["name"])
        nothing: dict[str, Any] = {"metrics": {}, "seconds": {"total": 1.0}, "deletions": {"certificates": []}}
        return Result(pipeline=pipeline, **dict.fromkeys(TEXTS, ""), **nothing)

    monkeypatch.setattr(demo, "train_model", train)
    monkeypatch.setattr(demo, "run_pipeline", run)
    monkeypatch.setattr(demo, "check_run", lambda *_: None)
    monkeypatch.setattr(demo, "check_before_training", lambda *_: None)
    return batches


TEXTS = ("verdict", "model_uri", "report", "summary", "mlflow_run_id")


def asked() -> list[tuple[str, str]]:
    ledger = open_ledger()
    found = [(row["model"], row["state"]) for row in list_requests(ledger)]
    ledger.close()
    return found


def test_every_demo_has_a_model_and_a_request_of_its_own_whatever_the_class(unlearn: Any, quick: list[str]) -> None:
    for forget in ("3", "5", "3"):
        ended = unlearn("demo", "--forget", forget)
        assert (ended.code, ended.err) == (0, "")
        assert "accepted as" in ended.out
    assert quick == ["digits-demo", "digits-demo-2", "digits-demo-3"]
    assert asked() == [(name, "pending") for name in quick]


def test_a_demo_after_the_models_were_thrown_away_does_not_meet_the_old_request(
    unlearn: Any, quick: list[str], laid_out: Path
) -> None:
    assert unlearn("demo", "--forget", "3").code == 0
    shutil.copy(laid_out, Settings().home / "mlflow.db")
    ended = unlearn("demo", "--forget", "5")
    assert (ended.code, ended.err) == (0, "")
    assert quick == ["digits-demo", "digits-demo-2"]
