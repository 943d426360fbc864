from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.browser import measured

from unlearning.errors import UsageError
from unlearning.reporting.comparison import (
    ComparisonReport,
    ComparisonRow,
    Spread,
    render_comparison_html,
    render_comparison_markdown,
)
from unlearning.reporting.figures import method_comparison

BAD = "<script>alert(1)</script>"


def one(value: float) -> Spread:
    return Spread(value, value, value)


def row(method: str, accuracy: float, **changed: object) -> ComparisonRow:
    figures = {"forget_accuracy.train": one(accuracy), "utility_gap": one(-0.013), "seconds": one(2.5)}
    fields = {"method": method, "title": "what it does", "reads": "retain", "figures": figures, "seeds": 3, **changed}
    return ComparisonRow(**fields)  # type: ignore[arg-type]


@pytest.fixture
def report() -> ComparisonReport:
    return ComparisonReport(
        title="Comparison of methods",
        pipeline="compare_methods",
        model_name="models:/digits/1",
        original_digest="a" * 64,
        dataset_name="digits",
        manifest_digest="b" * 64,
        request="class",
        forget_classes=["3"],
        rows={"forget_train": 140},
        seeds=[0, 1, 2],
        columns=["forget_accuracy.train", "utility_gap", "membership_gap", "seconds"],
        table=[
            row("original", 1.0, reads=""),
            row("retrained", 0.0, reads=""),
            row("unsir", 0.02, figures={"forget_accuracy.train": Spread(0.02, 0.0, 0.06), "seconds": one(130.0)}),
            row("gated_transfer", 0.0, figures={}, failed="3 of 3 runs broke down: the generator collapsed", seeds=0),
        ],
        refused={"emmn": "forgets by class only"},
        reference="The retrained model was trained here.",
        not_claimed=["That this holds elsewhere."],
        figures={"method_comparison": ("image/svg+xml", method_comparison([("unsir", 0.02, 0.9, 3.0)]))},
        versions={"torch": "2"},
    )


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", page.split("</style>")[1]))


def test_the_page_and_the_text_have_every_figure_with_its_unit_and_range(report: ComparisonReport) -> None:
    page, text = text_of(render_comparison_html(report)), render_comparison_markdown(report)
    for shown in (
        "100.0%",
        "2.0%",
        "\u22121.3",
        "2 min 10 s",
        "2.50 s",
        "the generator collapsed",
        "forgets by class only",
    ):
        assert shown in page
        assert shown in text
    assert "0.0% to 6.0%" in page
    assert "To forget: class 3" in " ".join(page.split())
    assert "Forgotten: class 3." in text
    assert "That this holds elsewhere." in page
    cells = next(line for line in text.splitlines() if "gated" in line)
    assert cells == "| gated\\_transfer | \u2013 | \u2013 | \u2013 | \u2013 |"


def test_rows_and_people_are_counted(report: ComparisonReport) -> None:
    rows = replace(report, request="sample", forget_classes=[], rows={"forget_train": 140})
    assert "Forgotten: 140 training examples." in render_comparison_markdown(rows)
    people = replace(rows, request="subject")
    assert "140 training examples of the people who asked" in text_of(render_comparison_html(people))


def test_the_page_needs_nothing_but_itself_and_is_the_same_each_time(report: ComparisonReport) -> None:
    page = render_comparison_html(report)
    assert page == render_comparison_html(report)
    assert "<script" not in page
    assert [address[:5] for address in re.findall(r'(?:src|href)="([^"]*)', page)] == ["data:"]


def hostile(report: ComparisonReport, bad: str) -> ComparisonReport:
    return replace(
        report,
        title=bad,
        model_name=bad,
        dataset_name=bad,
        forget_classes=[bad],
        columns=[bad],
        table=[row(bad, 0.1, title=bad, reads=bad, failed=bad)],
        refused={bad: bad},
        reference=bad,
        not_claimed=[bad],
        figures={"method_comparison": ("image/svg+xml", method_comparison([(bad, 0.02, 0.9, 3.0)]))},
        versions={bad: bad},
    )


@pytest.mark.parametrize(
    "bad", [BAD, "x" * 10_000, "\u202e\u05e9\u05dc\u05d5\u05dd", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}\x00"]
)
def test_whatever_names_hold_stays_text(report: ComparisonReport, bad: str) -> None:
    page, text = render_comparison_html(hostile(report, bad)), render_comparison_markdown(hostile(report, bad))
    assert "x" * 601 not in page
    for shown in (page, text):
        assert "<script" not in shown
        assert "<img src=x" not in shown
        assert "\u202e" not in shown
        assert "\x00" not in shown
    assert [address[:5] for address in re.findall(r'(?:src|href)="([^"]*)', page)] == ["data:"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_a_comparison_without_sideways_scroll(
    width: int, report: ComparisonReport, tmp_path: Path
) -> None:
    inside, needed, broken = measured(render_comparison_html(hostile(report, "x" * 10_000)), width, tmp_path)
    assert inside <= width
    assert needed <= inside
    assert broken == 0


def test_only_pictures_can_be_figures(report: ComparisonReport) -> None:
    with pytest.raises(UsageError, match="text/html"):
        replace(report, figures={"x": ("text/html", b"")})
