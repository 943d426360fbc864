"""What the authors printed, beside ours: every row has ours or a reason, every line of ours says how it was made."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def reproduce() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import reproduce
    finally:
        sys.path.remove(str(BENCHMARKS))
    return reproduce


def test_every_row_of_theirs_has_ours_or_a_reason(reproduce: ModuleType) -> None:
    assert {
        "gkt",
        "unsir",
        "unsir-noise",
        "rocket",
        "rocket-js",
        "super0",
        "agedb",
        "stsb",
    } == reproduce.PUBLISHED.keys()
    for name, one in reproduce.PUBLISHED.items():
        found = [reproduce.ours(name, setting)[0] for setting in one.settings]
        for row, theirs in one.rows.items():
            assert len(theirs) == len(one.figures)
            if row in one.absent:
                assert len(one.absent[row]) > 20
                continue
            for figure, value in zip(one.figures, theirs, strict=True):
                there = any(figure in figures.get(row, {}) for figures in found)
                assert value is None or there, f"{name}, {row}: nothing of ours for {figure}"
        assert one.differences


def test_the_tables_print_theirs_first_and_every_reason_and_command(reproduce: ModuleType) -> None:
    for name, one in reproduce.PUBLISHED.items():
        text = reproduce.table(name, one)
        assert re.search(r"^ +theirs", text, re.MULTILINE)
        assert max(map(len, text.splitlines())) <= 160
        words = " ".join(text.split())
        for said in (*one.differences, *one.absent.values(), *one.settings.values(), one.theirs):
            assert " ".join(said.split()) in words
    curve = reproduce.table("gkt", reproduce.PUBLISHED["gkt"])
    assert re.search(r"^cycle 900 +forget % +76.27 ", curve, re.MULTILINE)


def test_every_line_of_a_new_run_says_where_when_and_by_what_it_was_made() -> None:
    lines = [json.loads(text) for text in (BENCHMARKS / "results" / "reproduce.jsonl").read_text().splitlines()]
    assert lines
    for line in lines:
        assert line["command"].startswith("python benchmarks/reproduce.py --run ")
        assert re.fullmatch("[0-9a-f]{12}", line["commit"])  # of a tree without changes
        assert {"processor", "cores", "memory_gib", "load"} <= line["hardware"].keys()
        assert {"python", "torch"} <= line["versions"].keys()
        assert line["cpu_s"] > 0
        assert line["rows"]


def test_means_over_seeds_are_of_every_figure_that_any_seed_has(reproduce: ModuleType) -> None:
    runs = [{"a": {"x": 1.0, "y": 2.0}}, {"a": {"x": 3.0}, "b": {"x": 5.0}}]
    assert reproduce.means(runs) == {"a": {"x": 2.0, "y": 2.0}, "b": {"x": 5.0}}
    assert reproduce.means([]) == {}


def test_recorded_files_are_read_as_what_they_say(reproduce: ModuleType) -> None:
    shot = {"task": "t", "run": "gated_transfer", "classes": [0], "original": {"forget": 0.99, "retain": 0.98}}
    shot["unlearned"] = {"forget": 0.0, "retain": 0.5}
    found = reproduce.zero_shot("t")([shot, {**shot, "run": "emmn"}, {**shot, "classes": [3]}, {"torch": "2"}])
    assert found == [
        {"teacher": {"forget %": 99.0, "retain %": 98.0}, "the student kept": {"forget %": 0.0, "retain %": 50.0}}
    ]
    pair = {"variant": "gaussian", "test_rmse": 2.0, "forget_test_rmse": 3.0, "seconds": 1.5}
    assert reproduce.pairs([pair, {**pair, "variant": "NegGrad+"}]) == [
        {"Gaussian amnesiac": {"retain MSE": 4.0, "forget MSE": 9.0, "seconds": 1.5}}
    ]


def test_the_curve_is_drawn(reproduce: ModuleType, tmp_path: Path) -> None:
    reproduce.picture(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
