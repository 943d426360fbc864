"""Runs, metrics and registered models in MLflow: a server, or one SQLite file."""

from unlearning.tracking.alias import Champion
from unlearning.tracking.promotion import promote_bundle, store_bundle
from unlearning.tracking.registry import RegisteredVersion, Registry, check_name
from unlearning.tracking.runs import StageRun, Tracker

__all__ = [
    "Champion",
    "RegisteredVersion",
    "Registry",
    "StageRun",
    "Tracker",
    "check_name",
    "promote_bundle",
    "store_bundle",
]
