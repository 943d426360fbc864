"""The methods: one module each, and the table that knows what every one needs, serves and promises.

Reading the table imports no torch; `Method.configure` and `Method.stage` import the method's own module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from unlearning.config import nearest
from unlearning.errors import UsageError

STAGES = ("synthesize", "impair", "repair")
"""Stages that change a model, in the order in which a pipeline runs them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a method's default settings may look at: the recipe and the data at hand, never the forget rows.

    Attributes:
        retain_rows: Retain rows that the method may use.
        retain_per_class: Their median count per retain class.
        input_size: Values in one input.
        forget_classes: How many classes are to be forgotten.
        fine_tuned: Whether the model was fine-tuned from pretrained weights rather than trained from scratch.
        learning_rate: Adam's highest rate when the model was trained; 0: unknown, or another optimiser's.
        recipe: What the model's card says of its training; empty: unknown.
    """

    retain_rows: int
    retain_per_class: int
    input_size: int
    forget_classes: int
    fine_tuned: bool = False
    learning_rate: float = 0.0
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One row of the table.

    Attributes:
        title: The method's name in the literature.
        source: Where it comes from.
        module: Holds `configure(settings, facts)` and a function for each stage that the method has.
        stages: Those stages; for the others a pipeline passes its model through.
        reads: The rows that it reads: "forget", "retain", "calibration"; empty: no data of any kind.
        requests: The kinds of request that it serves: "class", "subject", "sample".
        claim: What a pass means, and what it does not.
    """

    title: str
    source: str
    module: str
    stages: tuple[str, ...]
    reads: tuple[str, ...]
    requests: tuple[str, ...]
    claim: str

    def configure(self, settings: Mapping[str, Any], facts: Facts) -> Any:
        """The method's configuration: its defaults for these facts, replaced by the given settings."""
        return import_module(self.module).configure(settings, facts)

    def stage(self, name: str) -> Callable[..., Any]:
        """The function of one of the method's `stages`."""
        function: Callable[..., Any] = getattr(import_module(self.module), name)
        return function


METHODS: dict[str, Method] = {
    "unsir": Method(
        title="UNSIR: impair with error-maximising noise, repair on retain data",
        source="arXiv:2111.08947",
        module="unlearning.methods.unsir",
        stages=("synthesize", "impair", "repair"),
        reads=("retain",),
        requests=("class",),
        claim="Suppresses whole classes without touching their data; says nothing of single rows or features.",
    ),
}


def method(name: str, *, request: str) -> Method:
    """The method of this name, if it serves this kind of request.

    Raises:
        UsageError: For an unknown name, or a kind that it cannot serve; names the methods that can.
    """
    if name not in METHODS:
        raise UsageError(f'unknown method "{name}"{nearest(name, METHODS)} (valid: {", ".join(METHODS)})')
    if request not in METHODS[name].requests:
        able = [other for other, row in METHODS.items() if request in row.requests]
        hint = f"choose one of {', '.join(able)}" if able else "no method here can"
        raise UsageError(f"{name} cannot forget by {request}, only by {', '.join(METHODS[name].requests)}; {hint}")
    return METHODS[name]
