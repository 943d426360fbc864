import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOTS = {
    "unlearning": ROOT / "shared" / "unlearning",
    "unlearning_components": ROOT / "components" / "unlearning_components",
    "unlearning_pipelines": ROOT / "pipelines" / "unlearning_pipelines",
}
MATHS = ("methods", "metrics", "attacks")
ENGINE = (*MATHS, "training", "data", "models")
OUTER = ("ledger", "storage", "tracking", "reporting")


class Import:
    """One import statement's module, and where it stands."""

    def __init__(self, file: Path, line: int, module: str, *, inside: bool, for_types: bool) -> None:
        self.module, self.inside, self.for_types = module, inside, for_types
        self.place = f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name}:{line} imports {module}"

    def is_of(self, *packages: str) -> bool:
        return any(self.module == package or self.module.startswith(f"{package}.") for package in packages)


def imports_of(file: Path) -> Iterator[Import]:
    """Every import of a file; `inside` a function, and only `for_types` when Python never runs it."""

    def walk(node: ast.AST, inside: bool, for_types: bool) -> Iterator[Import]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            inside = True
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for child in node.body:
                yield from walk(child, inside, True)
            for child in node.orelse:
                yield from walk(child, inside, for_types)
            return
        modules = []
        if isinstance(node, ast.Import):
            modules = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno} is a relative import"
            # `from unlearning import storage` is an import of unlearning.storage
            modules = [node.module or "", *(f"{node.module}.{name.name}" for name in node.names)]
        for module in modules:
            yield Import(file, getattr(node, "lineno", 0), module, inside=inside, for_types=for_types)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, inside, for_types)

    yield from walk(ast.parse(file.read_text(), str(file)), inside=False, for_types=False)


def all_imports(package: str, *rooms: str) -> list[Import]:
    """The imports of a package, or of some of its rooms: a folder or a module each."""
    folder = ROOTS[package]
    files = [file for file in folder.rglob("*.py") if not rooms or file.relative_to(folder).parts[0] in _names(rooms)]
    return [found for file in sorted(files) for found in imports_of(file)]


def _names(rooms: tuple[str, ...]) -> set[str]:
    return {name for room in rooms for name in (room, f"{room}.py")}


def places(found: list[Import], *packages: str) -> list[str]:
    return [one.place for one in found if one.is_of(*packages)]


def test_the_walk_sees_imports_in_functions_and_apart_those_for_types(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text(
        "from typing import TYPE_CHECKING\nimport os.path\nif TYPE_CHECKING:\n    from torch import nn\n"
        "def f():\n    from unlearning import storage\n    async def g():\n        import mlflow\n"
    )
    found = {(one.module, one.inside, one.for_types) for one in imports_of(file)}
    assert {
        ("os.path", False, False),
        ("torch.nn", False, True),
        ("unlearning.storage", True, False),
        ("mlflow", True, False),
    } <= found


def test_there_is_something_in_every_room_that_the_rules_speak_of() -> None:
    for room in ("methods", "metrics", "attacks", "training", "data", "models", "storage", "tracking", "reporting"):
        assert all_imports("unlearning", room), room
    assert all_imports("unlearning_components")
    assert all_imports("unlearning_pipelines")


def test_the_core_knows_neither_components_nor_pipelines_nor_kfp() -> None:
    above = ("unlearning_components", "unlearning_pipelines", "kfp", "kfp_kubernetes", "typer")
    assert places(all_imports("unlearning"), *above) == []


def test_components_do_not_know_the_pipelines() -> None:
    assert places(all_imports("unlearning_components"), "unlearning_pipelines", "typer") == []


def test_mlflow_is_imported_in_functions_of_tracking_alone() -> None:
    strangers = [
        one.place
        for package in ROOTS
        for one in all_imports(package)
        if one.is_of("mlflow") and "unlearning/tracking/" not in one.place
    ]
    at_import = [
        one.place
        for one in all_imports("unlearning", "tracking")
        if one.is_of("mlflow") and not (one.inside or one.for_types)
    ]
    assert (strangers, at_import) == ([], [])


@pytest.mark.parametrize("room", MATHS)
def test_the_maths_sees_no_path_address_tracker_or_environment(room: str) -> None:
    rooms = ("unlearning.storage", "unlearning.tracking", "unlearning.settings", "unlearning.ledger")
    world = ("os", "pathlib", "io", "shutil", "tempfile", "subprocess", "socket", "kfp", "mlflow", "boto3", "requests")
    assert places(all_imports("unlearning", room), *rooms, *world) == []


@pytest.mark.parametrize("room", ENGINE)
def test_nothing_that_computes_knows_where_results_are_kept(room: str) -> None:
    outer = [f"unlearning.{name}" for name in (*OUTER, "settings", "policy")]
    assert places(all_imports("unlearning", room), *outer) == []


def test_of_the_outer_rooms_tracking_alone_knows_another() -> None:
    known = {
        (room, other)
        for room in OUTER
        for other in OUTER
        if other != room and places(all_imports("unlearning", room), f"unlearning.{other}")
    }
    assert known <= {("tracking", "storage"), ("ledger", "storage")}


@pytest.mark.parametrize(
    "module",
    [
        "unlearning",
        "unlearning.methods",
        "unlearning.settings",
        "unlearning.policy.gates",
        "unlearning.data.selection",
        "unlearning.models.bundle",
        "unlearning_components.surroundings",
        "unlearning_pipelines.cli",
    ],
)
def test_light_modules_stay_light(module: str) -> None:
    heavy = ["torch", "mlflow", "sklearn", "torchvision", "matplotlib", "scipy", "pandas", "boto3"]
    if module in ("unlearning", "unlearning_pipelines.cli"):
        heavy += ["kfp", "numpy", "pyarrow"]
    code = f"import sys, json, {module}; print(json.dumps([name for name in {heavy!r} if name in sys.modules]))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(ended.stdout) == []


HEAVY = ["torch", "mlflow", "kfp", "pandas", "sklearn", "torchvision", "matplotlib", "scipy", "boto3", "pyarrow"]


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["--help"], [*HEAVY, "numpy", "sqlalchemy", "pydantic"]),
        (["requests", "--help"], [*HEAVY, "numpy"]),
        (["requests", "status"], HEAVY),
        (["requests", "list"], HEAVY),
        (["methods"], ["torch", "mlflow", "kfp", "sklearn", "torchvision", "matplotlib", "boto3"]),
    ],
)
def test_commands_import_nothing_heavy_that_they_do_not_need(
    words: list[str], heavy: list[str], tmp_path: Path
) -> None:
    code = (
        "import json, sys\n"
        "from unlearning_pipelines.cli import main\n"
        f"sys.argv = ['unlearn', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"print(json.dumps([name for name in {heavy!r} if name in sys.modules]))"
    )
    environment = {"UNLEARN_HOME": str(tmp_path), "UNLEARN_LEDGER_URL": f"sqlite:///{tmp_path}/ledger.db"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("UNLEARN_", "MLFLOW_"))}
    environment = {**kept, **environment}
    if words[0] == "requests" and words[1] != "--help":
        add = "from unlearning_pipelines.cli import main; main()"
        line = ["requests", "add", "--key", "one", "--kind", "class", "--id", "3", "--model", "digits"]
        subprocess.run([sys.executable, "-c", add, *line], env=environment, check=True, timeout=120)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == []


def test_there_are_no_packages_in_the_source_roots_but_the_three() -> None:
    for name, folder in ROOTS.items():
        packages = [path.name for path in folder.parent.iterdir() if path.is_dir() and path.name != "__pycache__"]
        assert packages == [name]
        assert not (folder.parent / "__init__.py").exists()
        assert (folder / "py.typed").exists()
