"""Pictures of an audit: what comes back when a model is trained again, and where its weights moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unlearning.attacks.relearning import RelearningAttack
from unlearning.metrics.distance import LayerDistance
from unlearning.reporting.drawing import (
    ORIGINAL,
    RETRAINED,
    RULE,
    UNLEARNED,
    WIDTH,
    as_svg,
    legend,
    one_panel,
    short,
    styled,
    two_panels,
)

MOST_LAYERS = 40
TITLES = {"few_shots": "on a few forgotten rows", "retain_only": "on retained rows alone"}


def relearning_curves(attacks: Mapping[str, RelearningAttack], what: str = "accuracy") -> bytes:
    """SVG: accuracy on what was forgotten while a copy of each model is trained again; a thin line for each order.

    Args:
        attacks: "few_shots" and "retain_only".
        what: What stands for the accuracy, such as "skill".
    """
    with styled():
        figure, *panels = two_panels(3.6)
        for axes, (name, attack) in zip(panels, attacks.items(), strict=False):
            for curves, style, marker, colour, label in (
                (attack.unlearned, "-", "D", UNLEARNED, "unlearned"),
                (attack.reference, "--", "^", RETRAINED, "retrained, never saw it"),
            ):
                updates = curves[0].updates
                for curve in curves:
                    axes.plot(updates, curve.accuracies, color=colour, linestyle=style, linewidth=0.7, alpha=0.5)
                means = np.mean([curve.accuracies for curve in curves], axis=0)
                axes.plot(updates, means, color=colour, linestyle=style, marker=marker, markersize=5, label=label)
            axes.set_ylim(-0.02, 1.02)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
            axes.set_xlabel("updates")
            axes.set_title(TITLES.get(name, name))
            axes.grid(color=RULE, linewidth=0.8)
        panels[0].set_ylabel(f"{what} on what was forgotten")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False)
        return as_svg(figure)


def layer_distances(unlearned: Sequence[LayerDistance], retrained: Sequence[LayerDistance] = ()) -> bytes:
    """SVG: how far each layer's weights lie from the original's, as a share of their norm.

    Args:
        unlearned: Of the unlearned model, in the network's order.
        retrained: Of the retrained one, for comparison; its units may stand in another order.
    """
    kept = [one for one in unlearned if np.isfinite(one.relative)][:MOST_LAYERS]
    beside = {one.layer: one.relative for one in retrained}
    with styled():
        figure, axes = one_panel(WIDTH, 1.3 + 0.3 * max(1, len(kept)))
        at = np.arange(len(kept))
        axes.hlines(at, 0, [one.relative for one in kept], color=UNLEARNED, linewidth=2)
        axes.scatter([one.relative for one in kept], at, marker="D", color=UNLEARNED, s=36, label="unlearned", zorder=3)
        if beside:
            there = [beside.get(one.layer, np.nan) for one in kept]
            axes.scatter(there, at, marker="^", color=RETRAINED, s=40, label="retrained", zorder=3)
        axes.set_yticks(at, [short(one.layer or "(the network's own)", 34) for one in kept])
        axes.set_ylim(max(1, len(kept)) - 0.5, -0.5)
        axes.set_xlim(left=0)
        more = f"\nthe first {len(kept)} of {len(unlearned)} layers" if len(kept) < len(unlearned) else ""
        axes.set_xlabel(f"distance from the original, as a share of its norm{more}")
        axes.grid(axis="x", color=RULE, linewidth=0.8)
        legend(figure)
        return as_svg(figure)


def confidence_histograms(shares: Mapping[str, Sequence[float]]) -> bytes:
    """SVG: how sure the models are of the forgotten training rows.

    Args:
        shares: "original", "unlearned", perhaps "retrained", to the share of rows in equally wide bins of the highest
            probability, from 0 to 1; as many bins for each.
    """
    look = {"original": ("--", ORIGINAL), "unlearned": ("-", UNLEARNED), "retrained": (":", RETRAINED)}
    with styled():
        figure, axes = one_panel(WIDTH, 3.2)
        for name, values in shares.items():
            style, colour = look[name]
            edges = np.linspace(0, 1, len(values) + 1)
            axes.stairs(values, edges, color=colour, linestyle=style, linewidth=2.2, label=name)
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
        axes.set_xlabel("probability that the model gives its answer")
        axes.set_ylabel("share of forgotten rows")
        axes.grid(axis="y", color=RULE, linewidth=0.8)
        legend(figure)
        return as_svg(figure)
