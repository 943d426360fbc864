"""What every stage needs around the library: settings in force, models and manifests by address, tracked runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearning.errors import DataError, UsageError
from unlearning.methods import Facts
from unlearning.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from unlearning.data.manifest import Manifest
    from unlearning.data.samples import Samples, TensorSamples
    from unlearning.data.selection import ForgetRequest, Selection
    from unlearning.methods.unsir import Noise
    from unlearning.metrics.classification import Outputs
    from unlearning.models.bundle import Bundle, ModelCard
    from unlearning.storage import ObjectStore
    from unlearning.tracking import StageRun, Tracker

MOST_JSON_BYTES = 64 * 1024 * 1024


def tracker() -> Tracker:
    """MLflow as the environment says."""
    from unlearning.tracking import Tracker

    settings = Settings()
    return Tracker(settings.tracking_uri, settings.experiment, settings.artifacts_uri, settings.mlflow_timeout)


def store() -> ObjectStore:
    """The object store as the environment says."""
    from unlearning.storage import open_store

    return open_store(Settings().store_uri)


@contextmanager
def stage(run: str, name: str, *, began: float | None = None) -> Iterator[StageRun]:
    """One stage's MLflow run inside the pipeline's; FAILED, as the pipeline's, when the body raises."""
    with tracker().stage(run, name, began=began) as record:
        yield record


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
        return make_manifest(uri)
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
    if card.classes != manifest.card.classes:
        raise UsageError(
            f"the model knows {len(card.classes)} classes and the manifest {len(manifest.card.classes)}, "
            "or in another order or with other names: both must have the same"
        )


def open_for(card: ModelCard, manifest: Manifest) -> TensorSamples:
    """The manifest's samples, normalised as the model wants them."""
    from unlearning.data.samples import TensorSamples
    from unlearning.data.sources import open_samples

    check_fit(card, manifest)
    samples = open_samples(manifest)
    return TensorSamples(samples.inputs, samples.targets, mean=card.mean or (0.0,), std=card.std or (1.0,))


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


def request_for(kind: str, targets: Sequence[Any]) -> ForgetRequest:
    """What a pipeline was asked to forget. Lists that pass through a pipeline turn 3 into 3.0, which means "3" again.

    Raises:
        UsageError: For an unknown kind, or no targets.
    """
    from unlearning.config import build
    from unlearning.data.selection import ForgetRequest

    ids = [str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in targets]
    return build(ForgetRequest, {"kind": kind, "ids": ids}, what="request")


def rows_for(
    card: ModelCard, manifest: Manifest, kind: str, targets: Sequence[Any], *, retain_per_class: int, seed: int
) -> Selection:
    """The rows that a request means, once the model and the data fit each other.

    Rows of classes that the model has forgotten before are in none of its parts: to train on them as retain rows would
    bring them back.

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
        raise UsageError(f"the model has already forgotten {', '.join(again)}: nothing to do for them")
    gone = [manifest.card.classes.index(name) for name in card.forgotten]
    targets_of = manifest.targets()
    left = {
        part: rows[~np.isin(targets_of[rows], gone)]
        for part in ("retain", "available", "holdout_retain", "calibration")
        if len(rows := getattr(chosen, part))
    }
    if not len(left["retain"]) or not len(left["holdout_retain"]):
        raise UsageError(
            f"with {', '.join(card.forgotten)}, forgotten before, nothing would be left to retain: leave one class"
        )
    return replace(chosen, **left)


def facts(card: ModelCard, forget: str, retain: str, manifest: Manifest) -> Facts:
    """What a method's defaults may look at, from the selection's artifacts."""
    from unlearning.data.selection import read_rows

    gone = read_rows(forget)[1]["forget_classes"]
    return facts_of(card, gone, manifest.targets()[selected(retain, manifest)["available"]])


def facts_of(card: ModelCard, forget_classes: Sequence[int], available: NDArray[np.int64]) -> Facts:
    """What a method's defaults may look at.

    Args:
        card: The model's.
        forget_classes: Class indices.
        available: Targets of the retain rows that the method may use.
    """
    import numpy as np

    counts = np.bincount(available)
    recipe = card.recipe or {}
    return Facts(
        retain_rows=len(available),
        retain_per_class=int(np.median(counts[counts > 0])),
        input_size=int(np.prod(card.input_shape)),
        forget_classes=len(forget_classes),
        fine_tuned=bool(recipe.get("fine_tuned", False)),
        learning_rate=float(recipe["learning_rate"]) if recipe.get("optimiser") == "adam" else 0.0,
    )


def write_noise(noise: Noise, folder: str) -> None:
    """Learned noise as safetensors, and its history as JSON."""
    from safetensors.torch import save_file

    Path(folder).mkdir(parents=True, exist_ok=True)
    tensors = {"images": noise.images, "classes": noise.classes}
    tensors |= {f"buffer.{name}": buffer for name, buffer in noise.buffers.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(folder, "noise.safetensors"))
    write_json(Path(folder, "noise.json"), {"objective": noise.objective})


def read_noise(folder: str) -> Noise:
    """The noise that synthesize wrote.

    Raises:
        ModelError: When the file is damaged.
    """
    from unlearning.methods.unsir import Noise
    from unlearning.models.bundle import check_safetensors, load_safetensors

    path = Path(folder, "noise.safetensors")
    check_safetensors(path)
    tensors = load_safetensors(path)
    return Noise(
        images=tensors["images"],
        classes=tensors["classes"],
        objective=read_json(Path(folder, "noise.json"))["objective"],
        buffers={name.removeprefix("buffer."): t for name, t in tensors.items() if name.startswith("buffer.")},
    )


def save_child(model: nn.Module, card: ModelCard, folder: str, losses: Sequence[float]) -> dict[str, str]:
    """Writes a trained model as a bundle, and gives the artifact's metadata."""
    from unlearning.models.bundle import save_bundle

    bundle = save_bundle(model.cpu(), card, Path(folder))
    return {"digest": bundle.digest, "architecture": card.architecture, "steps": str(len(losses))}


def forgotten_card(
    original: Bundle, forget: str, manifest: Manifest, method: str, config: object, seed: int
) -> ModelCard:
    """The original's card, with its parent, the method, and what is forgotten now."""
    from dataclasses import replace

    from unlearning.config import as_plain
    from unlearning.data.selection import read_rows

    gone = [manifest.card.classes[index] for index in read_rows(forget)[1]["forget_classes"]]
    return replace(
        original.card,
        parent=original.digest,
        forgotten=tuple(dict.fromkeys([*original.card.forgotten, *gone])),
        method={"name": method, "settings": as_plain(config), "seed": seed},
        made_by="",
        weights_sha256="",
        weights_bytes=0,
    )


def outputs_of_both(
    original: str, unlearned: str, forget: str, retain: str, holdout: str, manifest: Manifest
) -> tuple[dict[str, nn.Module], dict[str, dict[str, Outputs]]]:
    """Both models, and one forward pass of each over every set that has rows."""
    from unlearning.metrics.classification import Outputs
    from unlearning.models.bundle import load_bundle
    from unlearning.training import best_device, predict

    models, outputs = {}, {}
    for name, folder in (("original", original), ("unlearned", unlearned)):
        models[name], card = load_bundle(Path(folder))
        samples = open_for(card, manifest)
        sets = {
            "forget.train": subset(samples, forget, "forget", manifest),
            "retain.train": subset(samples, retain, "retain", manifest),
            "forget.test": subset(samples, holdout, "holdout_forget", manifest),
            "retain.test": subset(samples, holdout, "holdout_retain", manifest),
        }
        models[name].to(best_device())
        outputs[name] = {
            key: Outputs(logits=predict(models[name], rows), targets=rows.targets)
            for key, rows in sets.items()
            if len(rows)
        }
    return models, outputs


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """One JSON file, sorted, finite numbers only; the folder is made when missing."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object that another stage wrote.

    Raises:
        DataError: When the file is missing, too large or no JSON object.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MOST_JSON_BYTES:
            raise DataError(f"{path.name} of another stage is larger than {MOST_JSON_BYTES} bytes")
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} of another stage cannot be read ({error}): run the pipeline again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path.name} of another stage is no JSON object: run the pipeline again")
    return content
