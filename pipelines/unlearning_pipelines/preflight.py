"""Everything that can be known to go wrong before a run, found before anything is written."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearning.config import nearest
from unlearning.data.selection import KINDS, SPOKEN
from unlearning.errors import UsageError
from unlearning.methods import METHODS, candidates, method, settings_by_method
from unlearning.policy.gates import check_audit, policy_for, policy_with
from unlearning.settings import Settings
from unlearning.tracking import check_name
from unlearning_components.bookkeeping import anything_waits, check_batches
from unlearning_components.surroundings import (
    check_fit,
    facts_of,
    fetch_manifest,
    fetch_model,
    ids_at,
    rows_for,
    store,
    tracker,
)

if TYPE_CHECKING:
    from unlearning.models.bundle import ModelCard

MARKER = "kfp-unlearning.json"
BUNDLED_NAME = "digits"
"""The model of a batch of requests when no other is named."""


def check_home() -> None:
    """Nothing, when the embedded folder is missing, empty or ours; a folder of something else is left alone.

    Raises:
        UsageError: When it holds another project's files, or is no folder.
    """
    home = Settings().home
    if not home.exists():
        return
    if not home.is_dir():
        raise UsageError(f"{home} is a file: set UNLEARN_HOME to a folder")
    if not (home / MARKER).is_file() and any(home.iterdir()):
        raise UsageError(f"{home} is not empty and not ours (no {MARKER}): set UNLEARN_HOME to a new or empty folder")


def claim_home() -> Path:
    """The embedded folder, made and marked as ours."""
    check_home()
    home = Settings().home
    home.mkdir(parents=True, exist_ok=True)
    marker = home / MARKER
    if not marker.is_file():
        marker.write_text(
            json.dumps({"made_by": "kfp-unlearning", "holds": "models, runs and pipeline outputs"}) + "\n"
        )
    return home


def check_services() -> None:
    """Nothing, when MLflow and the object store answer; within 15 seconds each, writing nothing.

    Raises:
        TrackingError: When MLflow does not.
        StorageError: When the object store does not.
    """
    check_home()
    tracker().check()
    store().check()


def check_run(pipeline: str, parameters: Mapping[str, Any], *, card: ModelCard | None = None) -> None:
    """Nothing, when a pipeline with these parameters can start: methods, policy, model, data and rows fit.

    Args:
        pipeline: Its name.
        parameters: All of the pipeline's, defaults included.
        card: Of the model, where it is not there to be fetched yet.

    Raises:
        UnlearningError: The first thing that is wrong, in the class that says what to mend.
    """
    if pipeline == "deletion_batch":  # its rows and method are those of the requests that wait
        check_batches(parameters["ladder"], parameters["policies"], reference=parameters["reference"])
        check_services()
        name = parameters["name"]
        model = f"models:/{name}@champion"
        idle = name == BUNDLED_NAME and not anything_waits(name)  # it is trained when there is something to do
        if card is None and (known(model) or not idle):
            card = _card_at(model)
        if card is not None:
            check_fit(card, fetch_manifest(parameters["manifest"]))
            how = {"reference": parameters["reference"], "task": card.task}
            check_batches(parameters["ladder"], parameters["policies"], **how)
        return
    request = parameters.get("request", "class")
    if request not in KINDS:
        raise UsageError(f'request is "{request}"{nearest(request, KINDS)} (valid: {", ".join(KINDS)})')
    if request in SPOKEN and "forget" not in parameters:
        other = "for classes run delete_class" if request == "class" else "for values and periods run delete_regression"
        raise UsageError(f"{pipeline} forgets rows and people (request=sample or subject): {other}")
    if "register_as" in parameters:
        check_name(parameters["register_as"])
    check_services()
    data = fetch_manifest(parameters["manifest"])
    task = data.card.task
    chosen = _methods(pipeline, parameters, request, task)
    if "policy" in parameters:
        depth = parameters.get("audit", "none")
        check_audit(depth, task=task, reference=parameters["reference"])
        there = {"reference": parameters["reference"] != "none", "audit": depth != "none"}
        policy_with(parameters["policy"], policy_for(task, request, **there))
    if card is None:
        card = _card_at(parameters["model"])
    if parameters["reference"] not in ("none", "train"):
        check_fit(_card_at(parameters["reference"]), data)
    amount = {"retain_per_class": parameters.get("retain_per_class", 1), "seed": parameters["seed"]}
    named = request in SPOKEN
    wanted = parameters["forget"] if named else ids_at(parameters["ids"], data, request, seed=parameters["seed"])
    rows = rows_for(card, data, request, wanted, **amount)
    facts = facts_of(card, rows.forget_classes, data.targets()[rows.available])
    for name, settings in chosen.items():
        METHODS[name].configure(settings, facts)


def _methods(pipeline: str, parameters: Mapping[str, Any], request: str, task: str) -> dict[str, Mapping[str, Any]]:
    """The methods that will run, with their settings."""
    from unlearning_pipelines.catalogue import READS

    reference: dict[str, Mapping[str, Any]] = {"retrain": {}} if parameters["reference"] == "train" else {}
    if "methods" not in parameters:
        method(parameters["method"], request=request, reads=READS.get(pipeline), task=task)
        return {**reference, parameters["method"]: parameters["settings"]}
    if parameters["reference"] == "none":
        raise UsageError("a comparison needs a retrained model: give reference=train, or its address")
    if parameters["seeds"] < 1:
        raise UsageError(f"seeds must be 1 or more, got {parameters['seeds']}")
    names, _ = candidates(request, parameters["methods"], task=task)
    settings = settings_by_method(parameters["settings"], names)
    return {**reference, **{name: settings.get(name, {}) for name in names}}


def _card_at(uri: str) -> ModelCard:
    check_registered(uri)
    with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
        return fetch_model(uri, Path(folder, "bundle")).card


def check_registered(model: str) -> None:
    """Nothing, when the model is in the registry, or its address is none of the registry's; writes nothing.

    Raises:
        ModelError: When it is not there, naming what is.
        TrackingError: When MLflow does not answer.
    """
    from unlearning.errors import ModelError
    from unlearning.tracking import Registry

    if not model.startswith("models:/"):
        return
    uri = Settings().tracking_uri
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        # To ask would make the file.
        raise ModelError(f"there is no model at {model}: nothing was registered yet; see `unlearn train --help`")
    Registry(tracker()).resolve(model)


def known(model: str) -> bool:
    """Whether there is a model at this registry address; an MLflow that does not answer is an error, not a no."""
    from unlearning.errors import ModelError

    check_services()
    try:
        check_registered(model)
    except ModelError:
        return False
    return True
