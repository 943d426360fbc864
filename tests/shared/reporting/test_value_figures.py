import re
from xml.etree import ElementTree

import numpy as np

from unlearning.metrics.regression import error_by_bin
from unlearning.reporting.value_figures import error_by_target, forget_predictions

TARGETS = np.linspace(0, 10, 50)
EDGES = [0.0, 2.5, 5.0, 7.5, 20.0, 30.0]


def words(svg: bytes) -> str:
    return " ".join(text.strip() for text in ElementTree.fromstring(svg).itertext() if text.strip())


def test_the_error_by_target_names_both_models_the_unit_and_the_rows_of_each_bin() -> None:
    bins = [error_by_bin(TARGETS, TARGETS + shift, EDGES) for shift in (0.5, 1.0)]
    picture = error_by_target(bins[0], bins[1], "years")
    shown = words(picture)
    assert "before" in shown
    assert "after" in shown
    assert "target (years)" in shown
    assert "mean absolute error (years)" in shown
    assert str(bins[0][0].count) in shown
    assert picture == error_by_target(bins[0], bins[1], "years")


def test_a_hostile_unit_does_no_harm() -> None:
    bins = error_by_bin(TARGETS, TARGETS, EDGES)
    shown = error_by_target(bins, bins, "<script>alert(1)</script>\u202e" + "x" * 10_000)
    assert b"<script" not in shown
    assert len(shown) < 200_000


def test_what_is_said_of_the_forgotten_rows_stands_beside_the_truth() -> None:
    picture = forget_predictions(TARGETS + 0.1, np.full(50, 5.0), TARGETS)
    shown = words(picture)
    assert all(name in shown for name in ("true values", "predicted before", "predicted after"))
    assert re.search(r"100\s?%|\d+%", shown)


def test_equal_values_do_not_break_the_axis() -> None:
    assert words(forget_predictions([2.0, 2.0], [2.0, 2.0], [2.0, 2.0]))
