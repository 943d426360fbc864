"""A first model in the registry: trained from a recipe, or imported from what people have."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearning.config import as_plain, build
from unlearning.errors import ModelError, UsageError
from unlearning_components.surroundings import fetch_manifest, open_for, stage, store, tracker
from unlearning_pipelines.preflight import check_registered, check_run, check_services, claim_home, known

if TYPE_CHECKING:
    from unlearning.data.manifest import Manifest
    from unlearning.models.bundle import ModelCard

DIGITS_RECIPE = {"epochs": 15, "learning_rate": 0.005, "batch_size": 64}
"""What `unlearn train` does when nothing is said, on the bundled digits: above 97% on held-out rows in seconds."""

DIGITS: Mapping[str, Any] = {
    "manifest": "digits",
    "architecture": "allcnn",
    "arguments": {"width": 0.25},
    "recipe": DIGITS_RECIPE,
}
"""The bundled model of the demo and of the pipelines' defaults, as `train_model` takes it."""


def card_to_train(
    data: Manifest, architecture: str, arguments: Mapping[str, Any], recipe: Mapping[str, Any]
) -> ModelCard:
    """The card of a model that is yet to be trained on a manifest."""
    from unlearning.models.bundle import ModelCard

    return ModelCard(
        architecture=architecture,
        arguments=dict(arguments),
        input_shape=data.card.input_shape,
        outputs=len(data.card.classes),
        classes=data.card.classes,
        mean=data.card.mean,
        std=data.card.std,
        manifest_sha256=data.digest,
        recipe=dict(recipe),
    )


def train_model(
    *,
    name: str,
    manifest: str,
    architecture: str,
    arguments: Mapping[str, Any],
    recipe: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Train a network on a manifest's training rows, and register it as the champion of its name.

    Args:
        name: Of the registered model.
        manifest: A data source such as "digits", or the address of a .parquet manifest.
        architecture: From the allow-list.
        arguments: The architecture's settings.
        recipe: Fields of `unlearning.training.Recipe`.
        seed: Of the initial weights and the order; the same seed gives the same model.

    Returns:
        model_uri, name, version, digest and accuracy on training and held-out rows, as JSON types.
    """
    import torch

    from unlearning.data.samples import Rows
    from unlearning.metrics.accuracy import accuracy
    from unlearning.models.architectures import build as build_network
    from unlearning.models.bundle import save_bundle
    from unlearning.progress import shown
    from unlearning.tracking import check_name, promote_bundle
    from unlearning.training import Recipe, best_device, build_seeded, generator, predict, train

    follow = build(Recipe, recipe, what="recipe")
    check_name(name)
    check_services()
    data = fetch_manifest(manifest)
    card = card_to_train(data, architecture, arguments, {**as_plain(follow), "seed": seed})
    network = build_seeded(
        lambda: build_network(architecture, arguments, input_shape=card.input_shape, outputs=card.outputs), seed
    )
    samples = open_for(card, data)
    claim_home()
    runs = tracker()
    runs.prepare()
    parameters = {"manifest": manifest, "architecture": architecture, **arguments, **as_plain(follow), "seed": seed}
    run = runs.open_run("train", f"train/{uuid.uuid4()}", parameters, {"unlearning.pipeline": "train"})
    with stage(run, "train") as record, shown() as progress, tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
        record.dataset(data.card.name, data.digest, "training", rows=len(data), source=data.card.source)
        rows = {split: Rows(samples, torch.from_numpy(data.rows(split))) for split in ("train", "test")}
        losses = train(
            network.to(best_device()), rows["train"], follow, generator=generator(seed, "train"), progress=progress
        )
        reached = {f"accuracy.{split}": accuracy(predict(network, part), part.targets) for split, part in rows.items()}
        record.history({"train_loss": losses})
        record.summary(reached)
        bundle = save_bundle(network.cpu(), card, Path(folder, "bundle"))
        result = promote_bundle(runs, store(), bundle, name=name, run_id=run, outcome="pass")
    runs.close(run, "FINISHED")
    return {**result, **reached, "run": run}


def import_model(
    source: str,
    *,
    name: str,
    manifest: str,
    architecture: str,
    arguments: Mapping[str, Any],
    mean: Sequence[float],
    std: Sequence[float],
    fine_tuned: bool,
) -> dict[str, Any]:
    """Make a bundle of somebody's weights, and register it as the champion of its name.

    Args:
        source: A .safetensors, .pt, .pth or .th file, or models:/NAME/VERSION in MLflow.
        name: Of the registered model.
        manifest: What it was trained on: gives the input shape and the classes.
        architecture: From the allow-list.
        arguments: The architecture's settings.
        mean: The model's own normalisation, of values in [0, 1]; empty: the manifest's.
        std: Likewise.
        fine_tuned: Whether it was fine-tuned from pretrained weights: methods then use gentler rates.

    Returns:
        model_uri, name, version and digest, as JSON types.
    """
    from unlearning.models.bundle import WEIGHTS, ModelCard
    from unlearning.models.importing import find_weights, import_checkpoint
    from unlearning.tracking import Registry, check_name, promote_bundle

    check_name(name)
    check_services()
    check_registered(source)
    data = fetch_manifest(manifest)
    if len(mean) != len(std):
        raise UsageError(f"wanted as many values for --mean as for --std, got {len(mean)} and {len(std)}")
    card = ModelCard(
        architecture=architecture,
        arguments=dict(arguments),
        input_shape=data.card.input_shape,
        outputs=len(data.card.classes),
        classes=data.card.classes,
        mean=tuple(mean) or data.card.mean,
        std=tuple(std) or data.card.std,
        manifest_sha256=data.digest,
        recipe={"fine_tuned": True} if fine_tuned else None,
    )
    runs = tracker()
    with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
        path = Path(source)
        if source.startswith("models:/"):
            path = find_weights(Registry(runs).fetch(source, Path(folder, "fetched")))
            path = path / WEIGHTS if path.is_dir() else path
        elif not path.is_file():
            raise ModelError(f"no weights at {source}: give a .safetensors, .pt, .pth or .th file, or models:/NAME/3")
        bundle = import_checkpoint(path, card, Path(folder, "bundle"))
        claim_home()
        runs.prepare()
        run = runs.open_run("import", f"import/{uuid.uuid4()}", {"architecture": architecture}, {})
        with stage(run, "import"):
            result = promote_bundle(runs, store(), bundle, name=name, run_id=run, outcome="pass")
        runs.close(run, "FINISHED")
    return result


def check_before_training(pipeline: str, parameters: Mapping[str, Any]) -> None:
    """Nothing, when a pipeline with these parameters can start once the digits classifier is trained.

    Args:
        pipeline: Its name.
        parameters: All of the pipeline's; its model is the one to be trained.

    Raises:
        UnlearningError: As for `check_run`.
    """
    digits = fetch_manifest(DIGITS["manifest"])
    card = card_to_train(digits, DIGITS["architecture"], DIGITS["arguments"], DIGITS["recipe"])
    check_run(pipeline, parameters, card=card)


def ensure_default_model(pipeline: str, parameters: Mapping[str, Any]) -> None:
    """Train the bundled digits classifier when the pipeline's default model is not there yet.

    Args:
        pipeline: Its name.
        parameters: All of the pipeline's, its model the default one; checked before anything is trained.

    Raises:
        UnlearningError: As for `check_run`.
    """
    uri = parameters["model"]
    if known(uri):
        return
    check_before_training(pipeline, parameters)
    print(f"no model at {uri} yet: training the bundled digits classifier first", flush=True)
    train_model(name=uri.removeprefix("models:/").partition("@")[0], **DIGITS, seed=0)
