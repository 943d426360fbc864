"""Pipelines on KFP's local runner, in a process of their own: its log to a file, its stages to a callback."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearning.errors import PipelineError, UnlearningError

OnStage = Callable[[str, str], None]
"""Called with a stage's name and "started", "finished" or "failed"."""
OnRun = Callable[[str], None]
"""Called with the id of the pipeline's MLflow run as soon as there is one."""

_RUN = re.compile(r"^\s*tracked as MLflow run ([0-9a-f]+)$")
_TASK = re.compile(r"(?:Executing task '([a-z0-9-]+)'|Task '([a-z0-9-]+)' finished with status (\w+))")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ERROR = re.compile(r"^\s*unlearning\.errors\.(\w+): (.*)$")
_OTHER_ERROR = re.compile(r"^\s*((?:\w+\.)*\w*(?:Error|Exception|Interrupt)): (.*)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalRun:
    """How a local run ended.

    Attributes:
        outputs: The pipeline's outputs by name; artifacts as paths. Empty when it failed.
        mlflow_run: Id of its MLflow run; "" when it never got that far.
        log: Everything that its stages printed.
        error: What stopped it; None when nothing did.
    """

    outputs: Mapping[str, Any]
    mlflow_run: str
    log: Path
    error: UnlearningError | None


class Runner:
    """A process for one run. It imports what stages import at once, while the caller still looks at what it will ask.

    Args:
        warm: Whether stages are forked from a process that has imported what they import, where that is possible.
    """

    def __init__(self, *, warm: bool = True) -> None:
        command = [sys.executable, "-m", "unlearning_pipelines.local", *(["warm"] if warm else [])]
        self._child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it, and its stages, if it still runs."""
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGTERM)
        with suppress(BrokenPipeError):  # what was not sent to a process that is gone
            self._child.__exit__(None, None, None)

    def run(
        self,
        pipeline: str,
        arguments: Mapping[str, Any],
        *,
        root: Path,
        on_stage: OnStage,
        on_run: OnRun | None = None,
    ) -> LocalRun:
        """Run a pipeline to its end, one stage after the other; once for each runner.

        Args:
            pipeline: A name in the catalogue, or the path of compiled YAML.
            arguments: Its parameters; what is left out keeps its default.
            root: Where KFP keeps the run's artifacts, and the log `<number>.log`.
            on_stage: Told of every stage that starts and ends.
            on_run: Told of the MLflow run.
        """
        root.mkdir(parents=True, exist_ok=True)
        log = next(path for number in range(1, 10**6) if not (path := root / f"run-{number}.log").exists())
        results = log.with_suffix(".json")
        asked = {
            "pipeline": pipeline,
            "arguments": dict(arguments),
            "results": str(results),
            "environment": {**os.environ, "PYTHONUNBUFFERED": "1"},  # as it is now
        }
        mlflow_run, error, stage = "", None, ""
        with log.open("w", buffering=1) as file:  # whoever follows it sees each line
            if self._child.stdin is not None:
                with suppress(BrokenPipeError), self._child.stdin as channel:  # a process that is gone is seen below
                    channel.write(json.dumps(asked) + "\n")
            for line in self._child.stdout or ():
                file.write(line)
                plain = _COLOUR.sub("", line.rstrip())
                if found := _RUN.match(plain):
                    if on_run is not None and not mlflow_run:
                        on_run(found[1])
                    mlflow_run = found[1]
                elif found := _TASK.search(plain):
                    stage, status = (found[1] or found[2]).replace("-", "_"), found[3]
                    on_stage(stage, {None: "started", "SUCCESS": "finished"}.get(status, "failed"))
                elif found := _ERROR.match(plain):
                    error = _named(found[1], found[2])
                elif error is None and (found := _OTHER_ERROR.match(plain)):
                    error = PipelineError(f"{found[1]}: {found[2]} (stage {stage or 'none'}; the log is {log})")
            ended = self._child.wait()
        if ended == 0 and results.is_file():
            return LocalRun(outputs=json.loads(results.read_text()), mlflow_run=mlflow_run, log=log, error=None)
        if error is None:
            error = PipelineError(f"stage {stage or 'none'} was stopped by {_cause(ended)}; the log is {log}")
        return LocalRun(outputs={}, mlflow_run=mlflow_run, log=log, error=error)


def run_locally(
    pipeline: str,
    arguments: Mapping[str, Any],
    *,
    root: Path,
    on_stage: OnStage,
    on_run: OnRun | None = None,
    warm: bool = True,
) -> LocalRun:
    """What `Runner.run` gives, by a runner of its own; takes the arguments of both."""
    with Runner(warm=warm) as runner:
        return runner.run(pipeline, arguments, root=root, on_stage=on_stage, on_run=on_run)


def _named(kind: str, message: str) -> UnlearningError:
    """An error that a stage's process raised, as one of ours."""
    from unlearning import errors

    found = getattr(errors, kind, PipelineError)
    if not (isinstance(found, type) and issubclass(found, UnlearningError)):
        found = PipelineError
    return found(message)


def _cause(returncode: int) -> str:
    return f"signal {-returncode}" if returncode < 0 else f"exit code {returncode}"


def main() -> None:
    """The run itself: KFP's local runner in this process, a process for each stage. What to run comes as a line."""
    from kfp import components, local

    from unlearning_pipelines import warm
    from unlearning_pipelines.catalogue import PIPELINES

    with warm.installed() if sys.argv[1:] == ["warm"] and warm.possible() else nullcontext():
        asked = json.loads(sys.stdin.readline() or "null")
        if asked is None:  # nobody is there any more
            return
        os.environ.clear()
        os.environ.update(asked["environment"])
        results = Path(asked["results"])
        sys.executable = shlex.quote(sys.executable)  # the runner puts it into a shell's command as it is
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(results.parent))
        name = asked["pipeline"]
        chosen = PIPELINES[name] if name in PIPELINES else components.load_component_from_file(name)
        outputs = chosen(**asked["arguments"]).outputs
    plain = {name: getattr(value, "path", value) for name, value in outputs.items()}
    results.write_text(json.dumps(plain))


if __name__ == "__main__":
    main()
