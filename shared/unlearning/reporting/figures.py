"""Pictures of a run as bytes: SVG for charts, PNG for pictures. The same data give the same bytes.

Everything is told apart by shape, hatching or words as well as by colour. Beyond 30 classes a chart shows the
forgotten ones and those that changed most, and says so.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unlearning.errors import DataError
from unlearning.reporting.drawing import (
    INK,
    ORIGINAL,
    QUIET,
    RETRAINED,
    RULE,
    UNLEARNED,
    WIDTH,
    as_png,
    as_svg,
    in_percent,
    legend,
    one_panel,
    short,
    styled,
    two_panels,
    wrapped,
)
from unlearning.reporting.wording import clean, duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]

MOST_CLASSES = 30
_CURVES = {
    "noise": "Noise: objective",
    "impair": "Impair: loss",
    "repair": "Repair: loss",
}


def per_class_accuracy(
    classes: Sequence[str],
    original: Sequence[float | None],
    unlearned: Sequence[float | None],
    forgotten: Collection[str],
) -> bytes:
    """SVG: accuracy of each class before (ring) and after (diamond), the forgotten classes hatched and named so.

    Args:
        classes: Class names, C >= 1.
        original: Accuracy of each class, C values in [0, 1]; None: the class has no samples.
        unlearned: Likewise.
        forgotten: Names of forgotten classes.
    """
    before, after = _shares(original, classes, "original"), _shares(unlearned, classes, "unlearned")
    rows, note = _chosen(classes, np.abs(np.nan_to_num(after - before)), forgotten)
    with styled():
        figure, axes = one_panel(WIDTH, 1.3 + 0.3 * len(rows))
        at = np.arange(len(rows))
        _class_axis(axes, [classes[row] for row in rows], forgotten)
        axes.hlines(at, before[rows], after[rows], color="#8c959f", linewidth=2, zorder=2)
        ring: dict[str, Any] = {"marker": "o", "facecolor": "white", "edgecolor": ORIGINAL, "linewidth": 1.8, "s": 62}
        axes.scatter(before[rows], at, label="before", zorder=3, **ring)
        axes.scatter(after[rows], at, label="after", marker="D", color=UNLEARNED, s=36, zorder=4)
        for y in at[np.isnan(before[rows]) & np.isnan(after[rows])]:
            axes.text(0.01, float(y), "no samples", va="center", color=QUIET)
        axes.set_xlim(-0.02, 1.02)
        in_percent(axes, "accuracy" + note)
        legend(figure)
        return as_svg(figure)


def prediction_distribution(
    classes: Sequence[str], original: Sequence[float], unlearned: Sequence[float], forgotten: Collection[str]
) -> bytes:
    """SVG: what the two models call the samples of the forgotten classes.

    Args:
        classes: Class names, C >= 1.
        original: Share of the samples that the original model calls each class, C values in [0, 1].
        unlearned: Likewise.
        forgotten: Names of forgotten classes.
    """
    before, after = _shares(original, classes, "original"), _shares(unlearned, classes, "unlearned")
    rows, note = _chosen(classes, np.nan_to_num(np.maximum(before, after)), forgotten, "predicted most")
    with styled():
        figure, axes = one_panel(WIDTH, 1.3 + 0.38 * len(rows))
        at = np.arange(len(rows))
        _class_axis(axes, [classes[row] for row in rows], forgotten)
        kind: dict[str, Any] = {"height": 0.36, "linewidth": 1.0, "zorder": 3}
        axes.barh(at - 0.19, before[rows], color="#e3eef7", edgecolor=ORIGINAL, hatch="////", label="before", **kind)
        axes.barh(at + 0.19, after[rows], color=UNLEARNED, edgecolor=UNLEARNED, label="after", **kind)
        for y, share in [*zip(at - 0.19, before[rows], strict=True), *zip(at + 0.19, after[rows], strict=True)]:
            if share >= 0.01:
                axes.text(share + 0.008, y, f"{100 * share:.0f}%", va="center", fontsize=8, color=INK)
        axes.set_xlim(0, 1.06)
        in_percent(axes, "share of predictions" + note)
        legend(figure)
        return as_svg(figure)


def confusion_matrices(
    classes: Sequence[str], original: ArrayLike, unlearned: ArrayLike, forgotten: Collection[str] = ()
) -> bytes:
    """SVG: two confusion matrices side by side on one colour scale, each row a share of its true class.

    Args:
        classes: Class names, C >= 1.
        original: Counts by true class (row) and predicted class (column), shape (C, C).
        unlearned: Likewise.
        forgotten: Names of forgotten classes.
    """
    pair = [_row_shares(counts, classes) for counts in (original, unlearned)]
    change = np.nan_to_num(np.abs(np.diagonal(pair[1]) - np.diagonal(pair[0])))
    rows, note = _chosen(classes, change, forgotten)
    names = [short(classes[row], 18) for row in rows]
    if len(rows) < len(classes):
        rest = np.setdiff1d(np.arange(len(classes)), rows)
        pair = [np.column_stack([shares[np.ix_(rows, rows)], shares[np.ix_(rows, rest)].sum(1)]) for shares in pair]
    columns = [*names, "others"] if len(rows) < len(classes) else names
    with styled():
        figure, first, second = two_panels(5.2 if len(rows) > 3 else 3.6)
        for axes, shares, title in zip((first, second), pair, ("before", "after"), strict=True):
            image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="none", aspect="auto")
            axes.set_facecolor("#eeeeee")
            axes.set_title(title)
            axes.set_xlabel("predicted class")
            axes.set_xticks(range(len(columns)), columns, rotation=90 if max(map(len, columns)) > 2 else 0)
            axes.set_yticks(range(len(names)), names if axes is first else [""] * len(names))
            for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
                tick.set_fontweight("bold" if classes[row] in forgotten else "normal")
            axes.tick_params(length=0, labelsize=10 if len(rows) <= 12 else 7)
            if len(rows) <= 12:
                for (row, column), share in np.ndenumerate(shares):
                    if share >= 0.01:
                        colour = "white" if share > 0.55 else INK
                        axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=9)
                for row in np.flatnonzero(np.isnan(shares).all(1)):
                    axes.text((len(columns) - 1) / 2, float(row), "no samples", ha="center", va="center", color=QUIET)
        first.set_ylabel("true class")
        if note:
            figure.supxlabel(note.strip(), fontsize=10, color=QUIET)
        bar = figure.colorbar(image, ax=[first, second], fraction=0.03, pad=0.02, label="% of the true class")
        bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25", "50", "75", "100"])
        bar.outline.set_visible(False)
        return as_svg(figure)


def roc_curves(curves: Mapping[str, tuple[ArrayLike, ArrayLike, float]]) -> bytes:
    """SVG: how well an attack finds members, on a linear axis and on a logarithmic one from 0.1% false alarms.

    Args:
        curves: Name to (false positive rates rising from 0 to 1, true positive rates, area under the curve).
    """
    lines = [("-", "o"), ("--", "D"), ("-.", "s"), (":", "^"), ((0, (5, 1, 1, 1, 1, 1)), "v")]
    colours = [ORIGINAL, UNLEARNED, RETRAINED, "#8a3a78", "#4d4d4d"]
    with styled():
        figure, linear, logarithmic = two_panels(4.4)
        chance = np.geomspace(1e-3, 1, 60)
        for axes in (linear, logarithmic):
            axes.plot(chance, chance, color="#8c959f", linewidth=1, label="chance, AUC 0.5")
            for number, (name, (fpr, tpr, auc)) in enumerate(curves.items()):
                x, y = np.asarray(fpr, dtype=np.float64), np.asarray(tpr, dtype=np.float64)
                if x.shape != y.shape or x.ndim != 1 or len(x) == 0:
                    raise DataError(
                        f'ROC curve "{clean(name)}": wanted two equally long lists, got {x.shape}, {y.shape}'
                    )
                place = np.log10(np.maximum(x, 1e-3)) / 3 if axes is logarithmic else x
                kept = _thinned(place)
                style, marker = lines[number % len(lines)]
                axes.plot(
                    np.maximum(x, 1e-3)[kept] if axes is logarithmic else x[kept],
                    y[kept],
                    linestyle=style,
                    marker=marker,
                    markevery=(0.05 + 0.03 * number, 0.2),
                    markersize=5,
                    color=colours[number % len(colours)],
                    label=f"{short(name, 40)}, AUC {auc:.3f}",
                )
            axes.set_ylim(-0.02, 1.02)
            axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
            axes.set_xlabel("non-members called members")
            axes.grid(color=RULE, linewidth=0.8)
        linear.set_xlim(-0.02, 1.02)
        linear.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
        linear.set_ylabel("members found")
        linear.set_title("linear")
        logarithmic.set_xscale("log")
        logarithmic.set_xlim(1e-3, 1)
        logarithmic.set_xticks([1e-3, 1e-2, 1e-1, 1], ["0.1%", "1%", "10%", "100%"])
        logarithmic.minorticks_off()
        logarithmic.set_title("few false alarms")
        handles, labels = linear.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2 if len(curves) > 1 else 1, frameon=False)
        return as_svg(figure)


def noise_pictures(
    images: ArrayLike, mean: Sequence[float], std: Sequence[float], classes: Sequence[str], *, most: int = 8
) -> bytes:
    """PNG: learned inputs, a row of pictures for each class; inputs that are not images become heat strips.

    Args:
        images: In the model's normalised space: shape (K, n, C, H, W), (K, n, H, W), or (K, n, features).
        mean: What normalisation subtracted, for each channel; one value stands for all.
        std: What it divided by; likewise.
        classes: The K classes' names.
        most: Pictures per class to show.
    """
    values = np.asarray(images, dtype=np.float64)
    if values.ndim not in (3, 4, 5) or 0 in values.shape or len(values) != len(classes):
        raise DataError(
            f"noise pictures: wanted (K, n, C, H, W), (K, n, H, W) or (K, n, features) for {len(classes)} classes, "
            f"got {values.shape}"
        )
    total, values, names = len(values), values[:MOST_CLASSES, :most], [short(name, 18) for name in classes]
    values = values[:, :, None] if values.ndim == 4 else values
    channel = (-1,) if values.ndim == 3 else (-1, 1, 1)
    shift, scale = (np.asarray(each, dtype=np.float64).reshape(channel) for each in (mean, std))
    values = values * scale + shift
    values = np.where(np.isfinite(values), values, 0.0)
    extent = f"values run from {values.min():.3g} to {values.max():.3g}"
    some = f"; the first {MOST_CLASSES} of {total} classes" if total > MOST_CLASSES else ""
    if values.ndim == 3:
        return _heat_strips(values, names[: len(values)], f"normalisation undone; {extent}{some}")
    channels, height, width = values.shape[2:]
    if channels not in (1, 3):
        values = values.mean(2, keepdims=True)
        some += f"; the mean of {channels} channels"
    low, high = (np.percentile(values, q, axis=(2, 3, 4), keepdims=True) for q in (1, 99))
    values = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
    zoom = max(1, round(96 / max(height, width)))
    tiles = np.moveaxis(values, 2, -1).repeat(zoom, 2).repeat(zoom, 3)
    stretch = "each picture stretched from its 1st to its 99th percentile"
    return _tiles(tiles, names, f"normalisation undone; {extent}; {stretch}{some}")


def training_curves(histories: Mapping[str, Sequence[float]]) -> bytes:
    """SVG: one small chart for each history, value against step; values that are not finite leave gaps.

    Args:
        histories: Name ("noise", "impair", "repair", or any other) to one value per step.
    """
    count = max(1, len(histories))
    columns = min(3, count)
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 2.6 * -(-count // columns)), layout="constrained")
        grid = figure.subplots(-(-count // columns), columns, squeeze=False).ravel()
        for axes in grid[len(histories) :]:
            axes.set_visible(False)
        for axes, (name, history) in zip(grid, histories.items(), strict=False):
            values = np.asarray(history, dtype=np.float64)
            lost = int(np.count_nonzero(~np.isfinite(values)))
            values = np.where(np.isfinite(values), values, np.nan)
            group = -(-len(values) // 500) or 1
            steps = np.arange(1, len(values) + 1, dtype=np.float64)
            if group > 1:
                edges = np.arange(0, len(values), group)
                filled, known = np.nan_to_num(values), np.isfinite(values).astype(np.float64)
                with np.errstate(invalid="ignore"):
                    values = np.add.reduceat(filled, edges) / np.add.reduceat(known, edges)
                steps = steps[edges]
            marker = "o" if len(values) <= 20 else ""
            axes.plot(steps, values, color=ORIGINAL, linewidth=1.6, marker=marker, markersize=4)
            axes.set_title(_CURVES.get(name, short(name, 30)))
            axes.set_xlabel("step" + (f", mean of every {group}" if group > 1 else ""))
            axes.grid(color=RULE, linewidth=0.8)
            axes.locator_params(axis="x", integer=True, nbins=6)
            axes.locator_params(axis="y", nbins=5)
            if lost or len(values) == 0:
                message = f"{lost} of {len(history)} steps are not finite" if lost else "no steps"
                axes.text(0.5, 0.5, message, transform=axes.transAxes, ha="center", color=QUIET)
        return as_svg(figure)


def method_comparison(points: Sequence[tuple[str, float, float, float]], *, values: bool = False) -> bytes:
    """SVG: methods by how far they forget from retraining (to the left: as it does) and how well the rest works (up).

    Args:
        points: Name, forgetting gap and accuracy on unseen retained rows as shares, and seconds (0: not known) of each;
            "original" and "retrained" have marks of their own.
        values: Whether the use is a mean absolute error in the targets' unit rather than an accuracy; up is better.
    """
    if not points:
        raise DataError("a comparison needs at least one method")
    gaps, uses = (
        scale * np.array([point[place] for point in points]) for place, scale in ((1, 100), (2, 1 if values else 100))
    )
    longest = max((point[3] for point in points), default=0.0) or 1.0
    marks = {"original": ("s", QUIET), "retrained": ("*", ORIGINAL)}
    with styled():
        figure, axes = one_panel(WIDTH, 5.4)
        for (name, _, _, seconds), x, y in zip(points, gaps, uses, strict=True):
            marker, colour = marks.get(name, ("o", UNLEARNED))
            size = 190.0 if name in marks else 40 + 900 * seconds / longest
            above = 4 if name in marks else 3
            axes.scatter(x, y, s=size, marker=marker, color=colour, alpha=0.85, edgecolor="white", zorder=above)
        _labels_apart(axes, [short(point[0], 26) for point in points], gaps, uses)
        axes.set_xlabel(f"forgetting gap to the retrained model, {'% of its error' if values else 'points'}")
        axes.set_ylabel("error on everything else, unseen" if values else "accuracy on everything else, unseen, %")
        if values:
            axes.invert_yaxis()
        axes.grid(color=RULE, linewidth=0.8, zorder=0)
        axes.margins(0.12, 0.28)
        axes.set_xlim(left=min(-2.0, float(gaps.min()) - 0.04 * (float(np.ptp(gaps)) or 1)))
        for share in (0.1, 1.0):
            axes.scatter([], [], s=40 + 900 * share, color=UNLEARNED, alpha=0.75, label=duration(share * longest))
        axes.legend(title="time", loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, labelspacing=1.8)
        return as_svg(figure)


def _labels_apart(axes: Axes, names: Sequence[str], x: Array, y: Array) -> None:
    """Names on the right of the points, from the lowest up, each above those it would cover; a line to its point."""
    width, height = (float(np.ptp(values)) or 1.0 for values in (x, y))
    placed: list[tuple[float, float]] = []
    for row in np.argsort(y, kind="stable"):
        left, at = float(x[row]) + 0.03 * width, float(y[row])
        for other, taken in sorted(placed, key=lambda pair: pair[1]):
            if abs(other - left) < 0.3 * width and abs(taken - at) < height / 16:
                at = taken + height / 16
        placed.append((left, at))
        line = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            names[row], (x[row], y[row]), xytext=(left, at), va="center", fontsize=9, arrowprops=line, zorder=5
        )


def stage_times(seconds: Mapping[str, float]) -> bytes:
    """SVG: how long each stage took, a bar each, in the mapping's order.

    Args:
        seconds: Stage name to seconds, >= 0.
    """
    with styled():
        figure, axes = one_panel(WIDTH, 0.8 + 0.34 * max(1, len(seconds)))
        at = np.arange(len(seconds))
        axes.barh(at, list(seconds.values()), height=0.6, color="#b7d3e8", edgecolor=ORIGINAL, zorder=3)
        longest = max(seconds.values(), default=0.0) or 1.0
        for y, value in zip(at, seconds.values(), strict=True):
            axes.text(value + 0.012 * longest, float(y), duration(value), va="center", color=INK)
        axes.set_xlim(0, 1.14 * longest)
        _class_axis(axes, list(seconds), ())
        axes.set_xlabel("seconds")
        axes.grid(axis="x", color=RULE, linewidth=0.8)
        return as_svg(figure)


def _chosen(
    classes: Sequence[str], weight: Array, forgotten: Collection[str], reason: str = "changed most"
) -> tuple[NDArray[np.int64], str]:
    """Rows to show, in class order, and a note when they are not all."""
    if len(classes) <= MOST_CLASSES:
        return np.arange(len(classes)), ""
    gone = [row for row, name in enumerate(classes) if name in forgotten]
    first = sorted(gone, key=lambda row: -weight[row])[: MOST_CLASSES * 2 // 3]
    others = [row for row in np.argsort(-weight, kind="stable").tolist() if row not in set(gone)]
    rows = np.array(sorted(first + others[: MOST_CLASSES - len(first)]))
    which = "the forgotten" if len(first) == len(gone) else f"{len(first)} of {len(gone)} forgotten"
    return rows, f"\n{len(rows)} of {len(classes)} classes: {which} and those that {_agree(reason)}"


def _agree(reason: str) -> str:
    return f"are {reason}" if reason.startswith("predicted") else reason


def _shares(values: Sequence[float | None], classes: Sequence[str], what: str) -> Array:
    shares = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    if len(classes) == 0 or shares.shape != (len(classes),):
        raise DataError(f"{what}: wanted a value for each class, got {len(values)} for {len(classes)} classes")
    return shares


def _row_shares(counts: ArrayLike, classes: Sequence[str]) -> Array:
    table = np.asarray(counts, dtype=np.float64)
    if len(classes) == 0 or table.shape != (len(classes), len(classes)):
        raise DataError(f"confusion matrix: wanted {len(classes)} x {len(classes)} counts, got shape {table.shape}")
    with np.errstate(invalid="ignore"):
        return np.asarray(table / table.sum(1, keepdims=True))


def _thinned(place: Array, bins: int = 400) -> NDArray[np.int64]:
    """The first and last point in each of `bins` equal parts of an axis of length 1."""
    part = np.floor(place * bins)
    edge = np.flatnonzero(np.diff(part) != 0)
    return np.unique(np.concatenate([[0], edge, edge + 1, [len(place) - 1]]))


def _class_axis(axes: Axes, names: Sequence[str], forgotten: Collection[str]) -> None:
    labels = [short(name) + (" (forgotten)" if name in forgotten else "") for name in names]
    axes.set_yticks(range(len(names)), labels)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for row, (name, tick) in enumerate(zip(names, axes.get_yticklabels(), strict=True)):
        if name in forgotten:
            tick.set_fontweight("bold")
            axes.axhspan(row - 0.5, row + 0.5, facecolor="#f6f1ea", edgecolor="#ddd0be", hatch="//", linewidth=0)


def _tiles(tiles: Array, names: Sequence[str], note: str) -> bytes:
    """A grid of pictures (K, n, H, W, channels) in [0, 1], pixel for pixel, with names at the left."""
    rows, columns, height, width = tiles.shape[:4]
    gap = 6
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3))
    for row, column in np.ndindex(rows, columns):
        top, left = row * (height + gap), column * (width + gap)
        sheet[top : top + height, left : left + width] = tiles[row, column]
    dpi, margin, foot = 100, 170, 54
    wide, tall = max(sheet.shape[1] + margin + 12, 900), sheet.shape[0] + foot + 6
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(wide / dpi, tall / dpi), dpi=dpi)
        axes = figure.add_axes((margin / wide, foot / tall, sheet.shape[1] / wide, sheet.shape[0] / tall))
        axes.imshow(sheet, interpolation="nearest", aspect="auto")
        axes.set_axis_off()
        for row, name in enumerate(names[:rows]):
            axes.text(-12, row * (height + gap) + height / 2, name, ha="right", va="center", fontsize=11)
        figure.text(12 / wide, 14 / tall, wrapped(note, wide), fontsize=9, color=QUIET, va="bottom")
        return as_png(figure)


def _heat_strips(values: Array, names: Sequence[str], note: str) -> bytes:
    """Feature vectors (K, n, features) as rows of one heat map, the classes set apart by lines."""
    rows, columns, features = values.shape
    reach = float(np.abs(values).max()) or 1.0
    with styled():
        figure, axes = one_panel(WIDTH, 1.5 + min(12.0, max(0.32 * rows, 0.09 * rows * columns)))
        image = axes.imshow(
            values.reshape(-1, features), cmap="RdBu_r", vmin=-reach, vmax=reach, aspect="auto", interpolation="nearest"
        )
        axes.set_yticks(np.arange(rows) * columns + (columns - 1) / 2, names)
        axes.tick_params(length=0)
        axes.hlines(np.arange(1, rows) * columns - 0.5, -0.5, features - 0.5, color="white", linewidth=4)
        axes.locator_params(axis="x", integer=True, nbins=10)
        axes.set_xlabel(f"feature\n{wrapped(note, 900)}")
        figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02, label="value")
        return as_png(figure)
