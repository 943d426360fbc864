"""Processes that have imported what stages import, and fork themselves into the stages of a local run.

KFP's local runner starts every stage as a new Python, which spends most of a short stage importing. Here the runner
asks a process that has done so already. The stage's own code, its input and its exit code are the same; so are the
compiled pipelines, whose commands are only read. What does not look like a component of KFP's is run as the runner
would.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIGHT = (
    "kfp.dsl.executor_main",
    "mlflow.tracking",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.model_registry.sqlalchemy_store",
    "alembic.command",
    "sqlalchemy.dialects.sqlite",
    "unlearning.tracking",
    "unlearning.storage",
    "unlearning.policy.gates",
    "unlearning_components.completions",
)
"""What stages without tensors import."""
HEAVY = (
    "torch",
    "unlearning.methods.apply",
    "unlearning.models.bundle",
    "unlearning.data.sources",
    "unlearning_components.bookkeeping",
    "unlearning_components.handover",
    "unlearning_components.evaluations",
    "unlearning_components.audits",
    "unlearning_components.reports",
    "sklearn.datasets",
    "sklearn.linear_model",
    "sklearn.svm",
    "scipy.stats",
    "pandas",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
)
"""What the others import besides. Of both, what is not there is left for the stage to miss."""
FIRST = ("load_model",)
"""Stages that begin a run and need no tensors: they do not wait for the heavy imports."""
_MODULE = "kfp.dsl.executor_main"

Run = Callable[..., int]


def possible() -> bool:
    """Whether processes may be forked after such imports: on Linux."""
    return sys.platform == "linux"


class Warm:
    """The processes that become stages: one with the light imports, one with all; they end with this one."""

    def __init__(self) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            for here, _ in pairs:
                here.close()
            _serve(*(there for _, there in pairs))  # never returns
        channels = []
        for here, there in pairs:
            there.close()
            channels.append(here.makefile("rw", encoding="utf-8"))
            here.close()
        self._light, self._all = channels
        self._turn = threading.Lock()

    def run(self, full_command: Sequence[str], env_vars: dict[str, str] | None, otherwise: Run) -> int:
        """The exit code of a stage.

        Args:
            full_command: As KFP's runner starts it.
            env_vars: Variables beside this process's, which are those of the stage.
            otherwise: What runs a command that is no component's.
        """
        stage = component_in(full_command)
        if stage is None:
            return otherwise(full_command=list(full_command), env_vars=env_vars)
        sys.stdout.flush()
        channel = self._light if stage["arguments"][-1] in FIRST else self._all
        with self._turn:
            channel.write(json.dumps({**stage, "env": {**os.environ, **(env_vars or {})}}) + "\n")
            channel.flush()
            answer = channel.readline()
        return int(answer) if answer else 1

    def close(self) -> None:
        """End the processes."""
        self._light.close()
        self._all.close()
        os.waitpid(self._pid, 0)


def component_in(command: Sequence[str]) -> dict[str, Any] | None:
    """A component's source and its arguments, from the command that KFP gives it; None for other commands.

    Args:
        command: `sh -ec SCRIPT SOURCE --executor_input ... --function_to_execute NAME`, where the script puts the
            source into a file and does nothing else but run it.
    """
    if len(command) < 6 or list(command[:2]) != ["sh", "-ec"]:
        return None
    script, source, arguments = command[2], command[3], list(command[4:])
    steps = [line for line in script.splitlines() if line.strip()]
    starts = ("program_path=", "printf ", "_KFP_RUNTIME=true ")
    usual = len(steps) == 3 and all(step.strip().startswith(start) for step, start in zip(steps, starts, strict=True))
    if not usual or _MODULE not in script or "--function_to_execute" not in arguments[:-1]:
        return None
    return {"source": source, "arguments": arguments}


@contextmanager
def installed() -> Iterator[None]:
    """In here, KFP's local runner starts its stages warm.

    Raises:
        ImportError: When this version of KFP starts them otherwise.
    """
    from kfp.local import subprocess_task_handler as handler

    original = getattr(handler, "run_local_subprocess", None)
    if original is None:
        raise ImportError("this version of kfp has no run_local_subprocess: run stages cold, or take kfp 2.17")
    running = Warm()

    def run_local_subprocess(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        return running.run(full_command, env_vars, original)

    handler.run_local_subprocess = run_local_subprocess
    try:
        yield
    finally:
        handler.run_local_subprocess = original
        running.close()


def _serve(light: socket.socket, every: socket.socket) -> None:
    """Import what is light and fork a process that serves with that; then import the rest and serve with all."""
    try:
        _import(LIGHT)
        twin = os.fork()
        if twin == 0:
            every.close()
            _answer(light)
        else:
            light.close()
            _import(HEAVY)
            _answer(every)
            os.waitpid(twin, 0)
    except BrokenPipeError:
        pass
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _import(names: Sequence[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    gc.collect()
    gc.freeze()  # what is here now stays: no stage looks through it again


def _answer(channel: socket.socket) -> None:
    """Fork for every line that comes, and answer with the exit code."""
    with channel.makefile("rw", encoding="utf-8") as lines:
        while asked := lines.readline():
            pid = os.fork()
            if pid == 0:
                channel.close()
                _become(json.loads(asked))  # never returns
            _, status = os.waitpid(pid, 0)
            lines.write(f"{os.waitstatus_to_exitcode(status)}\n")
            lines.flush()


def _become(stage: dict[str, Any]) -> None:
    """Run one component, as its own program would, and exit."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update({**stage["env"], "_KFP_RUNTIME": "true"})
        _call_oneself(stage["arguments"][-1])
        folder = tempfile.mkdtemp()
        program = Path(folder, "ephemeral_component.py")
        program.write_text(stage["source"])
        sys.argv = [_MODULE, "--component_module_path", str(program), *stage["arguments"]]
        try:
            from kfp.dsl.executor_main import executor_main

            executor_main()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _call_oneself(name: str) -> None:
    """The stage's name is the process's, for those who look at a list of them."""
    try:
        Path("/proc/self/comm").write_text(name[:15])
    except OSError:
        return
