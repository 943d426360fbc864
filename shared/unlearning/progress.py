"""Progress of long work: a bar on a terminal, plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """Called after every step of long work."""

    def __call__(self, phase: str, done: int, total: int, loss: float) -> None:
        """Note that `done` of `total` steps of `phase` are finished, the last with this loss."""
        ...


def silent(phase: str, done: int, total: int, loss: float) -> None:
    """Show nothing."""


class Lines:
    """Plain lines for a log, a few a phase: at the first step, every `seconds`, and at the last."""

    def __init__(self, seconds: float = 5.0) -> None:
        self._seconds = seconds
        self._next = 0.0
        self._phase = ""

    def __call__(self, phase: str, done: int, total: int, loss: float) -> None:
        """Print a line when one is due."""
        now = time.monotonic()
        if phase != self._phase or now >= self._next or done == total:
            self._phase, self._next = phase, now + self._seconds
            print(f"{phase}: {done}/{total}  loss {loss:.4g}", flush=True)


class _Bars:
    def __init__(self, bars: object) -> None:
        from rich.progress import Progress as RichProgress

        if not isinstance(bars, RichProgress):
            raise TypeError(f"wanted rich's Progress, got {type(bars)}")
        self._bars = bars
        self._tasks: dict[str, object] = {}

    def __call__(self, phase: str, done: int, total: int, loss: float) -> None:
        from rich.progress import TaskID

        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=total, loss=loss)
        task = self._tasks[phase]
        self._bars.update(TaskID(int(str(task))), completed=done, loss=loss)


@contextmanager
def shown() -> Iterator[Progress]:
    """Progress as fits where standard error goes: bars on a terminal, else lines on standard output."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3g}"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bars:
        yield _Bars(bars)
