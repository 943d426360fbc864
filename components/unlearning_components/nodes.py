"""A stage on several processes or nodes: the same command under torchrun, here or as a job of Kubeflow Trainer.

A pipeline whose cluster settings ask for it starts a stage's command through this module:

    python3 -m unlearning_components.nodes '{"nodes": 2, ...}' COMMAND --executor_input JSON ...

On one node, torchrun starts the processes where the stage is. For more, the stage's pod leaves the input artifacts in
the object store, creates a TrainJob, waits for it, and fetches the outputs. All processes run the stage as it is; the
first one writes. See `unlearning.processes` for how they share the work.
"""

from __future__ import annotations

import copy
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearning.config import build
from unlearning.errors import PipelineError, UsageError

if TYPE_CHECKING:
    from unlearning.storage import ObjectStore

FLAG = "--executor_input"
ROOM = "checkpoints/jobs"
"""Prefix of the object store for what goes to a job's pods and comes from them: stages may write there."""
GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
SECONDS = 10.0
"""Between two looks at a job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Over what a stage is spread.

    Attributes:
        nodes: Pods of the job; 1: none, the processes run where the stage is.
        processes: Of each node; one for each GPU, as a rule.
        runtime: The cluster's training runtime.
        image: Of the pods.
        resources: Of each pod, as Kubernetes has it: {"cpu": "4", "memory": "16Gi"}.
        env: Of the pods, as Kubernetes has it; secrets by reference.
    """

    nodes: int = 1
    processes: int = 1
    runtime: str = "torch-distributed"
    image: str = ""
    resources: dict[str, str] = field(default_factory=dict)
    env: tuple[dict[str, Any], ...] = ()


def wrapped(spread: Mapping[str, Any], command: Sequence[str]) -> list[str]:
    """The command of a container that runs a stage's command so.

    Args:
        spread: Fields of `Spread`.
        command: Of the stage.
    """
    return ["python3", "-m", "unlearning_components.nodes", json.dumps(dict(spread), sort_keys=True), *command]


def start(spread: Spread, command: Sequence[str]) -> int:
    """Run a stage's command as it wants to be spread; its exit code."""
    if spread.nodes == 1:
        with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
            job = Path(folder, "job.json")
            job.write_text(json.dumps({"command": list(command), "store": ""}))
            return _torchrun(["--standalone", "--nproc-per-node", str(spread.processes)], str(job))
    if "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise PipelineError(
            "a stage on several nodes needs a cluster: leave out nodes in the cluster settings to run it here"
        )
    from unlearning_components.surroundings import store

    return _as_job(spread, command, store(), _Cluster())


def _torchrun(options: Sequence[str], job: str) -> int:
    run = [sys.executable, "-m", "torch.distributed.run", *options, "--no-python"]
    with subprocess.Popen([*run, sys.executable, "-m", "unlearning_components.nodes", "work", job]) as child:
        previous = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        try:
            return child.wait()
        finally:
            signal.signal(signal.SIGTERM, previous)


def manifest_of(spread: Spread, name: str, key: str) -> dict[str, Any]:
    """The TrainJob that runs the work left under a key of the object store."""
    command = ["torchrun", "--no-python", "python3", "-m", "unlearning_components.nodes", "work", key]
    trainer: dict[str, Any] = {
        "numNodes": spread.nodes,
        "numProcPerNode": spread.processes,
        "image": spread.image,
        "command": command,
    }
    if spread.env:
        trainer["env"] = list(spread.env)
    if spread.resources:
        trainer["resourcesPerNode"] = {"requests": dict(spread.resources), "limits": dict(spread.resources)}
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "kfp-unlearning"}},
        "spec": {"runtimeRef": {"name": spread.runtime}, "trainer": trainer},
    }


class _Cluster:
    """TrainJobs of the namespace that this pod is in."""

    def __init__(self) -> None:
        from kubernetes import client, config

        config.load_incluster_config()
        self._api = client.CustomObjectsApi()
        self._where = {
            "group": GROUP,
            "version": VERSION,
            "namespace": Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace").read_text().strip(),
            "plural": PLURAL,
        }

    def create(self, manifest: Mapping[str, Any]) -> None:
        """Start a job."""
        self._api.create_namespaced_custom_object(**self._where, body=dict(manifest))

    def conditions(self, name: str) -> dict[str, str]:
        """The job's conditions that hold, each with its message."""
        job = self._api.get_namespaced_custom_object(**self._where, name=name)
        found = job.get("status", {}).get("conditions", [])
        return {one["type"]: one.get("message", "") for one in found if one.get("status") == "True"}

    def delete(self, name: str) -> None:
        """Stop a job and drop it."""
        self._api.delete_namespaced_custom_object(**self._where, name=name)


def _as_job(spread: Spread, command: Sequence[str], store: ObjectStore, cluster: Any) -> int:
    """The stage as a TrainJob: inputs to the store, outputs from there; 0 when it completed, 1 when it failed."""
    given = json.loads(command[_place(command)])
    stage = re.sub(r"[^a-z0-9]+", "-", command[-1].lower())[:30].strip("-")
    name = f"unlearn-{stage}-{uuid.uuid4().hex[:8]}"
    key = f"{ROOM}/{name}"
    for number, artifact in enumerate(_artifacts(given, "inputs")):
        _send(store, f"{key}/in/{number}", _local(artifact))
    job = {"command": list(command), "store": key}
    store.put(f"{key}/job.json", json.dumps(job).encode())

    def stop(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        cluster.create(manifest_of(spread, name, key))
        print(f"{spread.nodes} nodes of {spread.processes} processes: TrainJob {name}", flush=True)
        try:
            while not (state := cluster.conditions(name)).keys() & {"Complete", "Failed"}:
                time.sleep(SECONDS)
        finally:
            cluster.delete(name)
        if "Failed" in state:
            print(f"TrainJob {name} failed: {state['Failed']}; its pods' logs say why", file=sys.stderr)
            return 1
        _receive(store, key, given)
    finally:
        store.delete(key)
        signal.signal(signal.SIGTERM, previous)
    return 0


def _send(store: ObjectStore, key: str, path: Path) -> None:
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    for one in files:
        store.upload(f"{key}/file" if one == path else f"{key}/folder/{one.relative_to(path).as_posix()}", one)


def _fetch(store: ObjectStore, key: str, into: Path) -> None:
    """What `_send` sent: a file, a folder, or an empty folder for nothing."""
    if store.exists(f"{key}/file"):
        into.parent.mkdir(parents=True, exist_ok=True)
        store.download(f"{key}/file", into)
        return
    into.mkdir(parents=True, exist_ok=True)
    for one in store.keys(f"{key}/folder"):
        path = into / one.removeprefix(f"{key}/folder/")
        path.parent.mkdir(parents=True, exist_ok=True)
        store.download(one, path)


def _receive(store: ObjectStore, key: str, given: Mapping[str, Any]) -> None:
    """The outputs of a job at the places where KFP looks for them."""
    for number, artifact in enumerate(_artifacts(given, "outputs")):
        _fetch(store, f"{key}/out/{number}", _local(artifact))
    for name, parameter in given.get("outputs", {}).get("parameters", {}).items():
        if store.exists(f"{key}/out/parameter/{name}/file"):
            _fetch(store, f"{key}/out/parameter/{name}", Path(parameter["outputFile"]))
    told = Path(given["outputs"]["outputFile"])
    told.parent.mkdir(parents=True, exist_ok=True)
    said = json.loads(store.get(f"{key}/out/told/file"))
    where = {name: [one.get("uri") for one in listed["artifacts"]] for name, listed in _named(given)}
    for name, listed in said.get("artifacts", {}).items():
        for one, uri in zip(listed.get("artifacts", []), where.get(name, []), strict=False):
            one["uri"] = uri
    told.write_text(json.dumps(said))


def work(job: str) -> int:
    """Run a stage's command as one process of several; its exit code. The first process writes, the others pretend to.

    Args:
        job: A file of this machine, or a key of the object store.
    """
    rank = int(os.environ["RANK"])
    local = Path(job).is_file()
    from unlearning_components.surroundings import store

    found = json.loads(Path(job).read_text() if local else store().get(f"{job}/job.json"))
    command, key = list(found["command"]), found["store"]
    given = json.loads(command[_place(command)])
    with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
        mine = copy.deepcopy(given)
        if key:
            for number, artifact in enumerate(_artifacts(mine, "inputs")):
                artifact["uri"] = str(Path(folder, "in", str(number)))
                _fetch(store(), f"{key}/in/{number}", Path(artifact["uri"]))
        if key or rank:
            _elsewhere(mine, Path(folder, "out"))
        command[_place(command)] = json.dumps(mine)
        ended = subprocess.run(command, check=False).returncode
        if key and rank == 0 and ended == 0:
            for number, artifact in enumerate(_artifacts(mine, "outputs")):
                _send(store(), f"{key}/out/{number}", Path(artifact["uri"]))
            for name, parameter in mine["outputs"].get("parameters", {}).items():
                if Path(parameter["outputFile"]).is_file():
                    _send(store(), f"{key}/out/parameter/{name}", Path(parameter["outputFile"]))
            _send(store(), f"{key}/out/told", Path(mine["outputs"]["outputFile"]))
    return ended


def _elsewhere(given: dict[str, Any], folder: Path) -> None:
    """Outputs go to this folder instead."""
    outputs = given.setdefault("outputs", {})
    for number, artifact in enumerate(_artifacts(given, "outputs")):
        artifact["uri"] = str(folder / str(number))
    for name, parameter in outputs.get("parameters", {}).items():
        parameter["outputFile"] = str(folder / "parameters" / name)
    outputs["outputFile"] = str(folder / "executor_output.json")
    folder.mkdir(parents=True)


def _named(given: Mapping[str, Any], side: str = "outputs") -> list[tuple[str, Any]]:
    return sorted(given.get(side, {}).get("artifacts", {}).items())


def _artifacts(given: Mapping[str, Any], side: str) -> Iterator[dict[str, Any]]:
    """All artifacts of one side, in an order that every process has."""
    for _, listed in _named(given, side):
        yield from listed.get("artifacts", [])


def _local(artifact: Mapping[str, Any]) -> Path:
    """Where KFP keeps an artifact on this machine."""
    from kfp import dsl

    return Path(dsl.Artifact(uri=artifact["uri"], metadata=artifact.get("metadata", {})).path)


def _place(command: Sequence[str]) -> int:
    """Where in a stage's command its input stands.

    Raises:
        UsageError: When it has none.
    """
    if FLAG not in command[:-1]:
        raise UsageError(
            f"a stage's command has {FLAG} and a JSON object, this one has not: compile the pipeline again"
        )
    return list(command).index(FLAG) + 1


def main() -> None:
    """Start a stage, or be one of its processes."""
    if sys.argv[1:2] == ["work"] and len(sys.argv) == 3:
        sys.exit(work(sys.argv[2]))
    sys.exit(start(build(Spread, json.loads(sys.argv[1]), what="spread"), sys.argv[2:]))


if __name__ == "__main__":
    main()
