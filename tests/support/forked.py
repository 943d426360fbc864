"""A process that imports everything once and serves each order in a fork of itself, which may be made to die.

An order is one line of JSON: the folder and parameters of a `Chain`, a stage, the inputs to change, environment
variables, and the place to die at, if any. The answer is one line: the exit code, -9 for a fork that was killed.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from support.chain import Chain

import unlearning.storage.folder as folder_store
from unlearning.tracking import Registry, Tracker, promotion
from unlearning_components.handover import Checkpoints

READY = (
    "matplotlib.figure",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "sklearn.datasets",
    "sklearn.linear_model",
    "sklearn.metrics",
    "sklearn.svm",
    "unlearning.attacks.membership",
    "unlearning.methods.gated_transfer",
    "unlearning.methods.unsir",
    "unlearning.metrics.classification",
    "unlearning_components.reports",
)
"""What the stages import when they are called."""


def die(*_: object, **__: object) -> None:
    """Ends this process as a node failure does: at once, with nothing tidied up."""
    os.kill(os.getpid(), signal.SIGKILL)


def in_the_middle_of_a_stage() -> None:
    real = Tracker.stage

    @contextmanager
    def stage(self: Tracker, parent: str, name: str, **options: Any) -> Iterator[Any]:
        with real(self, parent, name, **options) as record:
            die()
            yield record

    Tracker.stage = stage  # type: ignore[method-assign]


def in_the_middle_of_a_file() -> None:
    def half(source: Any, target: Any, _: int = 0) -> None:
        target.write(source.read(1000))
        target.flush()
        die()

    folder_store.shutil.copyfileobj = half  # type: ignore[assignment]


def after_the_weights_were_stored() -> None:
    folder_store.FolderStore.create = die  # type: ignore[method-assign,assignment]


def after_the_bundle_was_stored() -> None:
    Registry.register = die  # type: ignore[method-assign,assignment]


def after_the_version_was_registered() -> None:
    Registry.set_alias = die  # type: ignore[method-assign,assignment]


def after_the_candidate_was_named() -> None:
    real = Registry.set_alias

    def set_alias(self: Registry, name: str, alias: str, version: int) -> None:
        if alias == promotion.CHAMPION:
            die()
        real(self, name, alias, version)

    Registry.set_alias = set_alias  # type: ignore[method-assign]


def after_the_champion_was_named() -> None:
    Tracker.close = die  # type: ignore[method-assign,assignment]


def after_a_checkpoint() -> None:
    real = Checkpoints.write

    def write(self: Checkpoints, state: Any) -> None:
        real(self, state)
        die()

    Checkpoints.write = write  # type: ignore[method-assign]


AT_PROMOTION: dict[str, Callable[[], None]] = {
    place.__name__: place
    for place in (
        in_the_middle_of_a_stage,
        in_the_middle_of_a_file,
        after_the_weights_were_stored,
        after_the_bundle_was_stored,
        after_the_version_was_registered,
        after_the_candidate_was_named,
        after_the_champion_was_named,
    )
}
PLACES = {**AT_PROMOTION, "after_a_checkpoint": after_a_checkpoint}


def serve(order: dict[str, Any]) -> None:
    """Does what the order says, in the process that it is called in."""
    os.environ.update(order["environment"])
    if order["die"]:
        PLACES[order["die"]]()
    Chain(Path(order["folder"]), **order["parameters"]).call(order["stage"], **order["changed"])


def main() -> None:
    for module in READY:
        import_module(module)
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            code = 1
            try:
                os.dup2(2, 1)
                serve(order)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
