from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest

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


def test_whatever_names_hold_stays_text(report: ComparisonReport) -> None:
    hostile = replace(
        report,
        title=BAD,
        model_name=BAD,
        dataset_name=BAD,
        forget_classes=[BAD],
        columns=[BAD],
        table=[row(BAD, 0.1, title=BAD, reads=BAD, failed=BAD)],
        refused={BAD: BAD},
        reference=BAD,
        not_claimed=[BAD],
        versions={BAD: BAD},
    )
    assert "<script" not in render_comparison_html(hostile)
    assert "<script" not in render_comparison_markdown(hostile)


def test_only_pictures_can_be_figures(report: ComparisonReport) -> None:
    with pytest.raises(UsageError, match="text/html"):
        replace(report, figures={"x": ("text/html", b"")})
