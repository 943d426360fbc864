"""A stage spread over two processes: its command, the job, what goes there and what comes back."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from unlearning.errors import PipelineError, UsageError
from unlearning.speed import Speed, in_force
from unlearning.storage import FolderStore
from unlearning_components.nodes import FLAG, Spread, _as_job, manifest_of, start, wrapped

ROOT = Path(__file__).parents[2]

STAGE = """
import json, os, sys
from pathlib import Path

import torch

from unlearning.processes import add_up, joined

given = json.loads(sys.argv[sys.argv.index("--executor_input") + 1])
word = Path(given["inputs"]["artifacts"]["word"]["artifacts"][0]["uri"], "deep", "word.txt").read_text()
bare = given["inputs"]["artifacts"]["bare"]["artifacts"][0]["uri"]
with joined() as team:
    total = torch.tensor([float(team.rank + 1)])
    add_up([total])
    out = Path(given["outputs"]["artifacts"]["said"]["artifacts"][0]["uri"])
    out.mkdir(parents=True)
    Path(out, "said.txt").write_text(f"{word} {Path(bare).read_text()} {total.item():.0f} {team.rank} of {team.size}")
told = Path(given["outputs"]["outputFile"])
told.parent.mkdir(parents=True, exist_ok=True)
said = {"name": "said", "uri": str(out), "metadata": {"rank": team.rank}}
told.write_text(json.dumps({"artifacts": {"said": {"artifacts": [said]}}, "parameterValues": {"Output": "x"}}))
Path(given["outputs"]["parameters"]["Output"]["outputFile"]).parent.mkdir(parents=True, exist_ok=True)
Path(given["outputs"]["parameters"]["Output"]["outputFile"]).write_text("x")
"""


def executor_input(folder: Path, word: str = "hello") -> dict[str, Any]:
    """As KFP gives it to a stage with two input artifacts, an output artifact and an output parameter."""
    (folder / "word" / "deep").mkdir(parents=True)
    (folder / "word" / "deep" / "word.txt").write_text(word)
    (folder / "bare").write_text("bare")

    def artifact(name: str) -> dict[str, Any]:
        return {"artifacts": [{"name": name, "uri": str(folder / name), "metadata": {}}]}

    return {
        "inputs": {"artifacts": {name: artifact(name) for name in ("word", "bare")}},
        "outputs": {
            "artifacts": {"said": artifact("said")},
            "parameters": {"Output": {"outputFile": str(folder / "parameters" / "Output")}},
            "outputFile": str(folder / "task" / "executor_output.json"),
        },
    }


def command(given: Mapping[str, Any]) -> list[str]:
    return [sys.executable, "-c", STAGE, FLAG, json.dumps(given), "--function_to_execute", "say_it"]


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(str(ROOT / name) for name in ("shared", "components", "pipelines")))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("UNLEARN_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def test_processes_of_one_node_share_the_stage_and_the_first_one_writes(tmp_path: Path) -> None:
    given = executor_input(tmp_path)
    assert start(Spread(processes=2), command(given)) == 0
    assert (tmp_path / "said" / "said.txt").read_text() == "hello bare 3 0 of 2"
    told = json.loads((tmp_path / "task" / "executor_output.json").read_text())
    assert told["artifacts"]["said"]["artifacts"][0]["metadata"] == {"rank": 0}
    assert (tmp_path / "parameters" / "Output").read_text() == "x"


class Cluster:
    """A cluster of this machine: a job's nodes are processes here, which find everything in the object store."""

    def __init__(self, hidden: Path) -> None:
        self.jobs: dict[str, int] = {}
        self.deleted: list[str] = []
        self.hidden = hidden

    def create(self, manifest: dict[str, Any]) -> None:
        trainer = manifest["spec"]["trainer"]
        assert trainer["command"][0] == "torchrun"
        options = ["--standalone", "--nproc-per-node", str(trainer["numNodes"] * trainer["numProcPerNode"])]
        words = [sys.executable if word == "python3" else word for word in trainer["command"][1:]]
        away = self.hidden.rename(self.hidden.with_name("away"))  # the job's pods do not see the stage's own files
        ended = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *options, *words], check=False, capture_output=True
        )
        away.rename(self.hidden)
        self.jobs[manifest["metadata"]["name"]] = ended.returncode

    def conditions(self, name: str) -> dict[str, str]:
        return {"Failed": "a pod failed"} if self.jobs[name] else {"Complete": ""}

    def delete(self, name: str) -> None:
        self.deleted.append(name)


def test_a_job_finds_the_inputs_in_the_store_and_leaves_the_outputs_where_kfp_looks(tmp_path: Path) -> None:
    given = executor_input(tmp_path / "pod")
    store, cluster = FolderStore(tmp_path / "store"), Cluster(tmp_path / "pod")
    assert _as_job(Spread(nodes=2, image="i"), command(given), store, cluster) == 0
    assert (tmp_path / "pod" / "said" / "said.txt").read_text() == "hello bare 3 0 of 2"
    told = json.loads((tmp_path / "pod" / "task" / "executor_output.json").read_text())
    assert told["artifacts"]["said"]["artifacts"] == [
        {"name": "said", "uri": str(tmp_path / "pod" / "said"), "metadata": {"rank": 0}}
    ]
    assert (tmp_path / "pod" / "parameters" / "Output").read_text() == "x"
    assert list(store.keys()) == []
    assert cluster.deleted == list(cluster.jobs)


def test_a_job_that_fails_fails_the_stage_and_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = executor_input(tmp_path / "pod")
    store, cluster = FolderStore(tmp_path / "store"), Cluster(tmp_path / "pod")
    monkeypatch.setattr(Cluster, "create", lambda self, manifest: self.jobs.update({manifest["metadata"]["name"]: 1}))
    assert _as_job(Spread(nodes=2, image="i"), command(given), store, cluster) == 1
    assert "a pod failed" in capsys.readouterr().err
    assert list(store.keys()) == []
    assert cluster.deleted == list(cluster.jobs)
    assert not (tmp_path / "pod" / "said").exists()


def test_the_job_names_secrets_and_never_their_values() -> None:
    reference = {"secretKeyRef": {"name": "s3", "key": "id", "optional": False}}
    spread = Spread(
        nodes=3,
        processes=4,
        image="registry/unlearning-python:1",
        resources={"nvidia.com/gpu": "4"},
        env=({"name": "AWS_ACCESS_KEY_ID", "valueFrom": reference},),
    )
    manifest = manifest_of(spread, "unlearn-impair-1", "checkpoints/jobs/unlearn-impair-1")
    assert manifest["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    trainer = manifest["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (3, 4)
    assert trainer["env"] == [{"name": "AWS_ACCESS_KEY_ID", "valueFrom": reference}]
    assert trainer["resourcesPerNode"] == {"requests": {"nvidia.com/gpu": "4"}, "limits": {"nvidia.com/gpu": "4"}}
    assert trainer["command"][-1] == "checkpoints/jobs/unlearn-impair-1"
    assert manifest["spec"]["runtimeRef"] == {"name": "torch-distributed"}


def test_a_wrapped_command_holds_its_own_command_as_it_was() -> None:
    whole = wrapped({"nodes": 2}, ["sh", "-ec", "x"])
    assert whole == ["python3", "-m", "unlearning_components.nodes", '{"nodes": 2}', "sh", "-ec", "x"]


def test_nodes_need_a_cluster_and_a_stages_input(tmp_path: Path) -> None:
    assert "KUBERNETES_SERVICE_HOST" not in os.environ
    with pytest.raises(PipelineError, match="needs a cluster"):
        start(Spread(nodes=2), command(executor_input(tmp_path)))
    with pytest.raises(UsageError, match="--executor_input"):
        _as_job(Spread(nodes=2), ["true"], FolderStore(tmp_path), Cluster(tmp_path))


def test_only_the_first_process_writes_to_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    from unlearning_components import surroundings

    @contextmanager
    def second() -> Iterator[int]:
        yield 1

    def never() -> None:
        raise AssertionError("the second process asked for MLflow")

    monkeypatch.setattr(surroundings, "_company", second)
    monkeypatch.setattr(surroundings, "tracker", never)
    with surroundings.stage("run", "impair") as record:
        record.history({"loss": [1.0]})
        record.pipeline.params({"a": 1})


def test_the_switches_of_the_environment_are_in_force_in_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    from unlearning_components import surroundings

    @contextmanager
    def second() -> Iterator[int]:
        yield 1

    monkeypatch.setattr(surroundings, "_company", second)
    monkeypatch.setenv("UNLEARN_SPEED", "precision=bf16,micro_batch=7")
    with surroundings.stage("run", "impair"):
        assert in_force() == Speed(precision="bf16", micro_batch=7)
    assert in_force() == Speed()
    monkeypatch.setenv("UNLEARN_SPEED", "precision=bf15")
    with pytest.raises(UsageError, match="UNLEARN_SPEED"), surroundings.stage("run", "impair"):
        pass
