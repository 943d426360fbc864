"""The page of a comparison: every method beside the original and a retrained model, in one table and one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from unlearning.reporting import wording
from unlearning.reporting.report import check_figures, embedded, escaped_markdown, page_template
from unlearning.reporting.wording import clean, listed, plain

_COLUMNS = {
    "forget_accuracy.train": "Forgotten, as trained on",
    "forget_accuracy.test": "Forgotten, unseen",
    "retain_accuracy.test": "Others, unseen",
    "forget_mae.train": "Error on forgotten, as trained on",
    "forget_mae.test": "Error on forgotten, unseen",
    "retain_mae.test": "Error on others, unseen",
    "forgetting_gap": "Forgetting gap",
    "utility_gap": "Others, against retrained",
    "membership_auc.loss.forget": "Attack AUC",
    "membership_auc.residual.forget": "Attack AUC",
    "membership_gap": "AUC gap",
    "divergence": "Divergence, bits",
    "wasserstein": "Wasserstein distance",
    "seconds": "Time",
}
LEAD = (
    "Forgetting well is to end up where the retrained model is: on the forgotten examples, on all others, and to an "
    "attacker. Look for the row nearest to it, not for 0%."
)


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over seeds."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonRow:
    """One method, or one of the two models that all are held against.

    Attributes:
        method: Its name.
        title: What it does.
        reads: Which rows it reads; empty for the two models.
        figures: Column to figure; empty when no run gave a model.
        failed: Why runs gave none; empty when all did.
        seeds: Runs that the figures are over.
    """

    method: str
    title: str
    reads: str
    figures: Mapping[str, Spread]
    failed: str = ""
    seeds: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonReport:
    """All that the page says.

    Attributes:
        title: Headline.
        pipeline: The pipeline that ran.
        model_name: As the user calls it.
        original_digest: sha256 of the original model.
        dataset_name: As the user calls it.
        manifest_digest: sha256 of the data manifest.
        request: "class", "subject" or "sample".
        forget_classes: Names; empty when rows or people were forgotten.
        rows: What to its number of rows.
        seeds: Of the runs.
        columns: Names of the figures, in order; fractions, and "seconds".
        table: The two models, then the methods.
        refused: Method to why it was not run.
        reference: Where the retrained model comes from, as a sentence.
        not_claimed: What nobody may conclude, a sentence each.
        figures: Name to (media type, bytes); "method_comparison" gets a caption.
        versions: Package to version.
    """

    title: str
    pipeline: str
    model_name: str
    original_digest: str
    dataset_name: str
    manifest_digest: str
    request: str
    forget_classes: Sequence[str]
    rows: Mapping[str, int]
    seeds: Sequence[int]
    columns: Sequence[str]
    table: Sequence[ComparisonRow]
    refused: Mapping[str, str]
    reference: str
    not_claimed: Sequence[str]
    figures: Mapping[str, tuple[str, bytes]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse pictures that a page must not carry."""
        check_figures(self.figures)


def render_comparison_html(report: ComparisonReport) -> str:
    """One HTML page that needs nothing else: no script, no other resource; the same report gives the same text."""
    caption = (
        "To the left: as much forgotten as by retraining. Up: better on everything else. The larger a disc, the longer "
        "the method took."
    )
    alt = "Chart of every method: forgetting gap against accuracy on the rest. The table has every number."
    figures = [
        embedded(content, *(("Forgetting and use", caption) if name == "method_comparison" else (clean(name), "")), alt)
        for name, content in report.figures.items()
    ]
    return page_template("comparison.html.j2").render(
        report=report,
        lead=LEAD,
        what=_what(report),
        figures=figures,
        values="wasserstein" in report.columns,
        columns=[_COLUMNS.get(name, name) for name in report.columns],
        table=[(row, [_cell(row, name) for name in report.columns]) for row in report.table],
        several=len(report.seeds) > 1,
        rows=[(name.replace("_", " "), count) for name, count in report.rows.items()],
    )


def render_comparison_markdown(report: ComparisonReport) -> str:
    """The table in Markdown; no HTML."""
    lines = [f"# {escaped_markdown(clean(report.title, 200))}", "", LEAD, ""]
    lines += [
        f"Forgotten: {escaped_markdown(plain(_what(report)))}. {escaped_markdown(clean(report.reference, 600))}",
        "",
    ]
    lines += [
        f"| method | {' | '.join(_COLUMNS.get(name, escaped_markdown(clean(name))) for name in report.columns)} |",
        f"| --- | {' | '.join('---:' for _ in report.columns)} |",
    ]
    for row in report.table:
        cells = [mean for mean, _ in (_cell(row, name) for name in report.columns)]
        lines.append(f"| {escaped_markdown(clean(row.method))} | {' | '.join(cells)} |")
    said = {row.method: row.failed for row in report.table if row.failed} | dict(report.refused)
    if said:
        lines += [
            "",
            *(f"- {escaped_markdown(clean(name))}: {escaped_markdown(clean(why, 300))}" for name, why in said.items()),
        ]
    if report.not_claimed:
        lines += ["", "Not claimed:", ""]
        lines += [f"- {escaped_markdown(clean(sentence, 600))}" for sentence in report.not_claimed]
    return "\n".join(lines) + "\n"


def _what(report: ComparisonReport) -> str:
    if report.request == "class":
        return listed(report.forget_classes, most=20)
    whose = wording.WHOSE.get(report.request, "")
    return f"{wording.counted(report.rows.get('forget_train', 0))} training examples{whose}"


def _cell(row: ComparisonRow, name: str) -> tuple[str, str]:
    """The mean, and the range over seeds when there is one."""
    if name not in row.figures:
        return wording.DASH, ""
    figure = row.figures[name]
    shown = [_shown(name, value) for value in (figure.mean, figure.low, figure.high)]
    return shown[0], f"{shown[1]} to {shown[2]}" if row.seeds > 1 and figure.low < figure.high else ""


def _shown(name: str, value: float) -> str:
    if name == "seconds":
        return wording.duration(value)
    if name == "utility_gap":
        return wording.signed(100 * value)
    if name == "forgetting_gap":
        return f"{100 * value:.1f}"
    if name == "wasserstein" or "_mae" in name:
        return f"{value:.4g}"
    return f"{value:.3f}" if name.startswith(("membership", "divergence")) else wording.percent(value)
