"""How a stage runs: what holds for every task of every pipeline, in one place."""

from typing import Any


def task(started: Any) -> Any:
    """The task, never cached: every stage reads mutable state (registry, store, ledger) or writes to MLflow."""
    return started.set_caching_options(False)
