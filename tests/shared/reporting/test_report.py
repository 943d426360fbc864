from __future__ import annotations

import html
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.browser import measured, printed

from unlearning.errors import UsageError
from unlearning.policy.gates import CLASS_POLICY, ROWS_POLICY, Bound, judge
from unlearning.reporting.report import AttackRow, ClassRow, RunReport, render_html, render_markdown, verdict_sentence

HOSTILE = [
    "<script>alert(1)</script>",
    "x" * 10_000,
    "שלום",
    "a\u202egnp.exe",
    "|*_`[a](http://e.vil)![b](http://e.vil)",
    '" onload="alert(1)',
    "{{ 7 * 7 }}\x00\ud800",
]


class _Page(HTMLParser):
    """What a browser would build: tags, attributes, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def _hostile(report: RunReport) -> RunReport:
    rows = [ClassRow(name=n, n_test=3, original_test=1.0, unlearned_test=0.0, forgotten=True) for n in HOSTILE]
    bad = HOSTILE[0]
    return replace(
        report,
        title=HOSTILE[5],
        dataset_name=bad,
        model_name=HOSTILE[4],
        method=bad,
        method_source=bad,
        pipeline=bad,
        reference=bad,
        not_claimed=HOSTILE,
        forget_classes=HOSTILE,
        per_class=rows,
        settings=dict.fromkeys(HOSTILE, bad),
        versions=dict.fromkeys(HOSTILE, bad),
        seconds=dict.fromkeys(HOSTILE, 1.0),
        rows={bad: 3},
        metrics={bad: 1.0},
        original_digest=bad,
        unlearned_digest=bad,
        manifest_digest=bad,
        finished=bad,
        figures={bad: report.figures["stage_times"]},
        notes=dict.fromkeys(HOSTILE, bad),
        attacks=[replace(report.attacks[0], name=bad, question=bad)],
        verdict=judge({bad: 1.0}, {}, {bad: Bound(high=0.5, why=bad)}),
    )


def test_a_pass_says_what_is_forgotten_and_what_is_kept(digits: RunReport) -> None:
    metrics = {
        "forget_accuracy.test.original": 0.972,
        "forget_accuracy.test.unlearned": 0.0,
        "retain_accuracy.test.original": 0.971,
        "retain_accuracy.test.unlearned": 0.965,
    }
    verdict = judge(metrics, {}, {"forget_accuracy.test.unlearned": Bound(high=0.05)})
    assert verdict_sentence(replace(digits, metrics=metrics, verdict=verdict)) == (
        "PASS: the model no longer recognises class 3 (97.2% → 0.0% on unseen examples of it) "
        "and keeps 96.5% (was 97.1%) on the others."
    )


def test_a_pass_of_a_loose_policy_claims_only_its_numbers(digits: RunReport) -> None:
    metrics = {**digits.metrics, "forget_accuracy.test.original": 0.95, "forget_accuracy.test.unlearned": 0.6}
    loose = judge(metrics, {}, {"forget_accuracy.test.unlearned": Bound(high=0.9)})
    said = verdict_sentence(replace(digits, metrics=metrics, verdict=loose))
    assert "no longer recognises" not in said
    assert "on unseen examples of class 3 accuracy went from 95.0% to 60.0%" in said


def test_a_pass_without_a_gate_on_the_forgotten_class_does_not_claim_it_forgotten(digits: RunReport) -> None:
    verdict = judge(digits.metrics, {}, {"weights_changed": Bound(low=1e-6)})
    said = verdict_sentence(replace(digits, verdict=verdict))
    assert said.startswith("PASS: its only gate passed;")
    assert "no longer recognises" not in said


ROWS = {
    "forget_accuracy.train.original": 1.0,
    "forget_accuracy.train.unlearned": 0.914,
    "retain_accuracy.train.unlearned": 0.99,
    "retain_accuracy.test.original": 0.913,
    "retain_accuracy.test.unlearned": 0.908,
    "seen_gap.forget.unlearned": 0.006,
    "retain_accuracy_drop.test": 0.005,
    "worst_class_drop.test": 0.02,
    "membership_auc.entropy.forget.unlearned": 0.51,
    "membership_auc.loss.forget.unlearned": 0.5,
    "weights_changed": 0.1,
}


@pytest.mark.parametrize(
    ("request_", "count", "what"),
    [
        ("sample", 1234, "1\u202f234 training examples"),
        ("sample", 1, "1 training example"),
        ("subject", 340, "340 training examples of the people who asked"),
    ],
)
def test_a_pass_for_rows_claims_that_they_are_treated_as_unseen_and_names_nobody(
    digits: RunReport, request_: str, count: int, what: str
) -> None:
    report = replace(
        digits,
        request=request_,
        forget_classes=[],
        per_class=[replace(row, forgotten=False) for row in digits.per_class],
        rows={"forget_train": count, "retain_train": 5000, "retain_test": 900},
        metrics=ROWS,
        verdict=judge(ROWS, {}, ROWS_POLICY),
        notes={"stopped": "done", "teacher_entropy": 0.99},
        reference="",
        figures={},
    )
    assert verdict_sentence(report) == (
        f"PASS: by what was measured, the model treats {what} like examples that it never saw: it gets 91.4% of them "
        "right (was 100.0%), and 90.8% of unseen ones (was 91.3%)."
    )
    page = html.unescape(re.sub(r"<[^>]+>", "", render_html(report)))
    text = render_markdown(report)
    for shown in (page, text):
        assert "forgotten class" not in shown
        assert "other classes" not in shown
        assert "no longer recognises" not in shown
    assert "teacher entropy" in page
    assert f"- forgotten: {what}" in text


def test_rows_that_fail_or_are_too_few_are_said_in_their_own_words(digits: RunReport) -> None:
    bad = {**ROWS, "seen_gap.forget.unlearned": 0.2}
    report = replace(digits, request="sample", forget_classes=[], rows={"forget_train": 12}, metrics=bad)
    failed = replace(report, verdict=judge(bad, {}, ROWS_POLICY))
    assert verdict_sentence(failed) == (
        "FAIL: this model must not replace the original. Accuracy of the unlearned model on forgotten examples less "
        "that on unseen ones is 20.0 points, above the allowed 5 points."
    )
    doubtful = replace(report, verdict=judge(bad, {"seen_gap.forget.unlearned": 0.1}, ROWS_POLICY))
    assert verdict_sentence(doubtful).startswith(
        "INCONCLUSIVE: too few examples to tell whether 12 training examples can count as forgotten. "
    )
    dropped = replace(report, verdict=judge(bad, {}, {"weights_changed": Bound(low=1e-6)}))
    assert verdict_sentence(dropped) == (
        "PASS: its only gate passed for 12 training examples; on unseen examples the model keeps 90.8%."
    )


def test_a_failure_names_its_first_reason(failed: RunReport) -> None:
    value = failed.metrics["forget_accuracy.test.unlearned"] or 0.0
    assert verdict_sentence(failed) == (
        "FAIL: this model must not replace the original. Accuracy of the unlearned model on unseen examples of the "
        f"forgotten classes is {100 * value:.1f}%, above the allowed 5%. One more gate failed."
    )


def test_too_few_samples_read_as_such(doubtful: RunReport) -> None:
    assert verdict_sentence(doubtful) == (
        "INCONCLUSIVE: too few examples to tell whether class 3 can count as forgotten. Accuracy of the unlearned "
        "model on unseen examples of the forgotten classes is 6.1%, above the allowed 5% by less than two "
        "standard errors (1.8% each)."
    )


def test_what_could_not_be_measured_is_said_to_be_missing(digits: RunReport) -> None:
    metrics = {**digits.metrics, "forget_accuracy.test.unlearned": None, "retain_accuracy.test.unlearned": float("nan")}
    report = replace(digits, metrics=metrics, verdict=judge(metrics, {}, CLASS_POLICY))
    assert verdict_sentence(report).endswith("of the forgotten classes was not measured.")
    text = render_html(report)
    assert text.count("not measured") >= 3
    assert "nan%" not in text


def test_the_page_needs_nothing_but_itself(digits: RunReport, things: RunReport) -> None:
    for report in (digits, things):
        text = render_html(report)
        page = _Page(text)
        assert not {"script", "link", "iframe", "object", "embed", "form", "base", "a"} & set(page.tags)
        for name, value in page.attributes:
            assert not name.startswith("on")
            assert name != "href"
            if name == "src":
                assert (value or "").startswith(("data:image/svg+xml;base64,", "data:image/png;base64,"))
        assert "url(" not in text
        assert "@import" not in text
        assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in text
        assert page.tags.count("img") == len(report.figures) == 7


def test_the_page_says_the_verdict_first(failed: RunReport) -> None:
    words = " ".join(_Page(render_html(failed)).words)
    assert words.index("FAIL") < words.index("must not replace the original") < words.index("The gates")


def test_every_picture_has_a_description(digits: RunReport) -> None:
    descriptions = [value for name, value in _Page(render_html(digits)).attributes if name == "alt"]
    assert len(descriptions) == 7
    assert all(value and len(value) > 20 for value in descriptions)
    shown = next(row for row in digits.per_class if row.forgotten)
    assert any(f"3: {100 * (shown.original_test or 0):.1f}% to 0.0%" in (value or "") for value in descriptions)


def test_a_page_of_ten_classes_is_small(things: RunReport) -> None:
    assert len(render_html(things).encode()) < 1_500_000


def test_the_same_report_gives_the_same_text(digits: RunReport) -> None:
    assert render_html(digits) == render_html(digits)
    assert render_markdown(digits) == render_markdown(digits)


def test_whatever_names_hold_stays_text(digits: RunReport) -> None:
    report = _hostile(digits)
    for outcome in ("fail", "pass"):
        if outcome == "pass":
            report = replace(report, verdict=judge({"x": 0.0}, {}, {"x": Bound(high=1)}))
        text = render_html(report)
        page = _Page(text)
        text.encode()
        assert "script" not in page.tags
        assert not any(name.startswith("on") for name, _ in page.attributes)
        assert "<script>alert(1)</script>" in page.words
        assert "x" * 61 not in text.split("What this does not claim")[0]
        assert "x" * 601 not in text
        assert "\u202e" not in text
        assert "\x00" not in text
        assert "{{ 7 * 7 }}" in html.unescape(text)
        assert "<bdi>שלום</bdi>" in text


def test_many_classes_are_folded_and_all_are_there(many: RunReport) -> None:
    page = render_html(many)
    above, below = page.split("<summary>All 100 classes</summary>")
    assert above.count('<tr class="forgotten">') == 2
    assert below.split("</details>")[0].count('scope="row"') == 100
    assert "12 of 100 classes" in above


def test_thirty_classes_are_not_folded(digits: RunReport) -> None:
    rows = [ClassRow(name=str(n), n_test=1, original_test=None, unlearned_test=None) for n in range(30)]
    assert "All 30 classes" not in render_html(replace(digits, per_class=rows))


def test_a_bare_report_renders(digits: RunReport, changed: Callable[..., RunReport]) -> None:
    nothing = {"metrics": {}, "per_class": [], "figures": {}, "seconds": {}, "versions": {}, "attacks": [], "rows": {}}
    bare = changed(digits, not_claimed=[], **nothing)
    assert "Nothing beyond the gates above" in render_html(bare)
    assert render_markdown(bare).startswith("# Forget the digit 3\n")


def test_only_pictures_can_be_figures(digits: RunReport) -> None:
    with pytest.raises(UsageError, match='wanted image/svg\\+xml or image/png, got "text/html"'):
        replace(digits, figures={"page": ("text/html", b"<script>")})


def test_the_markdown_says_the_same_verdict(digits: RunReport) -> None:
    text = render_markdown(digits)
    said = verdict_sentence(digits)
    assert said.replace("PASS", "**PASS**") in text
    assert text.count("| pass |") == len(digits.verdict.gates)


def test_the_markdown_holds_no_markup_of_others(digits: RunReport) -> None:
    text = render_markdown(_hostile(digits))
    assert "<" not in text
    assert ">" not in text
    assert "http://" not in text
    assert not re.search(r"(?<!\\)[\[\]`]", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {5}


def _luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_text_stands_out_from_its_ground_in_light_and_dark(digits: RunReport) -> None:
    themes = re.findall(r":root\{[^}]*?(--page:[^}]*)\}", render_html(digits))
    # Light, dark, print; print writes short colours.
    assert len(themes) == 3
    pairs = [
        *((ink, ground) for ink in ("ink", "quiet") for ground in ("page", "soft", "mark")),
        *((kind, ground) for kind in ("pass", "fail", "doubt") for ground in ("page", f"{kind}-bg")),
        *(("ink", f"{kind}-bg") for kind in ("pass", "fail", "doubt")),
        ("tag", "tag-bg"),
    ]
    for theme in themes:
        colours = dict(re.findall(r"--([a-z-]+):(#[0-9a-f]+)", theme))
        colours = {name: "#" + "".join(c * 2 for c in v[1:]) if len(v) == 4 else v for name, v in colours.items()}
        for ink, ground in pairs:
            dark, light = sorted([_luminance(colours[ink]), _luminance(colours[ground])])
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_reporting_needs_neither_torch_nor_pyplot() -> None:
    code = (
        "import sys\n"
        "import unlearning.reporting.report, unlearning.reporting.figures as f\n"
        "assert 'matplotlib' not in sys.modules\n"
        "f.stage_times({'a': 1.0})\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'matplotlib.pyplot', 'kfp', 'mlflow', 'pandas')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_all_pictures_and_no_sideways_scroll(
    width: int, digits: RunReport, changed: Callable[..., RunReport], tmp_path: Path
) -> None:
    long = "x" * 10_000
    audit = [AttackRow(name=long, question=long, original=None, unlearned=0.5, retrained=0.4, members=0, non_members=0)]
    report = changed(digits, title="W" * 300, forget_classes=[long], dataset_name="y" * 300, audit=audit)
    report = replace(report, verdict=replace(report.verdict, caveats=(long,)))
    inside, needed, broken = measured(render_html(report), width, tmp_path)
    assert inside <= width
    assert needed <= inside
    assert broken == 0


def test_an_audit_and_what_weakens_the_verdict_stay_text(digits: RunReport) -> None:
    bad = ["<script>alert(1)</script>", "x" * 10_000, "\u202e\u05e9\u05dc\u05d5\u05dd", "{{ 7 * 7 }}\x00"]
    audit = [
        AttackRow(name=one, question=one, original=None, unlearned=0.5, retrained=0.4, members=0, non_members=0)
        for one in bad
    ]
    report = replace(digits, audit=audit, anamnesis_index=bad[0], verdict=replace(digits.verdict, caveats=tuple(bad)))
    page = _Page(text := render_html(report))
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.words
    assert "x" * 401 not in text
    assert "\u202e" not in text
    assert "\x00" not in text
    assert "What weakens it" in text
    markdown = render_markdown(report)
    assert "What weakens the verdict:" in markdown
    assert "<script" not in markdown
    assert "\u202e" not in markdown


def test_without_a_title_the_page_is_named_by_what_was_forgotten(digits: RunReport) -> None:
    untitled = replace(digits, title="")
    page = render_html(untitled)
    assert "<h1>Forgetting class <bdi>3</bdi></h1>" in page
    assert "<title>PASS: Forgetting class 3</title>" in page
    assert render_markdown(untitled).startswith("# Forgetting class 3\n")
    people = replace(untitled, request="subject", forget_classes=[], rows={"forget_train": 58})
    assert "<h1>Forgetting 58 training examples of the people who asked</h1>" in render_html(people)
    hostile = render_html(replace(untitled, forget_classes=HOSTILE))
    assert "script" not in _Page(hostile).tags
    assert "x" * 61 not in hostile.split("<h2>")[0]


def test_a_question_of_yes_or_no_has_no_standard_error(digits: RunReport) -> None:
    asked = judge(
        {"control.positive": 1.0, "membership_auc": 0.5},
        {"control.positive": 0.2, "membership_auc": 0.03},
        {"control.positive": Bound(low=1.0, why="it sees"), "membership_auc": Bound(high=0.6, why="")},
    )
    cells = re.findall(r'data-label="Standard error">(.*?)</td>', render_html(replace(digits, verdict=asked)))
    assert cells == ["\u2013", "0.030"]


def test_numbers_below_zero_have_a_true_minus(digits: RunReport) -> None:
    attack = AttackRow(name="a", question="b", original=-0.25, unlearned=0.5, members=1, non_members=1)
    page = render_html(replace(digits, attacks=[attack], metrics={"x": -1.5}))
    assert "\u22120.250</td>" in page
    assert "\u22121.5</td>" in page


def test_a_printed_page_opens_what_is_folded_and_wastes_no_sheet(digits: RunReport, tmp_path: Path) -> None:
    metrics = {f"forget_accuracy.test.{number}": 0.5 for number in range(140)}
    sheets = printed(render_html(replace(digits, metrics=metrics)), tmp_path)
    assert printed(render_html(replace(digits, metrics={})), tmp_path) < sheets <= 9


def test_a_verdict_without_caveats_says_nothing_of_any(digits: RunReport) -> None:
    assert "weakens" not in render_html(digits)
    assert "weakens" not in render_markdown(digits)
