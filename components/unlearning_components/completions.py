"""Stages of a deletion batch that are run once: what one finished is kept, and a repeated run of the batch takes it.

A batch that was cut off is taken over by a later pipeline run. Its stages come to the same inputs, find what was made
of them under the batch's completion records (`unlearning.ledger.completion`), hash by hash, and hand that on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearning import __version__
from unlearning.ledger.completion import Work, keep, kept
from unlearning.ledger.events import digest_of
from unlearning_components.surroundings import stage, store, tracker

if TYPE_CHECKING:
    from kfp import dsl

    from unlearning.tracking import StageRun

WORK = "unlearning.work"
"""Tag of a pipeline's MLflow run: the batch that it works on, and the fencing token of its claim."""
_NOTES = "artifacts.json"


@contextmanager
def stage_once(
    run: str,
    name: str,
    *,
    given: Mapping[str, Any],
    reads: Sequence[dsl.Artifact | None],
    makes: Sequence[dsl.Artifact],
) -> Iterator[StageRun | None]:
    """One stage's MLflow run, as `stage` gives it; None when it was finished before, and `makes` hold what it made.

    Outside of a deletion batch it is `stage`. What was finished counts for the same code, parameters and inputs only.

    Args:
        run: The pipeline's.
        name: The stage.
        given: Its parameters, but the run: JSON types.
        reads: Its input artifacts.
        makes: Its output artifacts, with their metadata.
    """
    work = _work_of(run)
    if work is None:
        with stage(run, name) as record:
            yield record
        return
    inputs = [None if one is None else _tree(Path(one.path)) for one in reads]
    key = f"stages/{name}-{digest_of([__version__, given, inputs])[:32]}"
    with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
        if kept(store(), work, key, Path(folder)):
            _hand_out(Path(folder), makes)
            print(f"{name} was finished by an earlier run of this batch: taken from there")
            yield None
            return
    with stage(run, name) as record:
        yield record
        with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
            _gather(makes, Path(folder))
            keep(store(), work, key, Path(folder))


def _work_of(run: str) -> Work | None:
    batch, _, token = tracker().tags_of(run).get(WORK, "").partition(":")
    return Work(batch, int(token)) if batch else None


def _tree(path: Path) -> dict[str, str]:
    """Name to sha256 of every file at or beneath a path."""
    files = [path] if path.is_file() else sorted(one for one in path.rglob("*") if one.is_file())
    return {one.relative_to(path).as_posix(): hashlib.sha256(one.read_bytes()).hexdigest() for one in files}


def _gather(makes: Sequence[dsl.Artifact], folder: Path) -> None:
    notes = []
    for number, artifact in enumerate(makes):
        source, into = Path(artifact.path), folder / str(number)
        if source.is_dir():
            shutil.copytree(source, into)
        elif source.is_file():
            shutil.copyfile(source, into)
        form = "folder" if source.is_dir() else "file" if source.is_file() else "nothing"
        notes.append({"form": form, "metadata": dict(artifact.metadata)})
    (folder / _NOTES).write_text(json.dumps(notes))


def _hand_out(folder: Path, makes: Sequence[dsl.Artifact]) -> None:
    notes = json.loads((folder / _NOTES).read_text())
    for number, (artifact, note) in enumerate(zip(makes, notes, strict=True)):
        source, into = folder / str(number), Path(artifact.path)
        if note["form"] == "folder":
            into.mkdir(parents=True, exist_ok=True)
            if source.is_dir():  # an empty one leaves no key in an object store
                shutil.copytree(source, into, dirs_exist_ok=True)
        elif note["form"] == "file":
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, into)
        artifact.metadata.update(note["metadata"])
