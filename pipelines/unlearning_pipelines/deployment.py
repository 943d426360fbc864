"""A first model in the registry: trained from a recipe, or imported from what people have."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearning.config import as_plain, build
from unlearning.errors import ModelError, UsageError
from unlearning_components.bookkeeping import anything_waits
from unlearning_components.surroundings import fetch_manifest, open_for, stage, store, tracker
from unlearning_pipelines.preflight import check_registered, check_run, check_services, claim_home, known

if TYPE_CHECKING:
    from unlearning.data.card import DataCard
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
"""The bundled classifier of the demo and of the pipelines' defaults, as `train_model` takes it."""

DIABETES: Mapping[str, Any] = {
    "manifest": "diabetes",
    "architecture": "mlp",
    "arguments": {"hidden": [64, 64]},
    "recipe": {"epochs": 60, "learning_rate": 0.005, "batch_size": 32, "loss": "l1"},
}
"""The bundled regressor, likewise: how far a disease goes in a year, from ten measurements."""

BUNDLED: Mapping[str, Mapping[str, Any]] = {"digits": DIGITS, "diabetes": DIABETES}
"""Registered name to what is trained under it when a pipeline's default model is not there yet."""


def card_to_train(
    data: Manifest, architecture: str, arguments: Mapping[str, Any], recipe: Mapping[str, Any]
) -> ModelCard:
    """The card of a model that is yet to be trained on a manifest."""
    from unlearning.models.bundle import ModelCard

    outputs = outputs_for(data.card, recipe)
    return ModelCard(
        architecture=architecture,
        arguments=dict(arguments),
        outputs=outputs,
        recipe=dict(recipe),
        fill=data.card.fill,
        mean=data.card.mean,
        std=data.card.std,
        **_of_data(data),
    )


def _of_data(data: Manifest) -> dict[str, Any]:
    """What a model's card takes from the manifest that the model is for."""
    taken = ("input_shape", "classes", "task", "features", "target_name", "target_unit")
    return {"manifest_sha256": data.digest, **{name: getattr(data.card, name) for name in taken}}


def outputs_for(data: DataCard, recipe: Mapping[str, Any]) -> int:
    """How wide a network's output is: a logit for each class, or each value to predict once or by quantile.

    Raises:
        UsageError: When the recipe's loss is not one for this data.
    """
    loss = recipe.get("loss", "cross_entropy")
    if (data.task == "regression") == (loss == "cross_entropy"):
        fitting = "l1, mse or quantile" if data.task == "regression" else "cross_entropy"
        raise UsageError(f"the manifest is for {data.task}, so the recipe's loss must be {fitting}, got {loss}")
    return len(data.classes) or data.horizon * max(1, len(recipe.get("quantiles", ())))


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
        architecture: From the allow-list; empty: one that suits the data, by `unlearning.models.starting_points`.
        arguments: The architecture's settings; what is left out suits the data where the architecture is theirs.
        recipe: Fields of `unlearning.training.Recipe`; what is left out suits the data.
        seed: Of the initial weights and the order; the same seed gives the same model.

    Returns:
        model_uri, name, version, digest, and accuracy or mean absolute error on training and held-out rows, as JSON
        types: "accuracy.test", "mae.test".
    """
    import torch

    from unlearning.data.samples import Rows
    from unlearning.losses import point
    from unlearning.metrics.accuracy import accuracy
    from unlearning.metrics.regression import mae
    from unlearning.models.architectures import build as build_network
    from unlearning.models.bundle import save_bundle
    from unlearning.models.starting_points import starting_point
    from unlearning.progress import shown
    from unlearning.tracking import check_name, promote_bundle
    from unlearning.training import Recipe, best_device, build_seeded, generator, predict, train

    check_name(name)
    check_services()
    data = fetch_manifest(manifest)
    start = starting_point(data.card, len(data.rows("train")))
    arguments = {**(start.arguments if architecture in ("", start.architecture) else {}), **arguments}
    architecture = architecture or start.architecture
    follow = build(Recipe, {**start.recipe, **recipe}, what="recipe")
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
        outputs = {split: (predict(network, part), part.targets) for split, part in rows.items()}
        if data.card.task == "regression":
            reached = {
                f"mae.{split}": mae(point(y, follow.quantiles), values) for split, (y, values) in outputs.items()
            }
        else:
            reached = {f"accuracy.{split}": accuracy(*pair) for split, pair in outputs.items()}
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
        outputs=len(data.card.classes) or data.card.horizon,
        recipe={"fine_tuned": True} if fine_tuned else None,
        fill=data.card.fill,
        mean=tuple(mean) or data.card.mean,
        std=tuple(std) or data.card.std,
        **_of_data(data),
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
    """Nothing, when a pipeline with these parameters can start once its bundled model is trained.

    Args:
        pipeline: Its name.
        parameters: All of the pipeline's; its model is the one to be trained.

    Raises:
        UnlearningError: As for `check_run`.
    """
    chosen = _bundled(default_model(parameters))
    data = fetch_manifest(chosen["manifest"])
    card = card_to_train(data, chosen["architecture"], chosen["arguments"], chosen["recipe"])
    check_run(pipeline, parameters, card=card)


def ensure_default_model(pipeline: str, parameters: Mapping[str, Any]) -> None:
    """Train the bundled model when the pipeline's default one is not there yet.

    Args:
        pipeline: Its name.
        parameters: All of the pipeline's, its model the default one; checked before anything is trained. For a batch of
            requests it is trained only when some wait.

    Raises:
        UnlearningError: As for `check_run`.
    """
    uri = default_model(parameters)
    if known(uri) or ("model" not in parameters and not anything_waits(parameters["name"])):
        return
    check_before_training(pipeline, parameters)
    name = _name(uri)
    print(f"no model at {uri} yet: training the bundled one on {_bundled(uri)['manifest']} first", flush=True)
    train_model(name=name, **_bundled(uri), seed=0)


def default_model(parameters: Mapping[str, Any]) -> str:
    """The address of the model that a pipeline with these parameters starts from."""
    return str(parameters.get("model") or f"models:/{parameters['name']}@champion")


def _name(uri: str) -> str:
    return uri.removeprefix("models:/").partition("@")[0]


def _bundled(uri: str) -> Mapping[str, Any]:
    """What is trained at an address; the digits classifier under any other name, as the demo has its own."""
    return BUNDLED.get(_name(uri), DIGITS)
