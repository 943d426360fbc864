"""Stages forked from a process that has imported what they import: the same component, faster."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kfp import compiler, dsl

from unlearning_pipelines.compile import COMPILED
from unlearning_pipelines.local import Runner
from unlearning_pipelines.warm import component_in, possible


@dsl.component(base_image="test-python", install_kfp_package=False)
def told(word: str) -> str:
    import os
    import sys

    print(f"the path of the program is {sys.argv[0]}")
    if word == "exit":
        sys.exit(7)
    if word == "raise":
        raise ValueError("as it was told to")
    kept = "mlflow" in sys.modules  # a new Python would not have it
    os.environ["UNLEARN_TOLD"] = word
    return f"{word} {kept} {os.environ.get('UNLEARN_BEFORE', 'unset')}"


@dsl.component(base_image="test-python", install_kfp_package=False)
def told_again(word: str) -> str:
    import os

    return f"{word} then {os.environ.get('UNLEARN_TOLD', 'unset')}"


@dsl.pipeline(name="tell")
def tell(word: str = "hello") -> str:
    return told_again(word=told(word=word).output).output  # type: ignore[no-any-return]


def run(folder: Path, word: str, *how: str) -> subprocess.CompletedProcess[str]:
    compiler.Compiler().compile(tell, str(folder / "tell.yaml"))
    asked = {
        "pipeline": str(folder / "tell.yaml"),
        "arguments": {"word": word},
        "results": str(folder / "results.json"),
        "environment": {**os.environ, "UNLEARN_BEFORE": "set"},  # after the process was started
    }
    command = [sys.executable, "-m", "unlearning_pipelines.local", *how]
    return subprocess.run(
        command, input=json.dumps(asked) + "\n", capture_output=True, text=True, timeout=300, cwd=folder
    )


@pytest.mark.skipif(not possible(), reason="forks on Linux only")
def test_a_warm_stage_gives_what_a_cold_one_gives_and_leaves_the_next_one_nothing(tmp_path: Path) -> None:
    cold, warm = tmp_path / "cold", tmp_path / "warm"
    for folder, how in ((cold, ()), (warm, ("warm",))):
        folder.mkdir()
        ended = run(folder, "hello", *how)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    said = [json.loads((folder / "results.json").read_text())["Output"] for folder in (cold, warm)]
    assert said == ["hello False set then unset", "hello True set then unset"]


def test_a_process_that_is_asked_nothing_ends_with_whoever_started_it(tmp_path: Path) -> None:
    with Runner() as runner:
        child = runner._child
    assert child.poll() is not None
    began = [sys.executable, "-m", "unlearning_pipelines.local", "warm"]
    alone = subprocess.run(began, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert (alone.returncode, alone.stdout, alone.stderr, list(tmp_path.iterdir())) == (0, "", "", [])


@pytest.mark.skipif(not possible(), reason="forks on Linux only")
@pytest.mark.parametrize(("word", "sign"), [("raise", "ValueError: as it was told to"), ("exit", "the path of")])
def test_a_warm_stage_that_fails_fails_the_run_and_says_why(word: str, sign: str, tmp_path: Path) -> None:
    ended = run(tmp_path, word, "warm")
    assert ended.returncode != 0
    assert sign in ended.stdout + ended.stderr
    assert not (tmp_path / "results.json").exists()


def test_commands_of_the_compiled_pipelines_are_those_of_components() -> None:
    for path in COMPILED.glob("*.yaml"):
        pipeline = next(yaml.safe_load_all(path.read_text()))
        for name, executor in pipeline["deploymentSpec"]["executors"].items():
            container = executor["container"]
            found = component_in([*container["command"], *container["args"]])
            assert found is not None, name
            assert found["arguments"][-1] in found["source"]


def test_other_commands_are_left_to_the_runner() -> None:
    usual = ["sh", "-ec", "program_path=x\nprintf y\n_KFP_RUNTIME=true python3 -m kfp.dsl.executor_main", "source"]
    usual += ["--executor_input", "{}", "--function_to_execute", "name"]
    assert component_in(usual) is not None
    assert component_in(["python3", "-m", "unlearning_components.nodes", "{}", *usual]) is None
    assert component_in([*usual[:2], "pip install x\n" + usual[2], *usual[3:]]) is None
    assert component_in(["sh", "-ec", "echo", "source", "--executor_input", "{}"]) is None
