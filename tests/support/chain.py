"""The stages of the deletion pipeline called one after another, with real artifacts in a folder."""

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from kfp import dsl

from unlearning.config import as_plain
from unlearning.data.samples import Rows
from unlearning.data.sources import make_manifest
from unlearning.models.architectures import build
from unlearning.models.bundle import Bundle, save_bundle
from unlearning.training import Recipe, build_seeded, generator, train
from unlearning_components.attack import attack
from unlearning_components.audit import audit
from unlearning_components.distill import distill
from unlearning_components.evaluate import evaluate
from unlearning_components.gate import gate
from unlearning_components.impair import impair
from unlearning_components.load_model import load_model
from unlearning_components.promote import promote
from unlearning_components.repair import repair
from unlearning_components.retrain import retrain
from unlearning_components.select import select
from unlearning_components.surroundings import open_for
from unlearning_components.synthesize import synthesize
from unlearning_pipelines.deployment import card_to_train

COMPONENTS = {
    "load_model": load_model,
    "select": select,
    "synthesize": synthesize,
    "impair": impair,
    "repair": repair,
    "distill": distill,
    "evaluate": evaluate,
    "attack": attack,
    "gate": gate,
    "promote": promote,
}
OPTIONAL = {"retrain": retrain, "audit": audit}
"""Stages that pass unless asked for; what they make is optional to those after them."""

DEFAULTS: Mapping[str, Any] = {
    "model": "models:/tiny@champion",
    "method": "unsir",
    "request": "class",
    "pipeline": "delete_class",
    "job": "test/1",
    "targets": ["two"],
    "retain_per_class": 20,
    "seed": 0,
    "settings": {"noise_steps": 4, "noise_batch": 16},
    "policy": {  # wide: these runs are too short to forget well, and what they reach is not what is tested
        "forget_accuracy.test.unlearned": {"high": 1},
        "forget_accuracy.train.unlearned": {"high": 1},
        "membership_auc.entropy.forget.unlearned": {"low": 0, "high": 1},
        "membership_auc.loss.forget.unlearned": {"low": 0, "high": 1},
        "retain_accuracy_drop.test": {"high": 1},
        "worst_class_drop.test": {"high": 1},
        "finding.randomised": "none",
        "finding.over_forgotten": "none",
    },
    "register_as": "tiny",
}
CANARY = "canary-7f3a"
PERSON = "person-91c4"


class Chain:
    """One run of the pipeline, stage by stage; a second object on the same folder goes on where the first one was.

    Args:
        folder: Of the artifacts.
        **parameters: Over `DEFAULTS`; `manifest` is needed.
    """

    def __init__(self, folder: Path, **parameters: Any) -> None:
        self.folder = folder
        self.parameters: dict[str, Any] = {**DEFAULTS, **parameters}
        self.outputs: dict[str, Any] = {}
        self.artifacts: dict[str, dsl.Artifact] = {}
        if self._state.exists():
            state = json.loads(self._state.read_text())
            self.outputs = state["outputs"]
            kinds = {kind.schema_title: kind for kind in (dsl.Model, dsl.Dataset, dsl.Artifact, dsl.HTML, dsl.Markdown)}
            kinds |= {kind.schema_title: kind for kind in (dsl.Metrics, dsl.ClassificationMetrics)}
            for name, (title, uri, metadata) in state["artifacts"].items():
                self.artifacts[name] = kinds[title](name=name, uri=uri, metadata=metadata)

    @property
    def run(self) -> str:
        """The pipeline's MLflow run."""
        return str(self.outputs["load_model"])

    def call(self, stage: str, **changed: Any) -> Any:
        """What the stage returns, called as KFP's executor calls it; `changed` replaces some of its inputs."""
        function = {**COMPONENTS, **OPTIONAL}[stage].python_func
        made: dict[str, dsl.Artifact] = {}
        values: dict[str, Any] = {}
        for name, parameter in inspect.signature(function).parameters.items():
            optional = type(None) in get_args(parameter.annotation)
            annotation = get_args(parameter.annotation)[0] if optional else parameter.annotation
            kind, *annotations = get_args(annotation) or (annotation,)
            if annotations and annotations[0].__name__ == "OutputAnnotation":
                path = self.folder / stage / name
                path.parent.mkdir(parents=True, exist_ok=True)
                made[name] = values[name] = kind(name=name, uri=str(path))
            elif annotations:
                wanted = "repaired" if (stage, name) == ("distill", "model") else name
                if wanted in self.artifacts or not optional:
                    values[name] = self.artifacts[wanted]
            elif name == "run":
                values[name] = self.run
            elif name in self.parameters or parameter.default is parameter.empty:
                values[name] = self.parameters.get(name)
        result = function(**{**values, **changed})
        for name, artifact in made.items():
            self.artifacts[f"{stage}.{name}" if name == "metrics" else name] = artifact
        self.outputs[stage] = result
        kept = {name: (one.schema_title, one.uri, one.metadata) for name, one in self.artifacts.items()}
        self._state.write_text(json.dumps({"outputs": self.outputs, "artifacts": kept}))
        return result

    def call_all(self) -> "Chain":
        """The chain, after all its stages."""
        for stage in COMPONENTS:
            self.call(stage)
        return self

    @property
    def _state(self) -> Path:
        return self.folder / "state.json"


def write_npz(path: Path, *, rows: int = 240, side: int = 8) -> str:
    """The source of a small, easy data set of three classes whose rows and subjects have telling ids."""
    draw = np.random.default_rng(5)
    targets = np.arange(rows) % 3
    inputs = draw.integers(0, 90, (rows, 1, side, side))
    for row, target in enumerate(targets):
        inputs[row, 0, 2 * target : 2 * target + 2] += 150
    np.savez(
        path,
        inputs=inputs.astype(np.uint8),
        targets=targets,
        classes=np.array(["one", "two", "three"]),
        sample_id=np.array([f"{CANARY}-{row:04d}" for row in range(rows)]),
        subject_id=np.array([f"{PERSON}-{row // 4:04d}" for row in range(rows)]),
    )
    return f"npz:{path}"


def tiny_bundle(source: str, folder: Path) -> Bundle:
    """A small network trained on a source in a second or two."""
    data = make_manifest(source)
    recipe = Recipe(epochs=6, learning_rate=0.01, batch_size=32)
    card = card_to_train(data, "allcnn", {"width": 0.0625}, as_plain(recipe))
    network = build_seeded(
        lambda: build(card.architecture, card.arguments, input_shape=card.input_shape, outputs=card.outputs), 0
    )
    rows = Rows(open_for(card, data), torch.from_numpy(data.rows("train")))
    train(network, rows, recipe, generator=generator(0, "train"))
    return save_bundle(network, card, folder)
