"""What one stage leaves for another: models with their cards, learned noise, JSON, and how far a long stage came."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearning.errors import DataError
from unlearning_components.surroundings import forgotten_before, store

if TYPE_CHECKING:
    from torch import nn

    from unlearning.data.manifest import Manifest
    from unlearning.methods.noise import Noise
    from unlearning.metrics.classification import Outputs
    from unlearning.models.bundle import Bundle, ModelCard

MOST_JSON_BYTES = 64 * 1024 * 1024
NOISE = ("images", "classes", "proxies", "proxy_classes", "probes")
"""The tensors of learned noise, as its file has them."""
NUMBER = "number."
"""Before the names of a checkpoint's numbers, in its file."""
_OUTPUTS, _TASK = "outputs.safetensors", "task.json"
_OF_OUTPUTS = re.compile(r"([a-z][a-z_0-9]{0,39})\.((?:forget|retain)\.(?:train|test))\.(logits|targets)")


def pass_on(model: str, to: str) -> dict[str, str]:
    """A bundle copied for the next stage, by a stage that its method does not have; the artifact's metadata."""
    from unlearning.models.bundle import read_bundle
    from unlearning.storage import download_folder, open_store

    source = Path(model).absolute()
    download_folder(open_store(str(source.parent)), source.name, Path(to))
    bundle = read_bundle(Path(to))
    return {"digest": bundle.digest, "architecture": bundle.card.architecture, "steps": "0"}


def save_child(model: nn.Module, card: ModelCard, folder: str, steps: int) -> dict[str, str]:
    """Writes a trained model as a bundle, and gives the artifact's metadata."""
    from unlearning.models.bundle import save_bundle

    bundle = save_bundle(model.cpu(), card, Path(folder))
    return {"digest": bundle.digest, "architecture": card.architecture, "steps": str(steps)}


def forgotten_card(
    original: Bundle, forget: str, manifest: Manifest, method: str, config: object, seed: int
) -> ModelCard:
    """The original's card, with its parent, the method, and what is forgotten now."""
    from dataclasses import replace

    import numpy as np

    from unlearning.config import as_plain
    from unlearning.data.selection import as_ranges, read_rows

    card = original.card
    rows, meta = read_rows(forget)
    gone = [manifest.card.classes[index] for index in meta["forget_classes"]]
    forgotten_rows = dict(card.forgotten_rows)
    if not gone:
        every = np.concatenate([rows["forget"], forgotten_before(card, manifest)])
        forgotten_rows[manifest.digest] = as_ranges(every)
    return replace(
        card,
        parent=original.digest,
        forgotten=tuple(dict.fromkeys([*card.forgotten, *gone])),
        forgotten_rows=forgotten_rows,
        method={"name": method, "settings": as_plain(config), "seed": seed},
        made_by="",
        weights_sha256="",
        weights_bytes=0,
    )


def write_noise(noise: Noise, folder: str) -> None:
    """Learned noise as safetensors, and its history as JSON."""
    from safetensors.torch import save_file

    Path(folder).mkdir(parents=True, exist_ok=True)
    tensors = {name: getattr(noise, name) for name in NOISE}
    tensors |= {f"buffer.{name}": buffer for name, buffer in noise.buffers.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, Path(folder, "noise.safetensors"))
    objectives = {"objective": noise.objective, "proxy_objective": noise.proxy_objective}
    write_json(Path(folder, "noise.json"), objectives)


def read_noise(folder: str) -> Noise:
    """The noise that synthesize wrote.

    Raises:
        ModelError: When the file is damaged.
    """
    from unlearning.methods.noise import Noise
    from unlearning.models.bundle import check_safetensors, load_safetensors

    path = Path(folder, "noise.safetensors")
    check_safetensors(path)
    tensors = load_safetensors(path)
    learned: dict[str, Any] = {name: tensors[name] for name in NOISE} | read_json(Path(folder, "noise.json"))
    return Noise(
        **learned,
        buffers={name.removeprefix("buffer."): t for name, t in tensors.items() if name.startswith("buffer.")},
    )


def write_outputs(
    outputs: Mapping[str, Mapping[str, Outputs]], folder: str, *, task: str, levels: Sequence[float]
) -> None:
    """What models answered on the same rows, in the rows' order and without their numbers, as safetensors.

    Args:
        outputs: Of each model, by set.
        folder: Made when missing.
        task: "classification" or "regression".
        levels: What a regressor's outputs are quantiles of; empty when they are the predictions themselves.
    """
    from safetensors.torch import save_file

    Path(folder).mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{model}.{name}.{part}": getattr(one, part).contiguous()
        for model, sets in outputs.items()
        for name, one in sets.items()
        for part in ("logits", "targets")
    }
    save_file(tensors, Path(folder, _OUTPUTS))
    about = {"task": task, "levels": list(levels), "sha256": _sha256(Path(folder, _OUTPUTS))}
    write_json(Path(folder, _TASK), about)


def read_outputs(folder: str) -> tuple[dict[str, dict[str, Outputs]], str, tuple[float, ...]]:
    """The outputs that `write_outputs` wrote, the task and the levels.

    Raises:
        DataError: When they are not as they were written, or do not fit together.
        ModelError: When the file is no safetensors file, or too large.
    """
    from unlearning.metrics.classification import Outputs, check_sets
    from unlearning.models.bundle import check_safetensors, load_safetensors

    path, about = Path(folder, _OUTPUTS), read_json(Path(folder, _TASK))
    try:
        task, levels, digest = str(about["task"]), tuple(map(float, about["levels"])), str(about["sha256"])
        check_safetensors(path)
        if _sha256(path) != digest:
            raise ValueError("the file was changed or damaged")
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for name, tensor in load_safetensors(path).items():
            if not (named := _OF_OUTPUTS.fullmatch(name)):
                raise ValueError(f"{name[:60]!a} names no outputs")
            model, rows, part = named.groups()
            found.setdefault(model, {}).setdefault(rows, {})[part] = tensor
        outputs = {
            model: {rows: Outputs(**_fitting(parts, task)) for rows, parts in sets.items()}
            for model, sets in found.items()
        }
        if not {"original", "unlearned"} <= outputs.keys():
            raise ValueError(f"they are of {', '.join(outputs) or 'no model'}")
        check_sets(outputs)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"the outputs of the models cannot be read ({error}): run the pipeline again") from error
    return outputs, task, levels


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fitting(parts: dict[str, Any], task: str) -> dict[str, Any]:
    """Logits and targets, when they are of as many rows and of the kinds that the task has.

    Raises:
        ValueError: When they are not.
    """
    logits, targets = parts["logits"], parts["targets"]
    shapes = f"outputs {tuple(logits.shape)} and targets {tuple(targets.shape)}"
    if not logits.dim() or not targets.dim() or not 0 < len(logits) == len(targets):
        raise ValueError(f"{shapes} are not of the same rows")
    if task == "classification":
        if logits.dim() != 2 or targets.dim() != 1 or targets.is_floating_point():
            raise ValueError(f"{shapes} are no classifier's")
        if not 0 <= int(targets.min()) <= int(targets.max()) < logits.shape[1]:
            raise ValueError(f"targets lie outside of {logits.shape[1]} classes")
    return parts


class Checkpoints:
    """How far a long stage came, in the object store: a retried stage of the same pipeline run goes on from there.

    Args:
        run: The pipeline's.
        stage: Its name.
        inputs: All that its result depends on, as JSON types.
        every: Seconds between two writes, at least.
    """

    def __init__(self, run: str, stage: str, inputs: Mapping[str, Any], *, every: float) -> None:
        digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
        self._store, self._prefix = store(), f"checkpoints/{run}/{stage}"
        self._key = f"{self._prefix}/{digest}.safetensors"
        self._every, self._written = every, time.monotonic()

    def last(self) -> dict[str, Any] | None:
        """What was last written, None when there is nothing.

        Raises:
            ModelError: When it is damaged.
        """
        from unlearning.models.bundle import check_safetensors, load_safetensors

        if not self._store.exists(self._key):
            return None
        with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
            path = Path(folder, "checkpoint.safetensors")
            self._store.download(self._key, path)
            check_safetensors(path)
            state: dict[str, Any] = load_safetensors(path)
        return {
            name.removeprefix(NUMBER): tensor.item() if name.startswith(NUMBER) else tensor
            for name, tensor in state.items()
        }

    def write(self, state: Mapping[str, Any]) -> None:
        """Keep this state, of tensors and numbers, instead of the last one, unless that was written a moment ago."""
        import torch
        from safetensors.torch import save

        if time.monotonic() - self._written < self._every:
            return
        tensors = {
            name if isinstance(value, torch.Tensor) else NUMBER + name: torch.as_tensor(
                value, dtype=torch.float64 if isinstance(value, float) else None
            ).contiguous()
            for name, value in state.items()
        }
        self._store.put(self._key, save(tensors))
        self._written = time.monotonic()

    def clear(self) -> None:
        """Drop it: the stage has ended."""
        self._store.delete(self._prefix)


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
