import io
import sys

import pytest

from unlearning.progress import Lines, Progress, shown, silent


def work(progress: Progress, phase: str = "impair", steps: int = 5) -> None:
    for done in range(1, steps + 1):
        progress(phase, done, steps, 1 / done)


def test_silence_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    work(silent)
    assert capsys.readouterr() == ("", "")


def test_lines_show_the_first_and_the_last_step_of_quick_work(capsys: pytest.CaptureFixture[str]) -> None:
    work(Lines(seconds=1000))
    assert capsys.readouterr().out.splitlines() == ["impair: 1/5  loss 1", "impair: 5/5  loss 0.2"]


def test_every_phase_has_its_own_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(seconds=1000)
    work(lines, "impair", 3)
    work(lines, "repair", 2)
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "impair: 1/3",
        "impair: 3/3",
        "repair: 1/2",
        "repair: 2/2",
    ]


def test_lines_show_every_step_when_each_is_due(capsys: pytest.CaptureFixture[str]) -> None:
    work(Lines(seconds=0))
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_the_only_step_makes_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    work(Lines(), steps=1)
    assert capsys.readouterr().out == "impair: 1/1  loss 1\n"


def test_away_from_a_terminal_plain_lines_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with shown() as progress:
        work(progress)
    captured = capsys.readouterr()
    assert captured.out.splitlines()[0] == "impair: 1/5  loss 1"
    assert "\x1b" not in captured.out
    assert captured.err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_each_phase_has_a_bar_on_standard_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    with shown() as progress:
        work(progress, "impair", 3)
        work(progress, "repair", 4)
    last = terminal.getvalue()
    assert "impair" in last
    assert "3/3" in last
    assert "repair" in last
    assert "4/4" in last
    assert "loss 0.25" in last
    assert capsys.readouterr().out == ""
