"""The report of one run: a self-contained HTML page for people and archives, a Markdown summary for the KFP UI."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from unlearning.errors import UsageError
from unlearning.policy.gates import CONTROLS, Gate, Verdict
from unlearning.reporting import wording
from unlearning.reporting.wording import CLOSE, OPEN, amount, clean, isolated, label, listed, percent, plain, points

FOLD_CLASSES = 30
WORST_SHOWN = 10
RECOGNISED = 0.05
"""Accuracy on unseen examples above which nobody should read that a class is no longer recognised."""
WORDS = {"pass": "PASS", "fail": "FAIL", "inconclusive": "INCONCLUSIVE"}
_MEDIA_TYPES = ("image/svg+xml", "image/png")
_ROWS = {
    "class": {
        "forget_train": "training rows of the forgotten classes",
        "retain_train": "training rows of the other classes",
        "retain_available": "of those, available to the method",
        "forget_test": "unseen rows of the forgotten classes",
        "retain_test": "unseen rows of the other classes",
    },
    "rows": {
        "forget_train": "training rows that were forgotten",
        "retain_train": "all other training rows",
        "retain_available": "of those, available to the method",
        "forget_test": "unseen rows of the same people, range or time",
        "retain_test": "unseen rows",
    },
}
# Figure name: section, heading, caption.
_FIGURES = {
    "per_class_accuracy": (
        "classes",
        "Accuracy of each class",
        "Ring: before. Diamond: after. Hatched rows are forgotten classes; all other rows should hardly move.",
    ),
    "prediction_distribution": (
        "classes",
        "What examples of the forgotten classes are called",
        "Hatched: before. Solid: after. One class that takes nearly all of them tells where the forgotten ones went.",
    ),
    "confusion_matrices": (
        "classes",
        "What is taken for what",
        "Each row is a true class and adds up to 100%; both panels share one colour scale.",
    ),
    "error_by_target": (
        "values",
        "Where the model errs",
        "Ring: before. Diamond: after. Outside what was forgotten both should lie together.",
    ),
    "forget_predictions": (
        "values",
        "What the model says of the forgotten examples",
        "Hatched: the truth. Dashed: before. Solid: after. A model that never saw them leans towards what it did see.",
    ),
    "roc_curves": (
        "attacks",
        "Telling members from non-members",
        "The nearer to the grey chance line, in either direction, the less the attack learns. "
        "The right panel enlarges the few false alarms that an attacker can afford.",
    ),
    "confidence_histograms": (
        "attacks",
        "How sure the model is of forgotten rows",
        "Dashed: before. Solid: after. Dotted: retrained. Forgotten rows should be answered as surely as by a model "
        "that never saw them.",
    ),
    "relearning_curves": (
        "audit",
        "What comes back",
        "Copies of the unlearned (diamonds) and the retrained model (triangles) are trained alike, several times. "
        "Where the diamonds rise sooner, something of it was still there.",
    ),
    "inverted_classes": (
        "audit",
        "What the models think the forgotten class looks like",
        "Inputs made to be called the class by each model. The unlearned model's should tell no more than those of the "
        "retrained one.",
    ),
    "layer_distances": (
        "weights",
        "Which layers moved",
        "Diamonds: the unlearned model's distance from the original. Triangles: a retrained model's, which is large "
        "for any network that was trained anew.",
    ),
    "training_curves": ("method", "While it ran", "One panel for each stage that learns, one value for each step."),
    "noise_pictures": (
        "method",
        "What was learned in place of the forgotten data",
        "Inputs made from the model alone, a row for each class. The forgotten data were not used to make them.",
    ),
    "noise_objective": ("method", "How it was learned", "The objective at each step."),
    "pseudo_samples": (
        "method",
        "What the new network learned from",
        "Images invented by a generator. The original sees no forgotten class in them; no real data went into them.",
    ),
    "distillation": ("method", "While it learned", "One panel for each series, one value for each step or look."),
    "stage_times": ("time", "Time of each stage", ""),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassRow:
    """One class before and after, and retrained; accuracies in [0, 1], None where there are no samples or no model."""

    name: str
    n_test: int
    original_test: float | None
    unlearned_test: float | None
    original_train: float | None = None
    unlearned_train: float | None = None
    forgotten: bool = False
    retrained_test: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRow:
    """One attack on both models.

    Attributes:
        name: What it is called.
        question: What it asks, as a sentence.
        original: Its score against the original model; None: not run.
        unlearned: Likewise against the unlearned one.
        members: Number of rows that were trained on.
        non_members: Number of rows that were not.
        ideal: The score of a model that never saw the forgotten rows; None: not known.
        retrained: The score against a model that was trained without them; None: there is none.
    """

    name: str
    question: str
    original: float | None
    unlearned: float | None
    members: int
    non_members: int
    ideal: float | None = None
    retrained: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """All that the report says; numbers and names only, no models or data.

    Attributes:
        title: Headline; empty: what was forgotten.
        verdict: Of the gates.
        pipeline: The pipeline that ran.
        method: The unlearning method.
        method_source: Where it is published: "arXiv:2111.08947".
        settings: The method's settings.
        seed: Of the run.
        model_name: As the user calls it.
        original_digest: sha256 of the original model.
        unlearned_digest: sha256 of the unlearned model.
        manifest_digest: sha256 of the data manifest.
        dataset_name: As the user calls it.
        forget_classes: Names of the forgotten classes; empty when rows or people were forgotten.
        rows: Set name (forget_train, retain_train, retain_available, forget_test, retain_test) to number of rows.
        metrics: Every measured number by its name; None: it could not be measured.
        per_class: One row per class, in class order.
        figures: Name to (media type, bytes); SVG or PNG. The names of `figures`' functions get captions.
        seconds: Stage to wall time.
        versions: Package to version.
        reference: What the unlearned model was compared with, as a sentence.
        not_claimed: What nobody may conclude from this report, a sentence each.
        attacks: One row per attack.
        audit: One row per deeper attack, of a run that had an audit.
        anamnesis_index: Of that audit, as text, since it may be a bound: "0.29", "> 1.2"; empty: not measured.
        finished: When the run ended, as the caller writes it; empty: not said.
        request: What was forgotten: "class", "subject" or "sample".
        notes: What the method said of its own course.
    """

    title: str
    verdict: Verdict
    pipeline: str
    method: str
    method_source: str
    settings: Mapping[str, Any]
    seed: int
    model_name: str
    original_digest: str
    unlearned_digest: str
    manifest_digest: str
    dataset_name: str
    forget_classes: Sequence[str]
    rows: Mapping[str, int]
    metrics: Mapping[str, float | None]
    per_class: Sequence[ClassRow]
    reference: str
    not_claimed: Sequence[str]
    attacks: Sequence[AttackRow] = ()
    audit: Sequence[AttackRow] = ()
    anamnesis_index: str = ""
    figures: Mapping[str, tuple[str, bytes]] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    finished: str = ""
    request: str = "class"
    notes: Mapping[str, str | float | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse pictures that a page must not carry."""
        check_figures(self.figures)


def check_figures(figures: Mapping[str, tuple[str, bytes]]) -> None:
    """Nothing, when a page may carry them all.

    Raises:
        UsageError: For another media type than SVG and PNG.
    """
    for name, (media_type, _) in figures.items():
        if media_type not in _MEDIA_TYPES:
            raise UsageError(
                f'report figure "{clean(name)}": wanted {" or ".join(_MEDIA_TYPES)}, got "{clean(media_type)}"'
            )


def verdict_sentence(report: RunReport) -> str:
    """The verdict in one line of plain text, its word first: "PASS: the model no longer recognises class 3 ...".

    That a class is no longer recognised is said only when a gate on its unseen examples passed and their accuracy is at
    most 5%; a looser policy's pass reads as the plain numbers.
    """
    return plain(f"{WORDS[report.verdict.outcome]}: {_sentence(report)}")


def render_html(report: RunReport) -> str:
    """One HTML page that needs nothing else: no script, no other resource; the same report gives the same text."""
    return page_template("report.html.j2").render(
        report=report,
        headline=_headline(report),
        word=WORDS[report.verdict.outcome],
        sentence=_sentence(report),
        tiles=_tiles(report),
        figures=_figures_by_section(report),
        shown_classes=_shown_classes(report.per_class),
        settings=[(key, _setting(value)) for key, value in report.settings.items()],
        rows=[(_rows(report).get(key, key), count) for key, count in report.rows.items()],
        forgotten=_forgotten(report, most=20),
        notes=[(key.replace("_", " "), _setting(value)) for key, value in report.notes.items()],
        total=sum(report.seconds.values()),
    )


def render_markdown(report: RunReport) -> str:
    """A short summary in Markdown: the verdict, the gates, what was run, what is not claimed; no HTML."""
    sentence = _sentence(report)
    lines = [
        f"# {escaped_markdown(plain(_headline(report)))}",
        "",
        f"**{WORDS[report.verdict.outcome]}**: {escaped_markdown(plain(sentence))}",
        "",
        escaped_markdown(clean(report.reference, 600)),
        "",
        "| gate | measured | allowed | outcome |",
        "| --- | ---: | ---: | --- |",
    ]
    for gate in report.verdict.gates:
        bound = _beside(gate.value, gate.low, gate.high)
        cells = (
            clean(label(gate.metric, report.request), 160),
            amount(gate.metric, gate.value, against=bound),
            wording.allowed(gate.metric, gate.low, gate.high),
            gate.outcome,
        )
        lines.append(f"| {' | '.join(escaped_markdown(cell) for cell in cells)} |")
    digests = (report.original_digest, report.unlearned_digest)
    facts = {
        "forgotten": _forgotten(report),
        "data set": f"{clean(report.dataset_name)}, manifest {clean(report.manifest_digest[:12])}",
        "method": f"{clean(report.method)} ({clean(report.method_source)}), seed {report.seed}",
        "model": f"{clean(report.model_name)}, {' → '.join(clean(digest[:12]) for digest in digests)}",
        "time": wording.duration(sum(report.seconds.values())) if report.seconds else "",
    }
    lines += ["", *(f"- {what}: {escaped_markdown(plain(fact))}" for what, fact in facts.items() if fact)]
    if report.verdict.caveats:
        lines += ["", "What weakens the verdict:", ""]
        lines += [f"- {escaped_markdown(clean(sentence, 400))}" for sentence in report.verdict.caveats]
    if report.not_claimed:
        lines += ["", "Not claimed:", ""]
        lines += [f"- {escaped_markdown(clean(sentence, 600))}" for sentence in report.not_claimed]
    return "\n".join(lines) + "\n"


def _headline(report: RunReport) -> str:
    """Between isolation marks where it names something."""
    return isolated(report.title, 200) if report.title else f"Forgetting {_forgotten(report, most=3)}"


def _rows(report: RunReport) -> Mapping[str, str]:
    return _ROWS["class" if report.request == "class" else "rows"]


def _forgotten(report: RunReport, most: int = 5) -> str:
    """What was forgotten, as part of a sentence; people and rows are counted, never named."""
    if report.request == "class":
        return listed(report.forget_classes, most=most)
    count = report.rows.get("forget_train", 0)
    examples = f"{wording.counted(count)} training example{'' if count == 1 else 's'}"
    return examples + wording.WHOSE.get(report.request, "")


def _sentence(report: RunReport) -> str:
    """Without the verdict's word; names between isolation marks."""
    verdict, numbers = report.verdict, report.metrics
    names = _forgotten(report)
    if verdict.outcome == "fail":
        return f"this model must not replace the original. {wording.closing(verdict, report.request)}"
    if verdict.outcome == "inconclusive":
        closing = wording.closing(verdict, report.request)
        first = next(gate for gate in verdict.gates if gate.outcome == "inconclusive")
        few = "it cannot be told" if first.metric.startswith(("control.", "overlap.")) else "too few examples to tell"
        return f"{few} whether {names} can count as forgotten. {closing}"
    count = len(verdict.gates)
    which = "its only gate passed" if count == 1 else f"all {count} gates passed"
    if predicts_values(report):
        seen, retain = _pair(numbers, "forget_mae.train"), _pair(numbers, "retain_mae.test")
        if seen is None or retain is None:
            return f"{which} for {names}."
        return (
            f"by what was measured, the model treats {names} like examples that it never saw: it is off by {seen[1]} "
            f"on them (was {seen[0]}), and by {retain[1]} on unseen ones (was {retain[0]})."
        )
    retain = _pair(numbers, "retain_accuracy.test")
    if report.request != "class":
        seen = _pair(numbers, "forget_accuracy.train")
        alike = any(gate.metric == "seen_gap.forget.unlearned" for gate in verdict.gates) and seen and retain
        if not alike or seen is None or retain is None:
            return f"{which} for {names}{f'; on unseen examples the model keeps {retain[1]}' if retain else ''}."
        return (
            f"by what was measured, the model treats {names} like examples that it never saw: it gets {seen[1]} of "
            f"them right (was {seen[0]}), and {retain[1]} of unseen ones (was {retain[0]})."
        )
    forget = _pair(numbers, "forget_accuracy.test")
    level = numbers.get("forget_accuracy.test.unlearned")
    gated = any(gate.metric == "forget_accuracy.test.unlearned" for gate in verdict.gates)
    kept = f"keeps {retain[1]} (was {retain[0]}) on the others" if retain else ""
    if gated and level is not None and level <= RECOGNISED:
        those = "them" if len(report.forget_classes) > 1 else "it"
        change = f" ({forget[0]} → {forget[1]} on unseen examples of {those})" if forget else ""
        return f"the model no longer recognises {names}{change}{' and ' + kept if kept else ''}."
    change = f"; on unseen examples of {names} accuracy went from {forget[0]} to {forget[1]}" if forget else ""
    return f"{which}{change}{'; the model ' + kept if kept else ''}."


def predicts_values(report: RunReport) -> bool:
    """Whether the model is a regressor, by what was measured of it."""
    return "retain_mae.test.unlearned" in report.metrics


def _pair(numbers: Mapping[str, float | None], stem: str) -> tuple[str, str] | None:
    before, after = numbers.get(f"{stem}.original"), numbers.get(f"{stem}.unlearned")
    if before is None or after is None or not math.isfinite(before) or not math.isfinite(after):
        return None
    return amount(stem, before), amount(stem, after)


def _tiles(report: RunReport) -> list[tuple[str, str, str, str]]:
    """(what, before, after, remark) of the numbers that matter most, where both were measured."""
    auc = ("membership_auc.entropy.forget", "Membership attack", "AUC on forgotten rows; 0.5 is chance")
    if predicts_values(report):
        wanted = [
            ("forget_mae.train", "Forgotten examples", "mean absolute error; like that on unseen ones is wanted"),
            ("retain_mae.test", "Unseen examples", "mean absolute error"),
            ("membership_auc.residual.forget", "Membership attack", "AUC on forgotten rows; 0.5 is chance"),
        ]
    elif report.request == "class":
        wanted = [
            ("forget_accuracy.test", "Forgotten classes", "accuracy on unseen examples"),
            ("retain_accuracy.test", "All other classes", "accuracy on unseen examples"),
            auc,
        ]
    else:
        wanted = [
            ("forget_accuracy.train", "Forgotten examples", "accuracy; like that on unseen ones, not 0, is wanted"),
            ("retain_accuracy.test", "Unseen examples", "accuracy"),
            auc,
        ]
    tiles = []
    for stem, what, remark in wanted:
        if (pair := _pair(report.metrics, stem)) is not None:
            reference = report.metrics.get(f"{stem}.retrained")
            beside = "" if reference is None else f"; retrained: {amount(stem, reference)}"
            tiles.append((what, *pair, f"{remark}{beside}"))
    return tiles


def _shown_classes(rows: Sequence[ClassRow]) -> Sequence[ClassRow]:
    """All, or of many the forgotten ones and those that lost most."""
    if len(rows) <= FOLD_CLASSES:
        return rows
    forgotten = [row for row in rows if row.forgotten][:FOLD_CLASSES]
    others = [row for row in rows if not row.forgotten]
    return forgotten + sorted(others, key=lambda row: -_lost(row))[:WORST_SHOWN]


def _lost(row: ClassRow) -> float:
    if row.original_test is None or row.unlearned_test is None:
        return -1.0
    return row.original_test - row.unlearned_test


def _figures_by_section(report: RunReport) -> dict[str, list[dict[str, str]]]:
    """Section to its figures, in a fixed order; those without a known name come last, under "more"."""
    sections: dict[str, list[dict[str, str]]] = {
        key: [] for key in ("classes", "values", "attacks", "audit", "weights", "method", "time", "more")
    }
    names = [*(name for name in _FIGURES if name in report.figures), *(n for n in report.figures if n not in _FIGURES)]
    for name in names:
        section, heading, caption = _FIGURES.get(name, ("more", clean(name).replace("_", " "), ""))
        sections[section].append(embedded(report.figures[name], heading, caption, _alt(name, heading, report)))
    return sections


def embedded(figure: tuple[str, bytes], heading: str, caption: str, alt: str) -> dict[str, str]:
    """A figure as the templates' macro takes it: its media type and bytes become part of the page."""
    media_type, content = figure
    return {
        "heading": heading,
        "caption": caption,
        "alt": alt,
        "source": f"data:{media_type};base64,{base64.b64encode(content).decode()}",
        "kind": "chart" if media_type == "image/svg+xml" else "picture",
    }


def _alt(name: str, heading: str, report: RunReport) -> str:
    if name == "per_class_accuracy":
        gone = [row for row in report.per_class if row.forgotten][:3]
        said = "; ".join(f"{clean(r.name)}: {percent(r.original_test)} to {percent(r.unlearned_test)}" for r in gone)
        said = f" {said}." if said else ""
        return f"Chart of the accuracy of each class before and after.{said} The table below has every number."
    if name == "stage_times":
        stages = list(report.seconds.items())[:20]
        said = ", ".join(f"{clean(stage)} {wording.duration(time)}" for stage, time in stages)
        return f"Bar chart of the time of each stage: {said}."
    if name == "roc_curves":
        said = "; ".join(f"{clean(a.name)}: {_score(a.original)}, then {_score(a.unlearned)}" for a in report.attacks)
        return f"ROC curves of the membership attack on both models; areas: {said}."
    if name == "noise_pictures":
        return f"Pictures of learned noise for {plain(_forgotten(report))}."
    return f"Figure: {heading}."


def _heading(metric: str, request: str) -> str:
    words = label(metric, request)
    return words if words == metric else words[0].upper() + words[1:]


def _score(value: float | None) -> str:
    return wording.DASH if value is None else f"{value:.3f}".replace("-", wording.MINUS)


def _error(gate: Gate) -> str:
    """Its standard error in the unit of its value; a dash for a question of yes or no."""
    told = gate.metric in CONTROLS or gate.metric.startswith("finding.")
    return wording.DASH if told or not gate.standard_error else amount(gate.metric, gate.standard_error)


def _beside(value: float | None, low: float | None, high: float | None) -> float | None:
    """The bound that a value must not be mistaken for: the nearest."""
    ends = [end for end in (low, high) if end is not None]
    return min(ends, key=lambda end: abs(end - value)) if value is not None else None


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def escaped_markdown(text: str) -> str:
    """Text without meaning to Markdown: no markup, no HTML, no table cell, no link that makes itself."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|#!~])", r"\\\1", text)
    return text.replace("://", r":\/\/").replace("www.", r"www\.").replace("@", r"\@")


def _bdi(text: Any, most: int = wording.NAME_LENGTH) -> Markup:
    return Markup("<bdi>{}</bdi>").format(clean(text, most))


def _isolating(text: str) -> Markup:
    """A sentence's isolation marks as elements: they stand in for them and can hold nothing but text."""
    # Safe: what is marked up is escaped first, and the names in it have lost any marks of their own.
    return Markup(str(escape(text)).replace(OPEN, "<bdi>").replace(CLOSE, "</bdi>"))  # noqa: S704


@cache
def page_template(name: str) -> Template:
    """The template of one page, with the filters that all pages share."""
    environment = Environment(
        loader=PackageLoader("unlearning.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "allowed": lambda gate: wording.allowed(gate.metric, gate.low, gate.high),
        "amount": amount,
        "bdi": _bdi,
        "clean": clean,
        "count": wording.counted,
        "duration": wording.duration,
        "error": _error,
        "isolated": isolated,
        "plain": plain,
        "isolating": _isolating,
        "heading": _heading,
        "digits": lambda number: "not measured" if number is None else f"{number:.6g}".replace("-", wording.MINUS),
        "measured": lambda gate: amount(gate.metric, gate.value, against=_beside(gate.value, gate.low, gate.high)),
        "percent": percent,
        "points": points,
        "score": _score,
    }
    return environment.get_template(name)
