"""Cluster settings: what they make of the compiled pipelines, held against KFP's own grammar."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp import compiler, dsl
from kfp.kubernetes import kubernetes_executor_config_pb2 as grammar

from unlearning.errors import UsageError
from unlearning_pipelines.catalogue import PIPELINES
from unlearning_pipelines.compile import COMPILED
from unlearning_pipelines.placement import REPEATABLE, STAGES, VARIABLE, Placement, place, read_placement

EVERYTHING: dict[str, Any] = {
    "config_maps": [{"name": "unlearning", "env": {"store": "UNLEARN_STORE", "mlflow": "MLFLOW_TRACKING_URI"}}],
    "secrets": [
        {"name": "s3", "env": {"id": "AWS_ACCESS_KEY_ID", "key": "AWS_SECRET_ACCESS_KEY"}},
        {"name": "mlflow", "env": {"user": "MLFLOW_TRACKING_USERNAME"}, "optional": True},
    ],
    "signing_key": {"secret": "signing", "folder": "/var/run/keys"},
    "scratch": "20Gi",
    "user": 1001,
    "group": 0,
    "image_pull_secrets": ["registry"],
    "image_pull_policy": "IfNotPresent",
    "pod_labels": {"app.kubernetes.io/part-of": "kfp-unlearning"},
    "retry_after": 60,
    "stages": {
        "all": {"cpu": "500m", "memory": "4Gi", "timeout": 3600, "retries": 2},
        "repair": {
            "cpu": "4",
            "cpu_limit": "8",
            "memory": "16Gi",
            "gpu": 1,
            "shared_memory": "2Gi",
            "timeout": 14400,
            "node_selector": {"pool": "gpu"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
        "gate": {"retries": 0},
    },
}


def compiled(settings: dict[str, Any], folder: Path) -> Path:
    """A folder of pipelines compiled with these settings, by the command itself."""
    (folder / "cluster.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-c", "from unlearning_pipelines.cli import main; main()", "compile"]
    command += ["--settings", str(folder / "cluster.yaml"), "--out", str(folder / "out")]
    subprocess.run(command, check=True, capture_output=True, timeout=120, env=_environment())
    return folder / "out"


def _environment(**more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("UNLEARN_")}
    return {**clean, "PYTHONPATH": os.pathsep.join(sys.path), **more}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(EVERYTHING, tmp_path_factory.mktemp("placed"))


@cache
def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def pods(path: Path) -> dict[str, Any]:
    """Stage to what Kubernetes is told of its pod, as KFP's grammar reads it."""
    spec, platform = documents(path)
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert executors.keys() == spec["deploymentSpec"]["executors"].keys()
    return {
        name.removeprefix("exec-"): json_format.ParseDict(executor, grammar.KubernetesExecutorConfig())
        for name, executor in executors.items()
    }


def containers(path: Path) -> dict[str, Any]:
    executors = documents(path)[0]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): executor["container"] for name, executor in executors.items()}


def tasks(path: Path) -> dict[str, Any]:
    """Of the pipeline and of its conditions, whose own nodes are none."""
    pipeline = documents(path)[0]
    dags = [pipeline["root"]["dag"], *(one["dag"] for one in pipeline["components"].values() if "dag" in one)]
    every = {name: task for dag in dags for name, task in dag["tasks"].items()}
    return {
        name: task for name, task in every.items() if "dag" not in pipeline["components"][task["componentRef"]["name"]]
    }


@pytest.mark.parametrize("name", PIPELINES)
def test_without_settings_nothing_is_said_about_pods(name: str) -> None:
    assert len(documents(COMPILED / f"{name}.yaml")) == 1
    assert not any("resources" in container for container in containers(COMPILED / f"{name}.yaml").values())
    assert not any("retryPolicy" in task for task in tasks(COMPILED / f"{name}.yaml").values())


@pytest.mark.parametrize("name", PIPELINES)
def test_every_stage_gets_addresses_and_secrets_by_name(name: str, out: Path) -> None:
    for stage, pod in pods(out / f"{name}.yaml").items():
        maps = {
            one.config_map_name: {e.config_map_key: e.env_var for e in one.key_to_env} for one in pod.config_map_as_env
        }
        assert maps == {"unlearning": {"store": "UNLEARN_STORE", "mlflow": "MLFLOW_TRACKING_URI"}}, stage
        secrets = {one.secret_name: {e.secret_key: e.env_var for e in one.key_to_env} for one in pod.secret_as_env}
        assert secrets == {
            "s3": {"id": "AWS_ACCESS_KEY_ID", "key": "AWS_SECRET_ACCESS_KEY"},
            "mlflow": {"user": "MLFLOW_TRACKING_USERNAME"},
        }
        assert {one.secret_name: one.optional for one in pod.secret_as_env} == {"s3": False, "mlflow": True}


@pytest.mark.parametrize("name", PIPELINES)
def test_settle_alone_gets_the_signing_key(name: str, out: Path) -> None:
    given = {
        stage: [(one.secret_name, one.mount_path) for one in pod.secret_as_volume]
        for stage, pod in pods(out / f"{name}.yaml").items()
        if pod.secret_as_volume
    }
    assert given == ({"settle": [("signing", "/var/run/keys")]} if "settle" in tasks(out / f"{name}.yaml") else {})
    others = json.dumps({k: v for k, v in documents(out / f"{name}.yaml")[0].items() if k != "deploymentSpec"})
    assert "signing" not in others


@pytest.mark.parametrize("name", PIPELINES)
def test_no_stage_runs_as_root_and_all_write_to_a_volume_of_their_own(name: str, out: Path) -> None:
    for stage, pod in pods(out / f"{name}.yaml").items():
        assert pod.security_context.run_as_non_root, stage
        assert (pod.security_context.run_as_user, pod.security_context.run_as_group) == (1001, 0)
        folders = {one.mount_path: (one.medium, one.size_limit) for one in pod.empty_dir_mounts}
        assert folders.pop("/tmp") == ("", "20Gi")
        assert folders == ({"/dev/shm": ("Memory", "2Gi")} if stage == "repair" else {})


def test_a_stage_gets_its_own_and_for_the_rest_what_all_get(out: Path) -> None:
    path = out / "delete_class.yaml"
    given = containers(path)
    common = {"cpuRequest": 0.5, "memoryLimit": 4.294967296, "memoryRequest": 4.294967296}
    own = given["repair"]["resources"]
    assert own.pop("accelerator") == {
        "type": "nvidia.com/gpu",
        "count": "1",
        "resourceType": "nvidia.com/gpu",
        "resourceCount": "1",
    }
    numbers = {key: value for key, value in own.items() if isinstance(value, float)}
    assert numbers == {"cpuLimit": 8.0, "cpuRequest": 4.0, "memoryLimit": 17.179869184, "memoryRequest": 17.179869184}
    for stage in given.keys() - {"repair"}:
        resources = given[stage]["resources"]
        assert {key: value for key, value in resources.items() if isinstance(value, float)} == common, stage
    found = pods(path)
    assert {stage: pod.active_deadline_seconds for stage, pod in found.items()} == {
        stage: 14400 if stage == "repair" else 3600 for stage in found
    }
    assert dict(found["repair"].node_selector.labels) == {"pool": "gpu"}
    assert [(one.key, one.operator, one.effect) for one in found["repair"].tolerations] == [
        ("nvidia.com/gpu", "Exists", "NoSchedule")
    ]
    assert not found["gate"].tolerations


@pytest.mark.parametrize("name", PIPELINES)
def test_pods_carry_labels_and_pull_by_the_secret(name: str, out: Path) -> None:
    for stage, pod in pods(out / f"{name}.yaml").items():
        assert dict(pod.pod_metadata.labels) == {"app.kubernetes.io/part-of": "kfp-unlearning"}, stage
        assert [one.secret_name for one in pod.image_pull_secret] == ["registry"]
        assert pod.image_pull_policy == "IfNotPresent"


@pytest.mark.parametrize("name", PIPELINES)
def test_stages_that_may_be_repeated_are_tried_again_and_still_never_cached(name: str, out: Path) -> None:
    for stage, task in tasks(out / f"{name}.yaml").items():
        assert task["cachingOptions"] == {}
        if stage == "gate":
            assert "retryPolicy" not in task
        else:
            assert task["retryPolicy"] == {
                "maxRetryCount": 2,
                "backoffDuration": "60s",
                "backoffFactor": 2.0,
                "backoffMaxDuration": "3600s",
            }


@pytest.mark.parametrize("name", PIPELINES)
def test_every_stage_of_the_pipelines_can_be_named_in_the_settings(name: str) -> None:
    """A new stage joins STAGES, and REPEATABLE only when doing it twice changes nothing."""
    assert {stage.replace("-", "_") for stage in tasks(COMPILED / f"{name}.yaml")} <= set(STAGES)
    assert set(STAGES) == {"all", *REPEATABLE}


@dsl.component(base_image="test-python", install_kfp_package=False)
def charge(amount: int = 1) -> int:
    return amount


def alone(stage: str, placement: Placement, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """The pod of a pipeline's only task, placed as this stage; its YAML is `alone.yaml`."""
    monkeypatch.setattr("unlearning_pipelines.placement.in_force", lambda: placement)

    @dsl.pipeline(name="alone")
    def one() -> None:
        place(charge(), stage)

    folder.mkdir(exist_ok=True)
    compiler.Compiler().compile(one, str(folder / "alone.yaml"))
    return pods(folder / "alone.yaml")["charge"]


def test_a_source_may_serve_some_stages_only_and_bring_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keys = {"id": "AWS_ACCESS_KEY_ID"}
    placement = Placement.model_validate(
        {
            "config_maps": [{"name": "rules", "folder": "/etc/rules"}],
            "secrets": [
                {"name": "s3-stages", "env": keys, "stages": ["gate", "repair"]},
                {"name": "s3-promote", "env": keys, "folder": "/var/run/s3", "stages": ["promote"]},
            ],
        }
    )
    gate, promote = (alone(stage, placement, monkeypatch, tmp_path / stage) for stage in ("gate", "promote"))
    assert [one.secret_name for one in gate.secret_as_env] == ["s3-stages"]
    assert not gate.secret_as_volume
    assert [one.secret_name for one in promote.secret_as_env] == ["s3-promote"]
    assert [(one.secret_name, one.mount_path) for one in promote.secret_as_volume] == [("s3-promote", "/var/run/s3")]
    assert [(one.config_map_name, one.mount_path) for one in gate.config_map_as_volume] == [("rules", "/etc/rules")]


def test_a_stage_that_may_not_be_repeated_is_not_retried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pod = alone("charge", Placement.model_validate(EVERYTHING), monkeypatch, tmp_path / "once")
    assert pod.active_deadline_seconds == 3600
    assert "retryPolicy" not in (tmp_path / "once" / "alone.yaml").read_text()
    alone("promote", Placement.model_validate(EVERYTHING), monkeypatch, tmp_path / "twice")
    assert "retryPolicy" in (tmp_path / "twice" / "alone.yaml").read_text()


def test_the_local_runner_leaves_all_of_it_aside(tmp_path: Path) -> None:
    code = """
import sys
from kfp import dsl, local
from unlearning_pipelines.tasks import task
@dsl.component(base_image="test-python", install_kfp_package=False)
def promote(word: str = "done") -> str:
    return word
@dsl.pipeline(name="placed")
def placed(word: str = "done") -> str:
    return task(promote(word=word)).output
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1])
assert "kubernetes" in str(placed.platform_spec)
print("output", placed(word="well").outputs["Output"])
"""
    (tmp_path / "pipeline.py").write_text(code)
    (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(EVERYTHING))
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", str(tmp_path / "pipeline.py"), str(tmp_path / "root")],
        capture_output=True,
        text=True,
        timeout=120,
        env=_environment(**{VARIABLE: str(tmp_path / "cluster.yaml")}),
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]
    assert "output well" in ended.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scrach": "1Gi"}, ['unknown setting "scrach"; did you mean "scratch"?']),
        ({"stages": {"repare": {}}}, ['unknown stage "repare"; did you mean "repair"?']),
        ({"stages": {"repair": {"memry": "1Gi"}}}, ['unknown setting "stages.repair.memry"; did you mean "memory"?']),
        ({"stages": {"repair": {"memory": "much"}}}, ["stages.repair.memory"]),
        ({"stages": {"repair": {"retries": -1}}}, ["stages.repair.retries"]),
        ({"stages": {"repair": {"timeout": 0}}}, ["stages.repair.timeout"]),
        ({"user": 0}, ["user: "]),
        ({"secrets": [{"name": "s3"}]}, ['"s3" gives nothing']),
        (
            {"secrets": [{"name": "s3", "folder": "/x", "stages": ["gat"]}]},
            ['unknown stage "gat"; did you mean "gate"?'],
        ),
        ({"secrets": [{"name": "s3", "env": {"key": "not a name"}}]}, ["secrets.0.env.key"]),
        (
            {"secrets": [{"name": "signing", "env": {"key": "KEY"}}]},
            ['"signing" holds the signing key', "settle alone"],
        ),
        ({"secrets": [{"name": "s3", "env": {"key": "UNLEARN_STORE"}}]}, ["two sources set UNLEARN_STORE of attack"]),
        ({"scrach": 1, "user": 0}, ['"scrach"', "user: "]),
    ],
)
def test_settings_with_a_mistake_are_refused_in_one_line(
    change: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump({**EVERYTHING, **change}))
    with pytest.raises(UsageError) as caught:
        read_placement(path)
    assert "\n" not in str(caught.value)
    for part in [str(path), *words]:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "word"), [("a: [", "no YAML"), ("- 1", "dictionary"), (None, "no cluster settings")]
)
def test_a_file_that_holds_no_settings_is_refused(content: str | None, word: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=word) as caught:
        read_placement(path)
    assert "\n" not in str(caught.value)


def test_empty_settings_still_keep_root_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("")
    pod = alone("promote", read_placement(path), monkeypatch, tmp_path)
    assert json_format.MessageToDict(pod) == {"securityContext": {"runAsNonRoot": True}}


def test_the_packages_own_files_are_not_overwritten_by_a_cluster_s(
    unlearn: Any, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (desk / "cluster.yaml").write_text("{}")
    before = {path: path.stat().st_mtime_ns for path in COMPILED.iterdir()}
    monkeypatch.setenv(VARIABLE, "cluster.yaml")
    ended = unlearn("compile")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "--out" in ended.err
    assert {path: path.stat().st_mtime_ns for path in COMPILED.iterdir()} == before
    monkeypatch.setenv(VARIABLE, "missing.yaml")
    assert "no cluster settings at missing.yaml" in unlearn("compile", "--out", "x").err


def test_a_stage_on_several_nodes_is_a_job_and_the_others_stay_as_they_are(tmp_path: Path) -> None:
    settings = {**EVERYTHING, "stages": {"repair": {"nodes": 2, "processes": 4, "cpu": "4", "gpu": 4}}}
    out = compiled(settings, tmp_path)
    for name in ("delete_class", "delete_samples"):
        plain, wide = containers(COMPILED / f"{name}.yaml"), containers(out / f"{name}.yaml")
        for stage, container in wide.items():
            if "repair" not in stage:
                assert container["command"] == plain[stage]["command"], stage
                continue
            module, spread, *inner = container["command"][2:]
            assert (module, inner) == ("unlearning_components.nodes", plain[stage]["command"])
            said = json.loads(spread)
            assert (said["nodes"], said["processes"], said["runtime"]) == (2, 4, "torch-distributed")
            assert said["resources"] == {"cpu": "4", "nvidia.com/gpu": "4"}
            assert {one["name"] for one in said["env"]} == {
                "UNLEARN_STORE",
                "MLFLOW_TRACKING_URI",
                "AWS_ACCESS_KEY_ID",
                "AWS_SECRET_ACCESS_KEY",
                "MLFLOW_TRACKING_USERNAME",
            }
            assert all(set(one) == {"name", "valueFrom"} for one in said["env"])
            assert "accelerator" not in container.get("resources", {})


def test_stages_that_one_process_runs_cannot_be_spread() -> None:
    for settings, said in (
        ({"stages": {"gate": {"nodes": 2}}}, "gate runs in one process"),
        ({"stages": {"all": {"processes": 2}}}, "runs in one process"),
        (
            {"stages": {"repair": {"nodes": 2}}, "secrets": [{"name": "ca", "folder": "/etc/ca"}]},
            "repair is on several nodes, which take variables and no files: ca",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            Placement.model_validate(settings)
