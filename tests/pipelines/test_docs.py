"""Every command in the documentation is one that the tool takes: parsed here, and those for a cluster run."""

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from unlearning_pipelines.cli import app
from unlearning_pipelines.parameters import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(unlearn [^`]+)`")
REFUSED = typer.BadParameter.__mro__[1]
"""What the command line raises for words that it does not take."""
CLUSTER = ("upload", "submit", "schedule", "unschedule", "runs")


def lines(page: Path) -> Iterator[str]:
    """The commands of a page's code blocks, continued lines joined."""
    for language, text in BLOCK.findall(page.read_text()):
        if language in ("sh", "bash", "console"):
            yield from (line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip())


def commands(page: Path) -> list[list[str]]:
    """The words after `unlearn`, of each such command."""
    found = []
    for line in lines(page):
        words = shlex.split(line, comments=True)
        if words and Path(words[0]).name == "unlearn":
            found.append(words[1:])
    return found


ALL = [(page, words) for page in PAGES for words in commands(page)]


def shown(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else value.name


def parsed(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The names of the command and what it was given; click's own error when it takes none such."""
    command: Any = typer.main.get_command(app)
    context, path = command.context_class(command, info_name="unlearn"), []
    while hasattr(command, "commands"):
        name, command, words = command.resolve_command(context, words)
        path.append(name)
    return path, command.make_context(path[-1], list(words), parent=context).params


@pytest.mark.parametrize(("page", "words"), ALL, ids=shown)
def test_a_command_of_the_documentation_is_taken(page: Path, words: list[str]) -> None:
    path, given = parsed(words)
    if path[0] in ("run", "submit", "schedule"):
        assert set(parse(given["pipeline"], given["set_"] or [])) >= {
            word.partition("=")[0].partition(".")[0] for word in given["set_"] or []
        }


def test_there_are_commands_of_every_kind() -> None:
    known = {parsed(words)[0][0] for _, words in ALL}
    assert known >= {"run", "compile", "doctor", "train", "models", "data", *CLUSTER}


def test_a_command_that_is_none_is_found_out() -> None:
    for words in (
        ["uplod"],
        ["models", "lisst"],
        ["submit"],
        ["submit", "delete_class", "--wat"],
        ["runs", "--most", "many"],
    ):
        with pytest.raises(REFUSED):
            parsed(words)


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_commands_within_sentences_exist(page: Path) -> None:
    """`unlearn X ...` in running text: at least the command and its options."""
    for text in INLINE.findall(BLOCK.sub("", page.read_text())):
        words = shlex.split(text)[1:]
        command: Any = typer.main.get_command(app)
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, text
            command = command.commands[words.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= options, text


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_files_that_the_documentation_names_are_there(page: Path) -> None:
    text = page.read_text()
    roots = "deploy|docs|tests|shared|components|pipelines|benchmarks|scripts"
    named = re.findall(rf"(?<![\w/.-])((?:{roots})/[\w./-]*\w/?)", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=shown)
def test_variables_that_the_documentation_names_are_read_somewhere(page: Path) -> None:
    from unlearning.settings import Settings
    from unlearning_pipelines.connection import Connection

    fields = {f"UNLEARN_{name.upper()}" for name in Settings.model_fields}
    fields |= {f"UNLEARN_KFP_{name.upper()}" for name in Connection.model_fields}
    fields |= {"UNLEARN_IMAGE", "UNLEARN_CLUSTER_SETTINGS", "UNLEARN_TEST_S3"}
    assert set(re.findall(r"UNLEARN_[A-Z0-9_]*[A-Z0-9]", page.read_text())) <= fields


def test_the_operators_commands_run_in_their_order(
    unlearn: Any, kubeflow: Any, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the stand-in for a server, from the first upload to the last schedule of the page."""
    monkeypatch.setenv("UNLEARN_KFP_ACCOUNT", "unlearning-runner")
    shutil.copytree(ROOT / "deploy", desk / "deploy")
    page = [words for words in commands(ROOT / "docs" / "operating.md") if words[0] in CLUSTER]
    assert len(page) >= 9
    for words in page:
        ended = unlearn(*words)
        assert (ended.code, ended.err) == (0, ""), (words, ended)
    assert {one["display_name"] for one in kubeflow.recurring} == {"delete-samples", "deletion-batch"}
    assert {one["service_account"] for one in (*kubeflow.runs, *kubeflow.recurring)} == {"unlearning-runner"}
    assert len(kubeflow.runs) == 2


def test_the_commands_for_a_cluster_in_the_readme_run_in_their_order(unlearn: Any, kubeflow: Any, desk: Path) -> None:
    shutil.copytree(ROOT / "deploy", desk / "deploy")
    page = [words for words in commands(ROOT / "README.md") if words[0] in CLUSTER]
    assert [words[0] for words in page] == ["upload", "submit", "schedule", "runs"]
    for words in page:
        ended = unlearn(*words)
        assert (ended.code, ended.err) == (0, ""), (words, ended)
    (recurring,) = kubeflow.recurring
    assert recurring["display_name"].startswith("deletion-batch")
