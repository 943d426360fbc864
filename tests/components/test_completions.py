"""Stages of a batch that a later run of it does not run again, and what makes them run all the same."""

from pathlib import Path
from typing import Any

import pytest
from support.chain import Chain

from unlearning.errors import StorageError
from unlearning_components.surroundings import store

STAGES = ("load_model", "select", "synthesize", "impair", "repair", "distill", "evaluate", "attack", "gate")
TRAINED = tuple(stage for stage in STAGES[2:] if stage != "distill")
"""Those that do something in this method."""


def run_of(place: Any, name: str, batch: str, token: int, stages: tuple[str, ...] = STAGES, **changed: Any) -> Chain:
    chain: Chain = place.chain(name, model="models:/tiny/1", work=f"{batch}:{token}", **changed)
    for stage in stages:
        chain.call(stage)
    return chain


def contents(chain: Chain) -> dict[str, dict[str, bytes]]:
    """Every artifact's files and metadata."""
    found = {}
    for name, artifact in chain.artifacts.items():
        path = Path(artifact.path)
        files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
        found[name] = {one.relative_to(path).as_posix(): one.read_bytes() for one in files}
        found[name]["metadata"] = repr(sorted(artifact.metadata.items())).encode()
    return found


def test_a_run_that_takes_a_batch_over_takes_what_was_finished_byte_by_byte(place: Any, capfd: Any) -> None:
    batch = "a" * 64
    first = run_of(place, "first", batch, 3)
    capfd.readouterr()
    second = run_of(place, "second", batch, 9)
    out = capfd.readouterr().out
    assert [stage for stage in STAGES if f"{stage} was finished by an earlier run" in out] == list(TRAINED)
    assert second.run == first.run, "a batch has one MLflow run"
    assert place.children(first.run) == {stage: ["FINISHED"] * (1 if stage in TRAINED else 2) for stage in STAGES}
    assert contents(second) == contents(first)
    assert second.outputs["gate"] == first.outputs["gate"]
    keys = {key.split("/")[3].rpartition("-")[0] for key in store().keys(f"work/{batch}/stages")}
    assert keys == set(TRAINED)


def test_other_settings_and_another_batch_are_run(place: Any, capfd: Any) -> None:
    part = STAGES[:3]
    run_of(place, "one", "b" * 64, 1, part)
    run_of(place, "two", "b" * 64, 1, part, settings={"noise_steps": 2, "noise_batch": 16})
    run_of(place, "three", "c" * 64, 1, part)
    assert "earlier run" not in capfd.readouterr().out
    run_of(place, "four", "c" * 64, 2, part)
    assert "synthesize was finished by an earlier run" in capfd.readouterr().out


def test_a_batch_that_is_run_on_with_other_parameters_has_another_mlflow_run(place: Any) -> None:
    first, second = (run_of(place, f"run-{rows}", "e" * 64, rows, STAGES[:1], retain_per_class=rows) for rows in (5, 6))
    assert first.run != second.run


def test_what_was_kept_and_is_damaged_is_not_used(place: Any) -> None:
    batch, part = "d" * 64, STAGES[:3]
    run_of(place, "whole", batch, 1, part)
    (key,) = [key for key in store().keys(f"work/{batch}") if key.endswith("noise.safetensors")]
    store().put(key, store().get(key)[:-1] + b"!")
    with pytest.raises(StorageError, match=f"{key} is not what the stage left"):
        run_of(place, "damaged", batch, 2, part)
