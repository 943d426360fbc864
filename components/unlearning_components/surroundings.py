"""What every stage needs around the library: settings in force, models and manifests by address, tracked runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from unlearning.errors import DataError, UsageError
from unlearning.methods import Facts
from unlearning.settings import Settings
from unlearning.speed import speed_from, using

MOST_IDS_BYTES = 256 * 1024 * 1024
MOST_RETAIN = 5000
"""Retained training rows that models are measured on; more are drawn down. Their accuracy is known to 0.7 points."""
MOST_FURTHER = 3
"""Retrained models of other seeds that a verdict looks at, where the bank has them."""
SHARE = 1 << 33
"""Sets the draw of a share apart from other draws with the same seed."""

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

    from unlearning.data.card import Scaling
    from unlearning.data.manifest import Manifest
    from unlearning.data.samples import Samples
    from unlearning.data.selection import ForgetRequest, RowNumbers, Selection
    from unlearning.methods.task import Task
    from unlearning.metrics.classification import Outputs
    from unlearning.models.bundle import Bundle, ModelCard
    from unlearning.storage import ObjectStore
    from unlearning.tracking import StageRun, Tracker


def tracker() -> Tracker:
    """MLflow as the environment says."""
    from unlearning.tracking import Tracker

    settings = Settings()
    return Tracker(settings.tracking_uri, settings.experiment, settings.artifacts_uri, settings.mlflow_timeout)


def store() -> ObjectStore:
    """The object store as the environment says."""
    from unlearning.storage import open_store

    settings = Settings()
    return open_store(settings.store_uri, settings.evidence_lock_days)


@contextmanager
def stage(run: str, name: str, *, began: float | None = None) -> Iterator[StageRun]:
    """One stage's MLflow run inside the pipeline's; FAILED, as the pipeline's, when the body raises.

    The switches of `UNLEARN_SPEED` are in force in the body. Where torchrun has started several processes, they are
    connected in there, and the first one alone writes to MLflow.
    """
    with using(speed_from(Settings().speed)), _company() as rank:
        if rank:
            yield cast("StageRun", _Unheard())
            return
        with tracker().stage(run, name, began=began) as record:
            yield record


@contextmanager
def _company() -> Iterator[int]:
    """This process's number among those that torchrun has started, connected in here."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield 0
        return
    from unlearning.processes import joined

    with joined() as team:
        yield team.rank


class _Unheard:
    """A stage's run of which nothing is written."""

    def __getattr__(self, name: str) -> Any:
        return self if name == "pipeline" else lambda *_, **__: None


def fetch_model(uri: str, into: Path) -> Bundle:
    """The bundle at an address, copied to a folder and checked.

    Args:
        uri: "models:/NAME@ALIAS" or "models:/NAME/3", an object-store address, or a folder.
        into: The folder; made when missing.

    Raises:
        ModelError: When it is no whole bundle, or not the one that the registry names.
        StorageError: When there is nothing at the address.
    """
    from unlearning.errors import ModelError
    from unlearning.models.bundle import read_bundle
    from unlearning.storage import download_folder, open_store, split
    from unlearning.tracking import Registry

    expected = ""
    if uri.startswith("models:/"):
        registry = Registry(tracker())
        expected = registry.resolve(uri).digest
        registry.fetch(uri, into, Settings().store_uri)
    elif "://" in uri:
        where, key = split(uri)
        download_folder(open_store(where), key, into)
    else:
        folder = Path(uri).absolute()
        if not folder.is_dir():
            raise ModelError(f"no model at {uri}: give models:/NAME@ALIAS, s3://bucket/key or a bundle's folder")
        read_bundle(folder)
        download_folder(open_store(str(folder.parent)), folder.name, into)
    bundle = read_bundle(into)
    if expected and bundle.digest != expected:
        raise ModelError(f"{uri} is not the bundle that was registered: its digest is {bundle.digest}, not {expected}")
    return bundle


def fetch_manifest(uri: str) -> Manifest:
    """The manifest of a source ("digits", "torchvision:NAME?root=...", ...), or the one kept at an address.

    Raises:
        DataError: When it is not a whole manifest.
        StorageError: When there is nothing at the address.
    """
    from unlearning.data.manifest import read_manifest
    from unlearning.data.sources import SOURCES, make_manifest
    from unlearning.storage import open_store, split

    if uri.partition(":")[0] in SOURCES:
        return make_manifest(uri, objects=open_store)
    if "://" not in uri:
        path = Path(uri)
        if not path.is_file():
            raise DataError(
                f"no manifest at {uri}: make one with `unlearn data make`, or give a source: {', '.join(SOURCES)}"
            )
        return read_manifest(path)
    where, key = split(uri)
    return read_manifest(open_store(where).get(key))


def check_fit(card: ModelCard, manifest: Manifest) -> None:
    """Nothing, when the model takes the data set's inputs and knows its classes.

    Raises:
        UsageError: When it does not.
    """
    if card.input_shape != manifest.card.input_shape:
        raise UsageError(
            f"the model takes inputs of shape {list(card.input_shape)}, the manifest has "
            f"{list(manifest.card.input_shape)}: choose the manifest that the model was trained on, or make one with "
            "this image size"
        )
    if card.task != manifest.card.task:
        raise UsageError(f"the model is for {card.task}, the manifest for {manifest.card.task}: both must be for one")
    if card.classes != manifest.card.classes:
        raise UsageError(
            f"the model knows {len(card.classes)} classes and the manifest {len(manifest.card.classes)}, "
            "or in another order or with other names: both must have the same"
        )


def open_for(card: ModelCard, manifest: Manifest) -> Samples:
    """The manifest's samples, scaled as the model wants them."""
    from unlearning.data.sources import open_samples
    from unlearning.storage import open_store

    check_fit(card, manifest)
    return open_samples(manifest, scaling=card.scaling, objects=open_store)


def subset(samples: Samples, folder: str, name: str, manifest: Manifest) -> Samples:
    """The samples whose row numbers a selection artifact keeps under this name.

    Raises:
        DataError: When the artifact was made from another manifest.
    """
    import torch

    from unlearning.data.samples import Rows

    return Rows(samples, torch.from_numpy(selected(folder, manifest)[name].copy()))


def selected(folder: str, manifest: Manifest) -> dict[str, Any]:
    """The row numbers of a selection artifact, by name.

    Raises:
        DataError: When the artifact was made from another manifest.
    """
    from unlearning.data.selection import read_rows

    rows, meta = read_rows(folder)
    if meta.get("manifest") != manifest.digest:
        raise DataError("the selection was made from another manifest: the data set changed while the pipeline ran")
    return rows


def left_out(retain: str, manifest: Manifest) -> list[int]:
    """Training rows that a model retrained for this selection does not see: forgotten now, or before.

    Args:
        retain: The selection's artifact, as a folder.
        manifest: The data set.
    """
    import numpy as np

    rows: list[int] = np.setdiff1d(manifest.rows("train"), selected(retain, manifest)["retain"]).tolist()
    return rows


def scaling_without(retain: str, card: ModelCard, manifest: Manifest) -> Scaling:
    """How a model retrained on the retain rows scales its inputs: a table's columns by those rows alone.

    What the card says stays for images, texts and windows, and for classifiers, whose audit asks all models about one
    set of inputs: a channel's mean over all rows says nothing about some of them.

    Args:
        retain: The selection's artifact, as a folder.
        card: The original's.
        manifest: The data set.
    """
    from unlearning.data.sources import fit_scaling
    from unlearning.storage import open_store

    if card.task != "regression" or len(card.input_shape) != 1 or not card.mean:
        return card.scaling
    return fit_scaling(manifest, selected(retain, manifest)["retain"], objects=open_store)


def request_for(kind: str, targets: Sequence[Any]) -> ForgetRequest:
    """What a pipeline was asked to forget. Lists that pass through a pipeline turn 3 into 3.0, which means "3" again.

    Raises:
        UsageError: For an unknown kind, or no targets.
    """
    from unlearning.config import build
    from unlearning.data.selection import ForgetRequest

    ids = [str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in targets]
    return build(ForgetRequest, {"kind": kind, "ids": ids}, what="request")


def ids_at(address: str, manifest: Manifest, kind: str, *, seed: int) -> list[str]:
    """The ids of a request by row or person, which are kept in a file: parameters of a pipeline are no place for them.

    Args:
        address: A path or object-store address of a text file with one id on each line; or "share:0.04": that share of
            the training rows, or of the people in them, drawn at random, to try things out.
        manifest: The data set.
        kind: "sample" or "subject".
        seed: Of the draw.

    Raises:
        UsageError: For a share that is none, an empty file, or a data set that names no people.
        StorageError: When there is nothing at the address.
    """
    import numpy as np

    scheme, _, text = address.partition(":")
    if scheme == "share":
        try:
            share = float(text)
        except ValueError:
            share = 0.0
        if not 0 < share < 1:
            raise UsageError(f'ids: wanted a share above 0 and below 1, as in "share:0.04", got "{address}"')
        column = manifest.table[f"{kind}_id"].take(manifest.rows("train")).drop_null().unique().to_pylist()
        if not column:
            raise UsageError(f"ids: the manifest names no {kind}s: choose another request, or a manifest that does")
        drawn = np.random.default_rng([seed, SHARE]).permutation(len(column))
        return [column[row] for row in sorted(drawn[: max(1, round(share * len(column)))])]
    content = _content(address, "ids")
    try:
        ids = [line.strip() for line in content.decode("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UsageError(f"ids: {address} is not UTF-8 text: wanted one id on each line") from error
    if not ids:
        raise UsageError(f"ids: {address} names nobody: wanted one id on each line")
    return ids


def _content(address: str, what: str) -> bytes:
    from unlearning.storage import open_store, split

    if "://" in address:
        where, key = split(address)
        content = open_store(where).get(key)
    else:
        path = Path(address)
        if not path.is_file():
            raise UsageError(f'{what}: no file at "{address}": give a path or an address such as s3://bucket/key.txt')
        if path.stat().st_size > MOST_IDS_BYTES:
            raise UsageError(f"{what}: {address} is larger than {MOST_IDS_BYTES} bytes")
        content = path.read_bytes()
    return content


def rows_for(
    card: ModelCard, manifest: Manifest, kind: str, targets: Sequence[Any], *, retain_per_class: int, seed: int
) -> Selection:
    """The rows that a request means, once the model and the data fit each other.

    Rows that the model has forgotten before, as rows or with their class, are in none of its parts: to train on them as
    retain rows would bring them back.

    Raises:
        UsageError: When they do not, when the request cannot be served, or when all of it was served before.
    """
    from dataclasses import replace

    import numpy as np

    from unlearning.data.selection import select

    check_fit(card, manifest)
    chosen = select(manifest, request_for(kind, targets), retain_per_class=retain_per_class, seed=seed)
    again = [
        name for name in (manifest.card.classes[index] for index in chosen.forget_classes) if name in card.forgotten
    ]
    if again:
        raise UsageError(
            f"the model has already forgotten {', '.join(again)}: name others with forget=..., or begin with an older "
            "version by model=models:/NAME/VERSION"
        )
    gone = [manifest.card.classes.index(name) for name in card.forgotten]
    before = forgotten_before(card, manifest)
    targets_of = manifest.targets()
    left = {
        part: rows[~np.isin(targets_of[rows], gone) & ~np.isin(rows, before)]
        for part in ("forget", "retain", "available", "holdout_retain", "calibration")
        if len(rows := getattr(chosen, part))
    }
    if not len(left["forget"]):
        raise UsageError(f"the model has already forgotten all {len(chosen.forget)} rows that were asked for")
    if not len(left["retain"]) or not len(left["holdout_retain"]):
        raise UsageError(
            f"with {', '.join(card.forgotten)}, forgotten before, nothing would be left to retain: leave one class"
        )
    return replace(chosen, **left)


def forgotten_before(card: ModelCard, manifest: Manifest) -> RowNumbers:
    """The manifest's rows that the model has forgotten before, as rows; shape (N,).

    Raises:
        UsageError: When they were rows of another manifest, which cannot be found in this one.
    """
    from unlearning.data.selection import from_ranges

    if others := card.forgotten_rows.keys() - {manifest.digest}:
        raise UsageError(
            f"the model has forgotten rows of another manifest ({', '.join(key[:12] for key in sorted(others))}), and "
            "which of this one's those are is not known: training on them would bring them back; use that manifest"
        )
    return from_ranges(card.forgotten_rows.get(manifest.digest, ""), most=len(manifest))


def facts(card: ModelCard, forget: str, retain: str, manifest: Manifest) -> Facts:
    """What a method's defaults may look at, from the selection's artifacts."""
    from unlearning.data.selection import read_rows

    gone = read_rows(forget)[1]["forget_classes"]
    return facts_of(card, gone, manifest.targets()[selected(retain, manifest)["available"]])


def facts_of(card: ModelCard, forget_classes: Sequence[int], available: NDArray[Any]) -> Facts:
    """What a method's defaults may look at.

    Args:
        card: The model's.
        forget_classes: Class indices.
        available: Targets of the retain rows that the method may use: class indices, or values.
    """
    import numpy as np

    if card.task == "regression":
        return Facts.of(rows=len(available), input_shape=card.input_shape, recipe=card.recipe)
    return Facts.of(
        np.bincount(available).tolist(),
        input_shape=card.input_shape,
        forget_classes=len(forget_classes),
        recipe=card.recipe,
    )


def task_for(
    reads: Sequence[str],
    card: ModelCard,
    manifest: Manifest,
    forget: str,
    retain: str,
    holdout: str = "",
    *,
    every_row: bool = False,
) -> Task:
    """What a method is given besides the model: of the data only the rows that it reads, opened only if it reads any.

    Args:
        reads: The rows that it reads.
        card: The model's.
        manifest: The data set.
        forget: The selection's artifacts, as folders.
        retain: Likewise.
        holdout: Likewise; its calibration rows.
        every_row: Whether it is given all retain rows, also where the request bounds them.
    """
    import torch

    from unlearning.data.samples import Rows
    from unlearning.data.selection import read_rows
    from unlearning.methods.task import Task
    from unlearning.models.architectures import build as build_network
    from unlearning.training import build_seeded

    def blank(seed: int) -> nn.Module:
        return build_seeded(
            lambda: build_network(
                card.architecture, card.arguments, input_shape=card.input_shape, outputs=card.outputs
            ),
            seed,
        )

    places = {
        "forget": (forget, "forget"),
        "retain": (retain, "retain" if every_row else "available"),
        "calibration": (holdout, "calibration"),
    }
    samples = open_for(card, manifest) if reads else None
    there = {
        part: selected(folder, manifest)[name] for part, (folder, name) in places.items() if part in reads and folder
    }
    return Task(
        input_shape=card.input_shape,
        outputs=card.outputs,
        forget_classes=tuple(read_rows(forget)[1]["forget_classes"]),
        blank=blank,
        targets="values" if card.task == "regression" else "classes",
        **{
            part: Rows(samples, torch.from_numpy(rows.copy()))
            for part, rows in there.items()
            if samples is not None and len(rows)
        },
    )


def further_references(retrained: str, manifest: Manifest, into: Path) -> dict[str, str]:
    """Retrained models of the bank that differ from this one by their seed alone: name to folder; three at most.

    Args:
        retrained: Folder of the retrained model; one that is not of the bank, or holds none, has no others.
        manifest: The data set.
        into: Where to copy them to.
    """
    from dataclasses import replace

    from unlearning import references
    from unlearning.models.bundle import read_bundle

    if not has_model(retrained):
        return {}
    digest, kept = read_bundle(Path(retrained)).digest, store()
    known = references.of_manifest(kept, manifest.digest)
    ours = next((one.reference for one in known if one.digest == digest), None)
    if ours is None:
        return {}
    alike = [one for one in known if one.digest != digest and replace(one.reference, seed=ours.seed).key == ours.key]
    found = {}
    for number, one in enumerate(alike[:MOST_FURTHER], start=2):
        references.fetch(kept, one, into / str(number))
        found[f"retrained_{number}"] = str(into / str(number))
    return found


def overlap_of(model: str, forget: str, retain: str, holdout: str, manifest: Manifest) -> dict[str, float]:
    """Rows that are there twice, counted.

    Args:
        model: Folder of the unlearned model, whose scaling the inputs get.
        forget: The selection's artifacts, as folders.
        retain: Likewise.
        holdout: Likewise.
        manifest: The data set.

    Raises:
        DataError: When a row is in two of the sets.
    """
    import numpy as np

    from unlearning.data.overlap import overlap
    from unlearning.models.bundle import read_bundle

    unseen = selected(holdout, manifest)
    return overlap(
        open_for(read_bundle(Path(model)).card, manifest),
        selected(forget, manifest)["forget"],
        selected(retain, manifest)["retain"],
        np.concatenate([unseen["holdout_forget"], unseen["holdout_retain"]]),
    )


def has_model(folder: str) -> bool:
    """Whether a model artifact holds one: a retrained model is there only when it was asked for."""
    from unlearning.models.bundle import CARD

    return bool(folder) and Path(folder, CARD).is_file()


def some_of(retain: RowNumbers) -> RowNumbers:
    """Of the retained training rows those that models are measured on: the same for all of a run's stages."""
    import numpy as np

    if len(retain) <= MOST_RETAIN:
        return retain.copy()
    return np.sort(np.random.default_rng(0).permutation(retain)[:MOST_RETAIN])


def outputs_of(
    models: Mapping[str, str], forget: str, retain: str, holdout: str, manifest: Manifest
) -> tuple[dict[str, nn.Module], dict[str, dict[str, Outputs]]]:
    """The models, and one forward pass of each over every set that has rows; of the retained ones, over some.

    Args:
        models: Name to the folder of its artifact; those that hold no model are left out.
        forget: The selection's artifacts, as folders.
        retain: Likewise.
        holdout: Likewise.
        manifest: The data set.
    """
    import torch

    from unlearning.data.samples import Rows
    from unlearning.metrics.classification import Outputs
    from unlearning.models.bundle import load_bundle
    from unlearning.training import best_device, predict

    networks, outputs = {}, {}
    for name, folder in models.items():
        if not has_model(folder):
            continue
        networks[name], card = load_bundle(Path(folder))
        samples = open_for(card, manifest)
        sets = {
            "forget.train": subset(samples, forget, "forget", manifest),
            "retain.train": Rows(samples, torch.from_numpy(some_of(selected(retain, manifest)["retain"]))),
            "forget.test": subset(samples, holdout, "holdout_forget", manifest),
            "retain.test": subset(samples, holdout, "holdout_retain", manifest),
        }
        networks[name].to(best_device())
        outputs[name] = {
            key: Outputs(logits=predict(networks[name], rows), targets=rows.targets)
            for key, rows in sets.items()
            if len(rows)
        }
    return networks, outputs
