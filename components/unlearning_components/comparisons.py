"""From a comparison's artifacts to its table, its picture and its page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

from unlearning.comparison import COLUMNS, REFERENCES, VALUE_COLUMNS, Candidate, compare
from unlearning.data.samples import Samples
from unlearning.data.selection import read_rows
from unlearning.methods import METHODS, candidates, settings_by_method
from unlearning.models.bundle import ModelCard, load_bundle, read_bundle
from unlearning.progress import Lines
from unlearning.reporting.comparison import (
    ComparisonReport,
    ComparisonRow,
    Spread,
    render_comparison_html,
    render_comparison_markdown,
)
from unlearning.reporting.figures import method_comparison
from unlearning.training import best_device
from unlearning_components.reports import PACKAGES
from unlearning_components.surroundings import fetch_manifest, open_for, subset, task_for

GIVEN = "The retrained model was given, and taken to be what its name says."
MADE = "The retrained model was trained on all rows but the forgotten ones, by the original's recipe."
NOT_CLAIMED = (
    "That the nearest method here is the nearest on another model, another request or with other settings.",
    "That a method near the retrained model by these numbers has left no trace: these are few questions about outputs.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a comparison leaves behind.

    Attributes:
        content: Every run, as JSON types.
        metrics: Means over seeds: "unsir.forgetting_gap", ...
        figure: SVG.
        page: HTML.
        text: Markdown.
    """

    content: dict[str, Any]
    metrics: dict[str, float]
    figure: bytes
    page: str
    text: str


def run_comparison(
    folders: Mapping[str, Path],
    *,
    model: str,
    manifest: str,
    methods: Sequence[str],
    settings: Mapping[str, Any],
    seeds: Sequence[int],
    summary: Mapping[str, float],
) -> Comparison:
    """Run the methods on the artifacts' model and rows, and write up what came out.

    Args:
        folders: The artifacts: original, retrained, forget, retain, holdout.
        model: Address of the original.
        manifest: The data set, as for select.
        methods: Names; empty: all that serve the request.
        settings: Method to settings.
        seeds: Of the runs.
        summary: Of the pipeline's run, so far.

    Raises:
        UsageError: When no method is left, or a setting is wrong.
    """
    data = fetch_manifest(manifest)
    forget, retain, holdout = (str(folders[name]) for name in ("forget", "retain", "holdout"))
    meta = read_rows(forget)[1]
    device = best_device()
    original, card = load_bundle(folders["original"])
    names, refused = candidates(meta["request"], methods, task=card.task)
    chosen = settings_by_method(settings, names)
    retrained, theirs = load_bundle(folders["retrained"])

    def sets_for(model: ModelCard) -> dict[str, Samples]:
        samples = open_for(model, data)
        sets = {
            "forget.train": subset(samples, forget, "forget", data),
            "forget.test": subset(samples, holdout, "holdout_forget", data),
            "retain.test": subset(samples, holdout, "holdout_retain", data),
        }
        return {name: rows for name, rows in sets.items() if len(rows)}

    sets = sets_for(card)
    runs = list(
        compare(
            original.to(device),
            retrained.to(device),
            task_for(("forget", "retain", "calibration"), card, data, forget, retain, holdout),
            sets,
            names=names,
            settings=chosen,
            recipe=card.recipe,
            seeds=seeds,
            values=card.task == "regression",
            reference_sets=sets_for(theirs) if theirs.scaling != card.scaling else None,
            progress=Lines(),
        )
    )
    before, reference = (read_bundle(folders[name]) for name in REFERENCES)
    made = (reference.card.method or {}).get("name") == "retrain"
    table = sorted(_rows(runs, summary.get("retraining_seconds")), key=_distance)
    values = card.task == "regression"
    figure = method_comparison(
        [
            (
                row.method,
                row.figures["forgetting_gap"].mean,
                row.figures["retain_mae.test" if values else "retain_accuracy.test"].mean,
                row.figures["seconds"].mean if "seconds" in row.figures else 0.0,
            )
            for row in table
            if row.figures
        ],
        values=values,
    )
    report = ComparisonReport(
        title="Comparison of methods",
        pipeline="compare_methods",
        model_name=model,
        original_digest=before.digest,
        dataset_name=data.card.name,
        manifest_digest=data.digest,
        request=meta["request"],
        forget_classes=[data.card.classes[index] for index in meta["forget_classes"]],
        rows={name.replace(".", "_"): len(rows) for name, rows in sets.items()},
        seeds=list(seeds),
        columns=[name for name in (VALUE_COLUMNS if values else COLUMNS) if any(name in row.figures for row in table)],
        table=table,
        refused=refused,
        reference=MADE if made else GIVEN,
        not_claimed=NOT_CLAIMED,
        figures={"method_comparison": ("image/svg+xml", figure)},
        versions={name: version(name) for name in PACKAGES},
    )
    return Comparison(
        content={"seeds": list(seeds), "runs": [asdict(run) for run in runs], "refused": refused},
        metrics={f"{row.method}.{name}": spread.mean for row in table for name, spread in row.figures.items()},
        figure=figure,
        page=render_comparison_html(report),
        text=render_comparison_markdown(report),
    )


def _rows(runs: Sequence[Candidate], retraining: float | None) -> Iterator[ComparisonRow]:
    for name in dict.fromkeys(run.name for run in runs):
        mine = [run for run in runs if run.name == name]
        whole = [run.figures for run in mine if not run.failed]
        figures = {column: _spread([one[column] for one in whole]) for column in (whole[0] if whole else ())}
        if name == "retrained" and retraining is not None:
            figures["seconds"] = _spread([retraining])
        row = METHODS.get(name)
        broken = [run.failed for run in mine if run.failed]
        yield ComparisonRow(
            method=name,
            title=row.title if row else {"original": "before", "retrained": "never saw what is forgotten"}[name],
            reads=(", ".join(row.reads) or "no data") if row else "",
            figures=figures,
            failed=f"{len(broken)} of {len(mine)} runs broke down: {broken[0]}" if broken else "",
            seeds=len(whole),
        )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), min(values), max(values))


def _distance(row: ComparisonRow) -> tuple[bool, float, float]:
    """The two references first, then by how near to the retrained model; those without a model last."""
    gap, utility = (row.figures[name].mean if row.figures else math.inf for name in ("forgetting_gap", "utility_gap"))
    return row.method not in REFERENCES, gap if row.method not in REFERENCES else 0.0, -utility
