import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from unlearning.data.sources import make_manifest
from unlearning.errors import PipelineError
from unlearning_pipelines.catalogue import PIPELINES
from unlearning_pipelines.checks import check_compiled
from unlearning_pipelines.compile import COMPILED

Spec = dict[str, Any]


@pytest.fixture(autouse=True)
def default_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unlearning_components._image.IMAGE", "kfp-unlearning-python:0.1.0")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pipelines compiled just now, without UNLEARN_IMAGE, by the command itself."""
    folder = tmp_path_factory.mktemp("compiled")
    code = (
        "import os, sys; os.environ.pop('UNLEARN_IMAGE', None); from unlearning_pipelines.cli import main; "
        f"sys.argv = ['unlearn', 'compile', '--out', {str(folder)!r}]; main()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
    return folder


def _without_version(path: Path) -> Spec:
    document: Spec = yaml.safe_load(path.read_text())
    del document["sdkVersion"]
    return document


def test_every_pipeline_of_the_catalogue_has_its_file_and_no_other_file_is_there() -> None:
    assert sorted(path.name for path in COMPILED.iterdir()) == sorted(f"{name}.yaml" for name in PIPELINES)


@pytest.mark.parametrize("name", PIPELINES)
def test_the_kept_yaml_is_what_the_code_compiles_to(name: str, fresh: Path) -> None:
    kept, now = (_without_version(folder / f"{name}.yaml") for folder in (COMPILED, fresh))
    assert kept == now, f"compiled/{name}.yaml is out of date: run `make compile` and commit what it changes"


@pytest.mark.parametrize("name", PIPELINES)
def test_a_cluster_accepts_the_kept_yaml(name: str) -> None:
    check_compiled(COMPILED / f"{name}.yaml")


@pytest.mark.parametrize("name", PIPELINES)
def test_the_image_carries_the_version_of_the_package(name: str) -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.+)"$', project, re.MULTILINE)
    assert version is not None
    executors = yaml.safe_load((COMPILED / f"{name}.yaml").read_text())["deploymentSpec"]["executors"]
    images = {executor["container"]["image"] for executor in executors.values()}
    assert images == {f"kfp-unlearning-python:{version[1]}"}


@pytest.mark.parametrize("name", PIPELINES)
def test_no_row_of_a_data_set_is_named_in_the_kept_yaml(name: str) -> None:
    ids = make_manifest("digits").table["sample_id"].to_pylist()
    text = (COMPILED / f"{name}.yaml").read_text()
    assert len(ids) == 1797
    assert [id_ for id_ in ids if id_ in text] == []


@pytest.mark.parametrize("name", PIPELINES)
def test_every_task_writes_down_that_it_is_not_cached(name: str) -> None:
    spec = yaml.safe_load((COMPILED / f"{name}.yaml").read_text())
    graphs = [part["dag"]["tasks"] for part in (spec["root"], *spec["components"].values()) if "dag" in part]
    stages = {
        task: found["cachingOptions"]
        for tasks in graphs
        for task, found in tasks.items()
        if "dag" not in spec["components"][found["componentRef"]["name"]]
    }
    assert stages
    assert stages == {task: {} for task in stages}


# What the check refuses: each case damages a good file in one way.


def _set(path: str, value: Any) -> Any:
    def change(spec: Spec) -> None:
        *parents, last = path.split("/")
        for part in parents:
            spec = spec[part]
        if value is None:
            del spec[last]
        else:
            spec[last] = value

    return change


TASK = "root/dag/tasks/promote"
CONTAINER = "deploymentSpec/executors/exec-promote/container"
PARAMETER = "root/inputDefinitions/parameters/seed"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set("schemaVersion", "2.0.0"), 'schema version is "2.0.0"'),
        (_set("rooot", {}), "API server would refuse it"),
        (_set(f"{TASK}/cachingOptions", {"enableCache": True}), 'task "promote" may be answered from the cache'),
        (_set(f"{TASK}/componentRef/name", "comp-lost"), 'names the component "comp-lost", which is not there'),
        (_set("components/comp-promote/executorLabel", "exec-lost"), 'names the executor "exec-lost"'),
        (_set("root/dag/tasks", {}), "it has no tasks"),
        (_set(f"{CONTAINER}/image", "docker.example/other:1"), 'runs the image "docker.example/other:1"'),
        (_set(f"{CONTAINER}/command", ["sh", "-c", "python3 -m pip install kfp"]), "would install packages"),
        (_set(f"{CONTAINER}/env", [{"name": "HOME", "value": "/x"}]), "carries values of environment variables"),
        (_set(f"{CONTAINER}/surprise", 1), "API server would refuse it"),
        (_set(f"{PARAMETER}/defaultValue", None), 'parameter "seed" has no default'),
        (_set(f"{PARAMETER}/description", None), 'parameter "seed" has no description'),
        (_set("root/inputDefinitions/parameters/forget/defaultValue", ["x" * 40] * 300), "a cluster accepts fewer"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(change: Any, reason: str, tmp_path: Path) -> None:
    spec = yaml.safe_load((COMPILED / "delete_class.yaml").read_text())
    change(spec)
    path = tmp_path / "damaged.yaml"
    path.write_text(yaml.safe_dump(spec))
    with pytest.raises(PipelineError, match=r"damaged\.yaml: ") as caught:
        check_compiled(path)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["a: [", "- 1\n", "", "a: 1\n---\nb: 1\n---\nc: 1\n"])
def test_what_is_no_pipeline_is_refused_in_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    path.write_text(content)
    with pytest.raises(PipelineError, match=r"none\.yaml: ") as caught:
        check_compiled(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="cannot be read"):
        check_compiled(tmp_path / "missing.yaml")


def test_a_secret_of_the_environment_in_the_file_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalr-very-secret")
    path = tmp_path / "leaky.yaml"
    good = (COMPILED / "delete_class.yaml").read_text()
    path.write_text(good.replace("digits@champion", "wJalr-very-secret@champion"))
    with pytest.raises(PipelineError, match="holds the value of AWS_SECRET_ACCESS_KEY") as caught:
        check_compiled(path)
    assert "wJalr" not in str(caught.value)


def test_settings_for_the_cluster_are_held_against_their_grammar_too(tmp_path: Path) -> None:
    good = (COMPILED / "delete_class.yaml").read_text()
    executors = {
        "exec-promote": {"secretAsEnv": [{"secretName": "s3", "keyToEnv": [{"secretKey": "a", "envVar": "B"}]}]}
    }
    document = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": executors}}}}
    path = tmp_path / "pair.yaml"
    path.write_text(f"{good}---\n{yaml.safe_dump(document)}")
    check_compiled(path)
    executors["exec-promote"]["secretAsEnvironment"] = []
    path.write_text(f"{good}---\n{yaml.safe_dump(document)}")
    with pytest.raises(PipelineError, match="secretAsEnvironment"):
        check_compiled(path)


def test_another_image_is_written_where_it_is_asked_for(tmp_path: Path) -> None:
    code = (
        "import sys; from unlearning_pipelines.cli import main; "
        f"sys.argv = ['unlearn', 'compile', '--image', 'example/python-own:7', '--out', {str(tmp_path)!r}]; main()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
    executors = yaml.safe_load((tmp_path / "delete_class.yaml").read_text())["deploymentSpec"]["executors"]
    assert {executor["container"]["image"] for executor in executors.values()} == {"example/python-own:7"}
