"""The methods: one module each, and the table that knows what every one needs, serves and promises.

Reading the table imports no torch; `Method.configure` and `Method.stage` import the method's own module.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from math import prod
from statistics import median
from typing import Any, get_type_hints

from unlearning.config import Setting, nearest, settings_of
from unlearning.errors import UsageError

STAGES = ("synthesize", "impair", "repair", "distill")
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
        task: "classification" or "regression".
    """

    retain_rows: int
    retain_per_class: int
    input_size: int
    forget_classes: int
    fine_tuned: bool = False
    learning_rate: float = 0.0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    task: str = "classification"

    @classmethod
    def of(
        cls,
        counts: Iterable[int] = (),
        *,
        rows: int | None = None,
        input_shape: Sequence[int],
        forget_classes: int = 0,
        recipe: Mapping[str, Any] | None = None,
    ) -> Facts:
        """The facts from plain numbers.

        Args:
            counts: Retain rows at hand, by class; 0 for forgotten ones.
            rows: Retain rows at hand of a regression, which has no classes; None: a classification.
            input_shape: Of one input.
            forget_classes: How many.
            recipe: Fields of `unlearning.training.Recipe` and "fine_tuned"; None: unknown.
        """
        recipe, there = recipe or {}, [count for count in counts if count]
        return cls(
            retain_rows=sum(there) if rows is None else rows,
            retain_per_class=int(median(there)) if there else 0,
            input_size=prod(input_shape),
            forget_classes=forget_classes,
            fine_tuned=bool(recipe.get("fine_tuned", False)),
            learning_rate=float(recipe["learning_rate"]) if recipe.get("optimiser") == "adam" else 0.0,
            recipe=dict(recipe),
            task="classification" if rows is None else "regression",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """One row of the table.

    Attributes:
        title: What it does, in a line.
        source: Where it comes from.
        module: Holds `configure(settings, facts)` and a function for each stage that the method has.
        stages: Those stages; for the others a pipeline passes its model through.
        reads: The rows that it reads: "forget", "retain", "calibration"; empty: no data of any kind.
        labels: Those of them whose labels it uses too.
        makes: Further models that it makes on the way.
        tasks: What the model may do: "classification", "regression".
        requests: The kinds of request that it serves: "class", or those of `ROWS`.
        every_row: Whether it is given all retain rows, also where a request bounds how many a method may use.
        limits: What it is known to do badly.
        claim: What a pass means, and what it does not.
    """

    title: str
    source: str
    module: str
    stages: tuple[str, ...]
    reads: tuple[str, ...]
    labels: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("classification",)
    requests: tuple[str, ...]
    every_row: bool = False
    limits: str
    claim: str

    def configure(self, settings: Mapping[str, Any], facts: Facts) -> Any:
        """The method's configuration: its defaults for these facts, replaced by the given settings."""
        return import_module(self.module).configure(settings, facts)

    def stage(self, name: str) -> Callable[..., Any]:
        """The function of one of the method's `stages`."""
        function: Callable[..., Any] = getattr(import_module(self.module), name)
        return function

    def settings(self) -> list[Setting]:
        """What can be set, with the defaults; those of origin "rule" are what `configure` changes by the facts."""
        return settings_of(get_type_hints(import_module(self.module).configure)["return"])


ROWS = ("subject", "sample", "target", "period")
"""Requests that end up as a list of rows, whatever they name them by."""

SUPPRESSED = "The outputs no longer show the class; the weights may still hold traces of it."
AS_UNSEEN = "The rows no longer look trained on to the attacks that were run; others may still find a trace."

METHODS: dict[str, Method] = {
    "unsir": Method(
        title="impair with error-maximising noise, repair on retain data",
        source="arXiv:2111.08947",
        module="unlearning.methods.unsir",
        stages=("synthesize", "impair", "repair"),
        reads=("retain",),
        labels=("retain",),
        requests=("class",),
        limits="Its noise is learned for an output, so it knows classes only. Impairing on retain data alone forgot as "
        "well wherever we measured it.",
        claim=SUPPRESSED,
    ),
    "emmn": Method(
        title="impair and repair on noise alone: error-maximising for the class, error-minimising for all others",
        source="arXiv:2201.05629",
        module="unlearning.methods.emmn",
        stages=("synthesize", "impair", "repair"),
        reads=(),
        requests=("class",),
        limits="Other classes lose accuracy, some models much of it. The authors released no code for it.",
        claim=SUPPRESSED,
    ),
    "gated_transfer": Method(
        title="a new network learns from the original on invented images that show no forgotten class",
        source="arXiv:2201.05629",
        module="unlearning.methods.gated_transfer",
        stages=("distill",),
        reads=(),
        makes=("a generator of images", "a new network"),
        requests=("class",),
        limits="Slow, and hard for deep networks on natural images. What the original says of other classes still "
        "carries what it learned from the forgotten one.",
        claim=SUPPRESSED,
    ),
    "incompetent_teacher": Method(
        title="imitate a random network on the forget rows and the original on retain rows",
        source="arXiv:2205.08096",
        module="unlearning.methods.incompetent_teacher",
        stages=("distill",),
        reads=("forget", "retain", "calibration"),
        labels=("forget", "calibration"),
        makes=("one or more random networks",),
        requests=("class", *ROWS),
        limits="With few forget rows it cannot tell well when they look unseen. Without rows set apart to calibrate by "
        "it forgets too much, which shows as well as too little.",
        claim=AS_UNSEEN,
    ),
    "amnesiac": Method(
        title="train on with a wrong label for every forget row",
        source="arXiv:2010.10981",
        module="unlearning.methods.amnesiac",
        stages=("distill",),
        reads=("forget", "retain"),
        labels=("forget", "retain"),
        requests=("class", *ROWS),
        limits="Single rows come out more wrong than unseen ones, and stand out by that.",
        claim=AS_UNSEEN,
    ),
    "blindspot": Method(
        title="imitate, on the forget rows, a network that was briefly trained on retain rows alone",
        source="arXiv:2210.08196",
        module="unlearning.methods.blindspot",
        stages=("distill",),
        reads=("forget", "retain"),
        labels=("retain",),
        makes=("a network trained on retain rows for a few epochs",),
        tasks=("regression",),
        requests=ROWS,
        limits="It teaches what a half-trained network says: where that network is bad at what it never saw, a "
        "retrained one would be better, and the rows come out more wrong than they should.",
        claim=AS_UNSEEN,
    ),
    "gaussian_amnesiac": Method(
        title="train on with a random value for every forget row, drawn like the targets of all",
        source="arXiv:2210.08196",
        module="unlearning.methods.gaussian_amnesiac",
        stages=("distill",),
        reads=("forget", "retain"),
        labels=("forget", "retain"),
        tasks=("regression",),
        requests=ROWS,
        limits="A baseline: it teaches the mean of all targets, not what retained rows support.",
        claim=AS_UNSEEN,
    ),
    "fine_tune": Method(
        title="train on with the retain rows alone",
        source="a baseline of most papers",
        module="unlearning.methods.fine_tune",
        stages=("distill",),
        reads=("retain",),
        labels=("retain",),
        tasks=("classification", "regression"),
        requests=("class", *ROWS),
        limits="A baseline: nothing makes it forget.",
        claim=AS_UNSEEN,
    ),
    "gradient_ascent": Method(
        title="climb the loss of the forget rows until the retain rows suffer (NegGrad)",
        source="a baseline of arXiv:2111.08947 and others",
        module="unlearning.methods.gradient_ascent",
        stages=("distill",),
        reads=("forget", "retain"),
        labels=("forget", "retain"),
        tasks=("classification", "regression"),
        requests=("class", *ROWS),
        limits="A baseline: the loss has no upper bound, and either little is forgotten or much is broken.",
        claim=AS_UNSEEN,
    ),
    "negative_gradient_plus": Method(
        title="descend the loss of retain rows while climbing that of forget rows (NegGrad+)",
        source="arXiv:2302.09880",
        module="unlearning.methods.negative_gradient_plus",
        stages=("distill",),
        reads=("forget", "retain"),
        labels=("forget", "retain"),
        tasks=("classification", "regression"),
        requests=("class", *ROWS),
        limits="A baseline: where it stops between remembering and over-forgetting is a matter of its settings.",
        claim=AS_UNSEEN,
    ),
    "fisher": Method(
        title="add noise to the weights that retain rows depend on least",
        source="arXiv:1911.04933",
        module="unlearning.methods.fisher",
        stages=("distill",),
        reads=("retain",),
        requests=("class", *ROWS),
        limits="A baseline: one scale of noise suits no two networks, and its time grows with the number of classes.",
        claim=AS_UNSEEN,
    ),
    "retrain": Method(
        title="train a new network on the retain rows by the original's recipe",
        source="the reference of every paper",
        module="unlearning.methods.retrain",
        stages=("distill",),
        reads=("retain",),
        labels=("retain",),
        makes=("a new network",),
        tasks=("classification", "regression"),
        requests=("class", *ROWS),
        every_row=True,
        limits="Costs what the original cost, and needs its recipe.",
        claim="The network never read the rows. What other networks or copies of the data know is untouched.",
    ),
}


def method(name: str, *, request: str, reads: Container[str] | None = None, task: str = "classification") -> Method:
    """The method of this name, if it serves this kind of request for this kind of model.

    Args:
        name: Of the method.
        request: "class", "subject", "sample", "target" or "period".
        reads: The rows that there are for it; None: all of them.
        task: Of the model: "classification" or "regression".

    Raises:
        UsageError: For an unknown name, or a kind that it cannot serve; names the methods that can.
    """
    if name not in METHODS:
        raise UsageError(f'unknown method "{name}"{nearest(name, METHODS)} (valid: {", ".join(METHODS)})')
    row = METHODS[name]
    missing = [part for part in row.reads if reads is not None and part not in reads]
    if request in row.requests and task in row.tasks and not missing:
        return row
    able = [
        other
        for other, row in METHODS.items()
        if request in row.requests and task in row.tasks and (reads is None or all(part in reads for part in row.reads))
    ]
    hint = f"choose one of {', '.join(able)}" if able else "no method here can"
    if task not in row.tasks:
        raise UsageError(f"{name} serves {' and '.join(row.tasks)} models only, this one is for {task}; {hint}")
    if missing:
        raise UsageError(f"{name} reads {' and '.join(missing)} rows, and there are none for it here; {hint}")
    raise UsageError(f"{name} cannot forget by {request}, only by {', '.join(row.requests)}; {hint}")


def candidates(
    request: str, names: Sequence[str] = (), *, task: str = "classification"
) -> tuple[list[str], dict[str, str]]:
    """Methods that serve a request, and why the others do not. `retrain` is the reference, not a candidate.

    Args:
        request: "class", "subject", "sample", "target" or "period".
        names: Those wanted; empty: all.
        task: Of the model: "classification" or "regression".

    Raises:
        UsageError: For an unknown name, or when none is left.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise UsageError(f"unknown methods {', '.join(unknown)} (valid: {', '.join(METHODS)})")
    wanted = [name for name in METHODS if name != "retrain" and (not names or name in names)]
    refused = {}
    for name in wanted:
        row = METHODS[name]
        if task not in row.tasks:
            refused[name] = f"serves {' and '.join(row.tasks)} models only"
        elif request not in row.requests:
            refused[name] = f"forgets by {', '.join(row.requests)} only"
    chosen = [name for name in wanted if name not in refused]
    if not chosen:
        able = [name for name, row in METHODS.items() if request in row.requests and task in row.tasks]
        of = "" if task == "classification" else f" in a model for {task}"
        those = f"those that can: {', '.join(able)}" if able else "no method here can"
        raise UsageError(f"none of the methods can forget by {request}{of}; {those}")
    return chosen, refused


def settings_by_method(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The settings of several methods, checked to be of these methods.

    Raises:
        UsageError: For a method that is not among them, or settings that are no mapping.
    """
    for name, values in settings.items():
        if name not in names:
            raise UsageError(f'settings: "{name}" is not compared{nearest(name, names)} (compared: {", ".join(names)})')
        if not isinstance(values, Mapping):
            raise UsageError(f"settings: {name} wants a mapping of its settings, got {values!r}")
    return dict(settings)
