"""Pictures of predicted values: where a regressor errs, and what it says of the forgotten rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from unlearning.metrics.regression import Bin
from unlearning.reporting.drawing import (
    INK,
    ORIGINAL,
    QUIET,
    RULE,
    UNLEARNED,
    WIDTH,
    as_svg,
    legend,
    one_panel,
    styled,
)
from unlearning.reporting.wording import clean

MOST_BINS = 40


def error_by_target(original: Sequence[Bin], unlearned: Sequence[Bin], unit: str = "") -> bytes:
    """SVG: the mean absolute error on unseen rows as it depends on the target, before (ring) and after (diamond).

    Args:
        original: Bins of the original model's errors; those without rows are left blank.
        unlearned: Of the unlearned model, with the same edges.
        unit: Of the targets; may be empty.
    """
    with styled():
        figure, axes = one_panel(WIDTH, 3.6)
        for bins, marker, colour, name in ((original, "o", ORIGINAL, "before"), (unlearned, "D", UNLEARNED, "after")):
            there = [one for one in bins if one.mae is not None]
            axes.plot(
                [(one.low + one.high) / 2 for one in there],
                [one.mae or 0.0 for one in there],
                marker=marker,
                markerfacecolor="white" if name == "before" else colour,
                linestyle="--" if name == "before" else "-",
                color=colour,
                label=name,
            )
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"target{_of(unit)}")
        axes.set_ylabel(f"mean absolute error{_of(unit)}")
        axes.grid(color=RULE, linewidth=0.8)
        top = axes.secondary_xaxis("top")
        top.set_xticks(
            [(one.low + one.high) / 2 for one in unlearned if one.count],
            [f"{one.count}" for one in unlearned if one.count],
            fontsize=8,
            color=QUIET,
        )
        top.set_xlabel("unseen rows", fontsize=8)
        legend(figure)
        return as_svg(figure)


def forget_predictions(original: ArrayLike, unlearned: ArrayLike, targets: ArrayLike, unit: str = "") -> bytes:
    """SVG: the forgotten training rows' true values, and what both models say of them, as outlines over one axis.

    Args:
        original: Predictions, shape (M,).
        unlearned: Likewise.
        targets: True values, shape (M,).
        unit: Of the values; may be empty.
    """
    series = [np.asarray(values, dtype=np.float64) for values in (targets, original, unlearned)]
    low, high = min(one.min() for one in series), max(one.max() for one in series)
    count = int(min(MOST_BINS, max(8, np.sqrt(len(series[0])))))
    edges = np.linspace(low, high if high > low else low + 1, count + 1)
    with styled():
        figure, axes = one_panel(WIDTH, 3.4)
        shares = [np.histogram(one, edges)[0] / len(one) for one in series]
        axes.stairs(shares[0], edges, fill=True, facecolor="#eceff2", edgecolor=QUIET, hatch="//", label="true values")
        axes.stairs(shares[1], edges, color=ORIGINAL, linestyle="--", linewidth=2, label="predicted before")
        axes.stairs(shares[2], edges, color=UNLEARNED, linewidth=2.2, label="predicted after")
        axes.set_xlabel(f"value{_of(unit)}")
        axes.set_ylabel("share of the forgotten rows")
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}%")
        axes.tick_params(colors=INK)
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        figure.legend(loc="outside upper left", ncols=3, frameon=False)
        return as_svg(figure)


def _of(unit: str) -> str:
    return f" ({clean(unit, 30)})" if unit else ""
