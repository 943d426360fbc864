"""Batches again and again without a cluster: what fails is told, and the next one starts at its time."""

from typing import Any

import pytest

from unlearning.errors import StorageError, UsageError
from unlearning_pipelines.runs import Result
from unlearning_pipelines.worker import with_cadence, work


def test_a_run_that_fails_is_told_and_the_next_one_starts_at_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    slept: list[float] = []
    answers: list[Exception | None] = [None, StorageError("the store is away: wait"), None]

    def once() -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    assert work(once, seconds=60, times=3, sleep=slept.append) == 1
    assert capsys.readouterr().err == "error: the store is away: wait\n"
    assert len(slept) == 2, "none after the last"
    assert all(59 < one <= 60 for one in slept)


def test_what_is_no_error_of_ours_ends_it() -> None:
    def once() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work(once, seconds=60, sleep=lambda _: None)


def test_a_batch_is_told_its_cadence_unless_somebody_says_another() -> None:
    assert with_cadence("deletion_batch", {"seed": 1}, 43_200) == {"seed": 1, "cadence_days": 0.5}
    assert with_cadence("deletion_batch", {"cadence_days": 3}, 86_400) == {"cadence_days": 3}
    assert with_cadence("deletion_batch", {}, 0) == {}
    assert with_cadence("delete_class", {}, 86_400) == {}


def test_the_command_runs_batches_and_says_what_each_did(unlearn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(pipeline: str, arguments: Any, *, on_stage: Any) -> Result:
        seen.append((pipeline, arguments))
        if len(seen) == 2:
            raise UsageError("it cannot be served")
        nothing: dict[str, Any] = {"metrics": {}, "seconds": {"total": 1.0}, "deletions": {"requests": []}}
        texts = dict.fromkeys(("verdict", "model_uri", "report", "summary", "mlflow_run_id"), "")
        return Result(pipeline=pipeline, **texts, **nothing)

    monkeypatch.setattr("unlearning_pipelines.runs.run_pipeline", run)
    monkeypatch.setattr("unlearning_pipelines.preflight.check_run", lambda *_: None)
    monkeypatch.setattr(work, "__kwdefaults__", {"times": 0, "sleep": lambda _: None})
    ended = unlearn("worker", "--every", "12h", "--times", "2", "--set", "name=faces")
    assert (ended.code, ended.err) == (1, "error: it cannot be served\n")
    assert seen == [("deletion_batch", {"cadence_days": 0.5, "name": "faces"})] * 2
    assert ended.out.count("nothing waited: no new version") == 1


@pytest.mark.parametrize("every", ["", "soon", "1s"])
def test_a_time_that_is_none_is_refused(unlearn: Any, every: str) -> None:
    ended = unlearn("worker", "--every", every)
    assert ended.code == 2
    assert ended.err.startswith("error: wanted ")
