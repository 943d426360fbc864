"""Batches again and again on this machine, for those without a cluster."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from unlearning.errors import UnlearningError
from unlearning_pipelines.parameters import defaults

BATCH = "deletion_batch"
_DAY = 86_400


def with_cadence(pipeline: str, parameters: Mapping[str, Any], seconds: int | None) -> dict[str, Any]:
    """The parameters, and how many days lie between two runs where the pipeline asks and nobody has said.

    Args:
        pipeline: Its name.
        parameters: Those that were set.
        seconds: Between two starts; None for a schedule by the clock.
    """
    if not seconds or "cadence_days" not in defaults(pipeline):
        return dict(parameters)
    return {"cadence_days": seconds / _DAY, **parameters}


def work(once: Callable[[], None], *, seconds: int, times: int = 0, sleep: Callable[[float], None] = time.sleep) -> int:
    """How many of the runs failed, once `times` of them have ended.

    A run that fails is told on standard error and the next one starts at its time: its batch is not lost, and there is
    nobody here to start again what stops.

    Args:
        once: A run.
        seconds: Between two starts; one that takes longer is followed by the next at once.
        times: Stop after so many runs; 0: never.
        sleep: Waits for so many seconds.
    """
    failed = done = 0
    while True:
        began = time.monotonic()
        try:
            once()
        except UnlearningError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed += 1
        done += 1
        if done == times:
            return failed
        sleep(max(0.0, seconds - (time.monotonic() - began)))
