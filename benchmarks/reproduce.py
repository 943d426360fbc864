"""What the authors' released notebooks printed, beside ours in the nearest setting that the data at hand allows.

    make reproduce                                          # prints the tables from recorded results
    python benchmarks/reproduce.py --only gkt,stsb --picture benchmarks/results/reproduce.png
    UNLEARN_DATA=... python benchmarks/reproduce.py --run gkt --settings "code, LeNet-5"
    UNLEARN_DATA=... python benchmarks/reproduce.py --run rocket super0 stsb unsir

"theirs" is from `published.py`; "code" is what the released code does, as far as our settings have it; "ours" is our
default. Below each table: what the settings are, which command made them, and why the figures differ. `--run` adds
lines to benchmarks/results/reproduce.jsonl, with hardware, versions and commit; of a setting and seed the last line
counts. Nothing is asserted: networks and data are smaller than theirs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from published import CURVE, PUBLISHED, Published

Line = dict[str, Any]
Figures = dict[str, dict[str, float]]

RESULTS = Path(__file__).parent / "results"
OWN = "reproduce.jsonl"


def lines_of(path: Path) -> list[Line]:
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def means(runs: Iterable[Figures]) -> Figures:
    """The mean over runs of every figure of every row that any of them has."""
    values: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for row, figures in run.items():
            for name, value in figures.items():
                values.setdefault(row, {}).setdefault(name, []).append(value)
    return {row: {name: statistics.fmean(found) for name, found in figures.items()} for row, figures in values.items()}


def zero_shot(task: str) -> Callable[[list[Line]], list[Figures]]:
    """Of the recorded runs that stop by themselves."""

    def found(lines: list[Line]) -> list[Figures]:
        wanted = {"task": task, "run": "gated_transfer", "classes": [0]}
        rows = {"original": "teacher", "unlearned": "the student kept"}
        return [
            {rows[model]: {f"{part} %": 100 * one[model][part] for part in ("forget", "retain")} for model in rows}
            for one in lines
            if wanted.items() <= one.items()
        ]

    return found


def pairs(lines: list[Line]) -> list[Figures]:
    """Of the recorded sentence pairs, with squares of the root mean squared errors."""
    names = {
        "original": "original",
        "retrained": "retrained",
        "fine-tune": "fine-tune",
        "gaussian": "Gaussian amnesiac",
        "blindspot": "blindspot",
    }
    return [
        {
            names[one["variant"]]: {
                "retain MSE": one["test_rmse"] ** 2,
                "forget MSE": one["forget_test_rmse"] ** 2,
                "seconds": one["seconds"],
            }
        }
        for one in lines
        if one.get("variant") in names
    ]


def forgotten_classes(variant: str) -> Callable[[list[Line]], list[Figures]]:
    """Of the recorded runs on the published ResNet-20: accuracies before and in the end."""

    def found(lines: list[Line]) -> list[Figures]:
        rows = {"original": "original", "unlearned": "after repair"}
        return [
            {rows[m]: {f"{part} %": 100 * one[f"{part}.{m}"] for part in ("forget", "retain")} for m in rows}
            for one in lines
            if (one.get("variant"), one.get("forget")) == (variant, ["airplane", "bird"])
        ]

    return found


RECORDED: dict[tuple[str, str], tuple[str, Callable[[list[Line]], list[Figures]]]] = {
    ("gkt", "ours, as it stops"): ("zero_shot-mnist.jsonl", zero_shot("mnist-lenet5")),
    ("gkt", "ours, AllCNN/8"): ("zero_shot-mnist.jsonl", zero_shot("mnist-allcnn")),
    ("unsir", "ours, ResNet-20"): ("forget_class-cifar10.jsonl", forgotten_classes("unsir")),
    ("unsir", "no noise, ResNet-20"): ("forget_class-cifar10.jsonl", forgotten_classes("without noise")),
    ("stsb", "ours"): ("regression-stsb.jsonl", pairs),
}
"""Table and setting to the recorded file that has it, and how it is read; all others are in `OWN`."""


def ours(name: str, setting: str) -> tuple[Figures, str]:
    """Mean figures over the recorded seeds, and the file and command that they come from; empty when there are none."""
    if (name, setting) in RECORDED:
        file, read = RECORDED[name, setting]
        lines = lines_of(RESULTS / file)
        runs = read(lines)
        commands = dict.fromkeys(one.get("command") or one.get("note", "") for one in lines if "torch" in one)
        return means(runs), f"results/{file}, by {'; '.join(commands)}" if len(commands) == 1 else f"results/{file}"
    last: dict[int, Line] = {}
    for one in lines_of(RESULTS / OWN):
        if (one["experiment"], one["setting"]) == (name, setting):
            last[one["seed"]] = one
    made = dict.fromkeys(f"{one['command']} at {one['commit']}" for one in last.values())
    seeds = f"{len(last)} seed{'s' if len(last) > 1 else ''}"
    cpu = statistics.median([one["cpu_s"] for one in last.values()]) if last else 0
    return means(one["rows"] for one in last.values()), f"{'; '.join(made)} ({seeds}, {cpu:.0f} CPU s)"


def shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}"


def place(row: str, one: Published) -> tuple[int, int]:
    """Where a row stands: cycles by their number, among the others as they were published."""
    if row.startswith("cycle"):
        return 1, int(row.split()[1])
    names = list(one.rows)
    first = next((at for at, name in enumerate(names) if name.startswith("cycle")), len(names))
    return (0 if names.index(row) < first else 2), names.index(row)


def table(name: str, one: Published) -> str:
    """One table of theirs with ours, its settings, commands and reasons, as text."""
    found = {setting: ours(name, setting) for setting in one.settings}
    columns = ["theirs", *(setting for setting in one.settings if found[setting][0])]
    cycles = {row for figures, _ in found.values() for row in figures if row.startswith("cycle")} - one.rows.keys()
    rows: list[list[str]] = []
    order = sorted([*one.rows, *cycles], key=lambda row: place(row, one))
    for row in order:
        theirs = dict(zip(one.figures, one.rows.get(row, ()), strict=False))
        for figure in one.figures:
            values = [theirs.get(figure), *(found[c][0].get(row, {}).get(figure) for c in columns[1:])]
            if any(value is not None for value in values):
                rows.append([row if figure == one.figures[0] or not rows or rows[-1][-1] != row else "", figure])
                rows[-1] += [shown(value) for value in values] + [row]
    head = ["", "", *columns]
    widths = [max(len(line[place]) for line in [head, *rows]) for place in range(len(head))]

    def padded(cells: list[str]) -> str:
        both = zip(cells, widths, strict=True)
        return "  ".join(f"{cell:<{w}}" if at < 2 else f"{cell:>{w}}" for at, (cell, w) in enumerate(both)).rstrip()

    text = [f"{name}: {one.title}", f"theirs: {one.theirs}", f"        ({one.source})", ""]
    text += [padded(head), *(padded(row[:-1]) for row in rows), ""]
    for setting in one.settings:
        text += wrapped(f"{setting}: {one.settings[setting]}.")
        text += wrapped(f"{found[setting][1]}" if found[setting][0] else "not run yet", "    ")
    reasons = dict.fromkeys(one.absent.values())
    text += [
        part
        for reason in reasons
        for part in wrapped(
            f"nothing of ours in {', '.join(row for row, why in one.absent.items() if why == reason)}: {reason}."
        )
    ]
    text += [part for reason in one.differences for part in wrapped(f"- {reason}")]
    return "\n".join(text)


def wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        120,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def picture(path: Path) -> None:
    """The curve of gated transfer, theirs beside ours: forgotten class above, all others below."""
    import matplotlib.pyplot as plt

    curves = {
        "theirs: AllCNN": {f"cycle {cycle}": {"forget %": f, "retain %": r} for cycle, (f, r, _) in CURVE.items()}
    }
    curves["theirs: AllCNN"]["the student kept"] = curves["theirs: AllCNN"]["cycle 750"]
    for setting in PUBLISHED["gkt"].settings:
        rows, _ = ours("gkt", setting)
        if len(rows) > 3:
            curves[setting] = rows
    figure, panels = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
    for colour, (label, rows) in enumerate(curves.items()):
        points = sorted((int(row.split()[1]), figures) for row, figures in rows.items() if row.startswith("cycle"))
        style: dict[str, Any] = {"color": "black", "linewidth": 2} if colour == 0 else {"color": f"C{colour - 1}"}
        for panel, part in zip(panels, ("forget %", "retain %"), strict=True):
            cycles, values = [cycle for cycle, _ in points], [figures[part] for _, figures in points]
            panel.plot(cycles, values, label=label, marker="o", markersize=3, **style)
            kept = [at for at, figures in points if all(figures[k] == v for k, v in rows["the student kept"].items())]
            at, height = kept[-1:], [rows["the student kept"][part]] * len(kept[-1:])
            panel.plot(at, height, "o", markersize=10, fillstyle="none", markeredgewidth=2, color=style["color"])
    for panel, title, ends in zip(
        panels, ("rows of the forgotten class, 0", "rows of the other classes"), ((-3, 103), (82, 100)), strict=True
    ):
        panel.set_title(title, loc="left", fontsize=10)
        panel.set_ylabel("right, %")
        panel.set_ylim(*ends)
        panel.grid(alpha=0.3)
    panels[1].legend(fontsize=8, frameon=False, loc="lower left", title="ring: the student kept", title_fontsize=8)
    panels[1].set_xlabel("cycle of gated transfer on MNIST; they printed from 450 on")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def run(name: str, settings: list[str], seeds: int, cache: Path, out: Path) -> None:
    """Add the lines of one run to the file, as they come."""
    from bench import commit, hardware, versions
    from machine import machine
    from reruns import RERUNS

    work, known, usual = RERUNS[name]
    if unknown := [setting for setting in settings if setting not in known]:
        raise SystemExit(f"error: no such settings of {name}: {', '.join(unknown)} (known: {'; '.join(known)})")
    command = machine(("--cache", "--out"))["command"]
    made = {"command": command, "commit": commit(), "hardware": hardware(), "versions": versions()}
    out.parent.mkdir(parents=True, exist_ok=True)
    for line in work(cache, seeds or usual, settings or known):
        print(json.dumps(line), flush=True)
        with out.open("a") as file:
            file.write(json.dumps({**line, **made}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PUBLISHED), help="tables to print, separated by commas")
    parser.add_argument("--run", nargs="+", default=[], help="gkt, unsir, rocket, super0, stsb: the rest are of these")
    parser.add_argument("--settings", nargs="+", default=[], help="of the run; all when left out")
    parser.add_argument("--seeds", type=int, default=0, help="0: as many as are recorded")
    parser.add_argument("--picture", type=Path, help="draw the curve of gated transfer here")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "unlearn-benchmarks")
    parser.add_argument("--out", type=Path, default=RESULTS / OWN)
    asked = parser.parse_args()
    asked.cache.mkdir(parents=True, exist_ok=True)
    for name in asked.run:
        run(name, asked.settings, asked.seeds, asked.cache, asked.out)
    if asked.picture:
        picture(asked.picture)
    if unknown := [name for name in asked.only.split(",") if name not in PUBLISHED]:
        parser.error(f"no such table: {', '.join(unknown)} (known: {', '.join(PUBLISHED)})")
    if not asked.run:
        print("\n\n".join(table(name, PUBLISHED[name]) for name in asked.only.split(",")))


if __name__ == "__main__":
    sys.exit(main())
