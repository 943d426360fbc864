"""Everything that can be known to go wrong before a run, found before anything is written."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearning.errors import UsageError
from unlearning.settings import Settings
from unlearning_components.surroundings import (
    check_fit,
    facts_of,
    fetch_manifest,
    fetch_model,
    request_for,
    store,
    tracker,
)

MARKER = "kfp-unlearning.json"


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


def check_run(parameters: Mapping[str, Any], *, request: str) -> None:
    """Nothing, when a deletion pipeline with these parameters can start: method, policy, model, data and rows fit.

    Args:
        parameters: All of the pipeline's, defaults included.
        request: The kind of target that the pipeline forgets.

    Raises:
        UnlearningError: The first thing that is wrong, in the class that says what to mend.
    """
    from unlearning.data.selection import select
    from unlearning.methods import method
    from unlearning.policy.gates import policy_with

    chosen = method(parameters["method"], request=request)
    policy_with(parameters["policy"])
    wanted = request_for(request, parameters["forget"])
    check_services()
    data = fetch_manifest(parameters["manifest"])
    with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
        card = fetch_model(parameters["model"], Path(folder, "bundle")).card
    check_fit(card, data)
    rows = select(data, wanted, retain_per_class=parameters["retain_per_class"], seed=parameters["seed"])
    again = [name for name in (data.card.classes[index] for index in rows.forget_classes) if name in card.forgotten]
    if again:
        raise UsageError(f"the model has already forgotten {', '.join(again)}: nothing to do")
    chosen.configure(parameters["settings"], facts_of(card, rows.forget_classes, data.targets()[rows.available]))


def known(model: str) -> bool:
    """Whether there is a model at this registry address; an MLflow that does not answer is an error, not a no."""
    from unlearning.errors import ModelError
    from unlearning.tracking import Registry

    check_services()
    if not _has_registry():
        return False
    try:
        Registry(tracker()).resolve(model)
    except ModelError:
        return False
    return True


def _has_registry() -> bool:
    """Asking a SQLite registry that is not there would make the file."""
    uri = Settings().tracking_uri
    return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()
