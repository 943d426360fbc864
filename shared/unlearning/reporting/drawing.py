"""What all pictures are drawn with: one look whatever the reader's settings, and bytes that the data alone decide."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from unlearning.reporting.wording import clean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0
ORIGINAL, UNLEARNED, RETRAINED = "#0072B2", "#C2500A", "#007a5e"
INK, QUIET, RULE = "#1b1f24", "#57606a", "#d8dee4"
_LOCK = threading.Lock()


def short(name: str, most: int = 22) -> str:
    """A name that fits beside an axis."""
    return clean(name, most)


@contextmanager
def styled() -> Iterator[None]:
    """Our own look whatever the user's settings are; matplotlib keeps them in one place, so one figure at a time."""
    import matplotlib

    with _LOCK, warnings.catch_warnings(), matplotlib.rc_context():
        # Text stays text in the SVG: the reader's fonts have the letters that matplotlib's own lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support", category=UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.hashsalt": "unlearning",
                "svg.fonttype": "none",
                "text.parse_math": False,
                "font.size": 10,
                "text.color": INK,
                "axes.labelcolor": QUIET,
                "axes.edgecolor": RULE,
                "axes.titlesize": 11,
                "axes.titleweight": "bold",
                "axes.titlelocation": "left",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.axisbelow": True,
                "xtick.color": QUIET,
                "ytick.color": QUIET,
                "xtick.labelcolor": INK,
                "ytick.labelcolor": INK,
                "hatch.linewidth": 0.8,
                "lines.linewidth": 1.8,
            }
        )
        yield


def one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one chart; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def two_panels(height: float) -> tuple[Figure, Axes, Axes]:
    """A figure with two charts side by side; its height in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    first, second = figure.subplots(1, 2)
    return figure, first, second


def in_percent(axes: Axes, what: str) -> None:
    """Label a horizontal axis from 0 to 1."""
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25%", "50%", "75%", "100%"])
    axes.set_xlabel(what)
    axes.grid(axis="x", color=RULE, linewidth=0.8)


def legend(figure: Figure) -> None:
    """Explain the marks above the chart."""
    figure.legend(loc="outside upper left", ncols=2, frameon=False)


def wrapped(note: str, width: float) -> str:
    """A note in lines that fit a width in pixels."""
    import textwrap

    return "\n".join(textwrap.wrap(note, int(width / 6.6)))


def as_svg(figure: Figure) -> bytes:
    """The figure as SVG without dates."""
    text = io.StringIO()
    nothing: dict[str, Any] = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(text, format="svg", metadata=nothing)
    # The page's own typeface instead of matplotlib's list of fonts.
    return re.sub(r"'DejaVu Sans', [^;\"]*sans-serif", "system-ui, sans-serif", text.getvalue()).encode()


def as_png(figure: Figure) -> bytes:
    """The figure as PNG without dates."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
