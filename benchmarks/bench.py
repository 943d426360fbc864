"""The speed of everything, row by row, as ratios measured in one run: one JSON line each, a table, a picture.

    make bench
    python benchmarks/bench.py --rows S1,S2 --networks resnet20
    python benchmarks/bench.py --quick --out /tmp/bench.jsonl

S1-S4   updates, noise and cycles beside the bare step: benchmarks/steps.py, in a process of its own.
S5      unlearning / retraining by the original's recipe. The first is run, the second is steps x the time of a step.
S6      evaluation and the standard attacks / an epoch over the same data: benchmarks/evaluation.py.
S7      what a stage of a local run takes beside what its own work takes: / `import torch`, or in seconds, of which a
        busy machine's are divided by the wall time of `import torch` over its CPU time.
S8      `unlearn demo`, wall seconds.
S9      a million pending requests: benchmarks/ledger.py.
S10     the authors' code / ours, from the figures that were measured of theirs, both beside the same bare step.
data    picking, normalising and augmenting a batch / a training step.
start   importing, beside `import torch`.
loops   one switch off and on: benchmarks/loops.py.
large   224 pixels on ViT-B/16 and ResNet-50: benchmarks/large.py.
growth  exponents of time: benchmarks/growth.py.
two     two processes / one: benchmarks/loops.py.

Nothing is asserted. Times are CPU times where that is possible: a machine that others use stretches wall times. The
pairs of each ratio alternate, and "spread" holds the quartiles over them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

HERE = Path(__file__).parent
ROOT = HERE.parent
Line = dict[str, Any]


def hardware() -> Line:
    """Processor, cores and memory, and the GPU if there is one."""
    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.*)", facts)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found: Line = {
        "processor": name[1] if name else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "memory_gib": round(memory),
        "load": round(os.getloadavg()[0], 1),
    }
    asked = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.mem", "--format=csv,noheader"]
    try:
        found["gpu"] = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        found["gpu"] = None
    return found


def versions() -> Line:
    """Of what the times depend on."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "torchvision", "numpy", "kfp", "mlflow", "sqlalchemy")},
    }


def commit() -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def line(row: str, what: str, value: float | None, target: float | None, **more: Any) -> Line:
    """One result; met when the value is not above the target."""
    met = None if value is None or target is None else value <= target
    value = None if value is None else round(value, 4)
    return {"row": row, "what": what, "value": value, "target": target, "met": met, **more}


def python(*words: str, **environment: str) -> tuple[float, float, str]:
    """CPU and wall seconds of a Python program, and what it printed."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    env = {**os.environ, **environment}
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=env)
    if ended.returncode:
        raise RuntimeError(f"{words[0]}: {(ended.stderr.strip().splitlines() or ['no output'])[-1]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - began, ended.stdout


def script(name: str, *words: str) -> list[Line]:
    """The JSON lines that another benchmark writes with --out; none when there is no such benchmark."""
    if not (HERE / name).exists():
        return []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "lines.jsonl")
        python(str(HERE / name), *words, "--out", str(out))
        return [json.loads(text) for text in out.read_text().splitlines()]


def middle(values: list[float]) -> tuple[float, list[float]]:
    """Median and quartiles."""
    if len(values) < 2:
        return values[0], [values[0], values[0]]
    low, half, high = statistics.quantiles(values, n=4, method="inclusive")
    return half, [round(low, 4), round(high, 4)]


KEPT = ("network", "method", "spread", "wall_ratio", "update_ms", "needed_ms", "plain", "step_ms")


def steps(asked: argparse.Namespace) -> Iterator[Line]:
    """S1 to S4."""
    networks = asked.networks or ("lenet5" if asked.quick else "lenet5,allcnn,resnet20,resnet18,vit_small")
    methods = asked.methods or ("unsir,incompetent_teacher,gated_transfer" if asked.quick else "")
    for network in networks.split(","):
        some = methods or ("unsir,incompetent_teacher" if network in ("resnet18", "vit_small") else "")
        words = ["--networks", network, "--rounds", "3" if asked.quick else "6"]
        found = script("steps.py", *words, *(["--methods", some] if some else []))
        peak = found[-1].get("peak_mib")
        for one in found[:-1]:
            more = {key: one[key] for key in KEPT if key in one}
            formula = one.get("formula", "")
            yield line(one["row"], one["part"], one["ratio"], one["target"], **more, formula=formula, peak_mib=peak)


def whole(asked: argparse.Namespace) -> Iterator[Line]:
    """S5: a class by UNSIR and rows by the incompetent teacher, beside retraining to the original's recipe.

    CIFAR-10 and a trained ResNet-20 where UNLEARN_DATA has them, so that what was forgotten can be said, too; else
    noise of that shape. The first is run whole, of the second one step is: the median, as often as the recipe has it.
    """
    import torch
    from steps import Bench

    from unlearning.data.samples import Rows
    from unlearning.data.selection import ForgetRequest, select
    from unlearning.methods.apply import unlearn
    from unlearning.methods.task import Task
    from unlearning.metrics.accuracy import accuracy
    from unlearning.training import predict

    name, epochs = ("lenet5", 30) if asked.quick else ("resnet20", 200)
    bench = Bench(name, 1)
    with tempfile.TemporaryDirectory() as folder:
        samples, manifest, original, real = _whole_data(bench, quick=asked.quick, folder=Path(folder))
        column = manifest.table["sample_id"].to_pylist()
        step = bench.step(128)
        times: list[float] = []

        def timed() -> None:
            began = time.process_time()
            step()
            times.append(time.process_time() - began)

        for _ in range(3):
            timed()
        recipe = {"epochs": epochs, "learning_rate": 1e-3, "batch_size": 128}
        some = tuple(column[row] for row in manifest.rows("train")[::50])
        for method, target, request in (
            ("unsir", 1 / 50, ForgetRequest("class", (manifest.card.classes[0],))),
            ("incompetent_teacher", 1 / 20, ForgetRequest("sample", some)),
        ):
            chosen = select(manifest, request, retain_per_class=1000 if method == "unsir" else 0, seed=0)
            task = Task(
                input_shape=bench.shape,
                outputs=10,
                forget_classes=tuple(chosen.forget_classes),
                blank=bench.blank,
                forget=Rows(samples, torch.from_numpy(chosen.forget)),
                retain=Rows(samples, torch.from_numpy(chosen.available)),
            )
            began = time.process_time()
            unlearned = unlearn(original, task, name=method, recipe=recipe, seed=0).model
            took = time.process_time() - began
            for _ in range(5):
                timed()
            retraining = epochs * -(-len(chosen.retain) // 128) * statistics.median(times)
            told = {}
            for which, model in (("original", original), ("unlearned", unlearned)) if real else ():
                for part, numbers in (("forget", chosen.forget[::2]), ("unseen", chosen.holdout_retain[::2])):
                    looked = Rows(samples, torch.from_numpy(numbers))
                    told[f"{part}_accuracy_{which}"] = round(accuracy(predict(model, looked), looked.targets), 4)
            yield line(
                "S5",
                f"unlearning / retraining for {epochs} epochs",
                took / retraining,
                target,
                network=name,
                method=method,
                unlearning_s=round(took, 2),
                retraining_s=round(retraining, 1),
                **told,
                formula=f"{len(chosen.forget) + len(chosen.retain)} rows, batch 128; retraining is the median of "
                f"{len(times)} steps x their number",
            )


def _whole_data(bench: Any, *, quick: bool, folder: Path) -> tuple[Any, Any, Any, bool]:
    """Samples, their manifest, a network, and whether it was trained on them."""
    import numpy as np

    from unlearning.data.sources import make_manifest, open_samples

    if not quick and os.environ.get("UNLEARN_DATA"):
        from datasets import npz_of
        from forget_class import original_model

        from unlearning_components.surroundings import open_for

        manifest = make_manifest(f"npz:{npz_of('cifar10', folder)}")
        original, card, _ = original_model("cifar10", manifest, folder, 0)
        return open_for(card, manifest), manifest, original, True
    rows = 7_000 if quick else 60_000
    draws = np.random.default_rng(0)
    pixels = draws.integers(0, 256, (rows, *bench.shape), dtype=np.uint8)
    split = np.where(np.arange(rows) < rows * 6 // 7, "train", "test")
    np.savez(folder / "noise.npz", inputs=pixels, targets=np.arange(rows) % 10, split=split)
    manifest = make_manifest(f"npz:{folder / 'noise.npz'}")
    return open_samples(manifest), manifest, bench.original(), False


def evaluation(asked: argparse.Namespace) -> Iterator[Line]:
    """S6: on digits, whose epoch takes a twentieth of a second, and on Fashion-MNIST where UNLEARN_DATA has it."""
    large = bool(os.environ.get("UNLEARN_DATA")) and not asked.quick
    found = script("evaluation.py", "--tasks", "digits", *(["fashion"] if large else []))
    if not found:
        yield line("S6", "not run: benchmarks/evaluation.py is not there", None, 1.0)
    for one in found:
        if one.get("row") == "S6":
            times = {key: one[key] for key in ("seconds_epoch", "seconds_evaluation") if key in one}
            yield line("S6", str(one.get("task", "")), one["ratio"], 1.0, method="evaluate, attack", **times)


def stages(asked: argparse.Namespace) -> Iterator[Line]:
    """S7: a local run of delete_class, each stage's time beside the time of its work; warm and cold."""
    found = [python("-c", "import torch")[:2] for _ in range(3)]
    torch_cpu, torch_s = (middle([one[place] for one in found])[0] for place in (0, 1))
    stretch = torch_s / torch_cpu  # by what else runs here
    program = (
        "import json, sys, time\nfrom unlearning_pipelines.local import Runner\n"
        "from unlearning_pipelines.preflight import claim_home\n"
        "from unlearning_components.surroundings import tracker\n"
        "seen = {}\n"
        "def on(stage, state):\n"
        "    seen.setdefault(stage, []).append(time.monotonic())\n"
        "asked = {'model': 'models:/digits/1'}\n"
        "with Runner(warm=sys.argv[1] == 'warm') as runner:\n"  # as `unlearn run` does
        "    from unlearning_pipelines.parameters import defaults\n"
        "    from unlearning_pipelines.preflight import check_run\n"
        "    check_run('delete_class', {**defaults('delete_class'), **asked})\n"
        "    ran = runner.run('delete_class', asked, root=claim_home() / 'runs', on_stage=on)\n"
        "if ran.error: raise ran.error\n"
        "work = {k: v for k, v in tracker().summary_of(ran.mlflow_run).items() if k.startswith('seconds.')}\n"
        "print(json.dumps([{k: b - a for k, (a, b) in seen.items()}, work]))\n"
    )
    with tempfile.TemporaryDirectory() as home:
        environment = {"UNLEARN_HOME": home, "OMP_NUM_THREADS": "1"}
        python(
            "-c", "from unlearning_pipelines.cli import main; main()", "train", "--recipe", "epochs=2", **environment
        )
        for how in ("warm",) if asked.quick else ("warm", "cold"):
            cpu, wall, text = python("-c", program, how, **environment)
            spent, work = json.loads(text.splitlines()[-1])
            for stage, seconds in spent.items():
                over = max(0.0, seconds - work.get(f"seconds.{stage}", 0.0))
                tensors = stage not in ("load_model", "select", "gate", "promote")
                yield line(
                    "S7",
                    f"{stage}, {how}" + (" / import torch" if tensors else ", seconds"),
                    over / torch_s if tensors else over / stretch,
                    (1.2 if tensors else 0.5) if how == "warm" else None,
                    wall_s=round(over, 2),
                    import_torch_s=round(torch_s, 2),
                    stretch=round(stretch, 2),
                )
            yield line("S7", f"the whole run, {how}, seconds", wall, None, cpu_s=round(cpu, 1))


def demo(asked: argparse.Namespace) -> Iterator[Line]:
    """S8."""
    with tempfile.TemporaryDirectory() as home:
        main = "from unlearning_pipelines.cli import main; main()"
        cpu, wall, _ = python("-c", main, "demo", "--json", UNLEARN_HOME=home, OMP_NUM_THREADS="2")
    yield line("S8", "unlearn demo, wall seconds", wall, 90.0, cpu_s=round(cpu, 1))


def ledger(asked: argparse.Namespace) -> Iterator[Line]:
    """S9."""
    _, _, text = python(str(HERE / "ledger.py"), str(10_000 if asked.quick else 1_000_000))
    for one in (json.loads(row) for row in text.splitlines() if row.startswith("{")):
        yield line(
            "S9",
            f"{one['step']}, {one['requests']} requests, seconds",
            one["seconds"],
            one.get("limit_seconds"),
            peak_mib=one["resident_mib"],
        )


AUTHORS = (
    ("unsir", "S2", "noise", "resnet20", 1.11, 1.5, "a noise step of the notebook of arXiv:2111.08947"),
    ("unsir", "S1", "impair", "resnet20", 1.04, None, "an impair step of the same"),
    ("incompetent_teacher", "S1", "update", "resnet20", 1.62, 1.5, "a step of the code of arXiv:2205.08096"),
    ("gated_transfer", "S4", "cycle", "allcnn", 88.0, 4.5, "a cycle of the code of arXiv:2201.05629"),
)
"""Times the bare step that the authors' code took on two AVX-512 cores, and by how much ours has to be faster."""


def authors(asked: argparse.Namespace, found: list[Line]) -> Iterator[Line]:
    """S10: their recorded ratio to the bare step / ours of this run. Their code is not ours to keep here."""
    for method, row, part, network, theirs, least, what in AUTHORS:
        wanted = (row, method, part, network)
        ours = [one for one in found if (one["row"], one.get("method"), one["what"], one.get("network")) == wanted]
        if not ours:
            yield line("S10", f"{what}: not run, it needs row {row} on {network}", None, None, method=method)
            continue
        times = ours[0]["value"] if part != "cycle" else ours[0]["update_ms"] / ours[0]["step_ms"]
        yield {
            "row": "S10",
            "what": f"{what} / ours; higher is better",
            "network": network,
            "method": method,
            "value": round(theirs / times, 2),
            "target": least,
            "met": None if least is None else theirs / times >= least,
            "authors_x_bare_step": theirs,
            "ours_x_bare_step": round(times, 3),
            "formula": "theirs as recorded, not run again",
        }


def data(asked: argparse.Namespace) -> Iterator[Line]:
    """Picking, normalising and augmenting a batch from memory, beside the step on it."""
    import torch
    from steps import Bench

    from unlearning.data.samples import Rows, TensorSamples
    from unlearning.training import augmented, generator

    for name, size, how in (("allcnn", 256, "shift"), ("resnet20", 128, "shift_flip")):
        bench = Bench(name, 1)
        pixels = torch.randint(256, (20_000, *bench.shape), dtype=torch.uint8)
        channels = bench.shape[0]
        samples = TensorSamples(pixels, torch.arange(20_000) % 10, mean=[0.5] * channels, std=[0.25] * channels)
        rows, draws, step = Rows(samples, torch.randperm(20_000)), generator(0, "data"), bench.step(size)
        ratios = []
        for batch in torch.randperm(20_000)[: size * (4 if asked.quick else 8)].split(size):
            began = time.process_time()
            augmented(rows.batch(batch)[0], how, draws)
            loaded = time.process_time()
            step()
            ratios.append((loaded - began) / (time.process_time() - loaded))
        value, spread = middle(ratios)
        yield line("data", f"loading with {how} / step", value, 0.03, network=name, spread=spread)


def start(asked: argparse.Namespace) -> Iterator[Line]:
    """Start-up: CPU seconds of `unlearn --help`, and imports beside `import torch`."""
    main = "import sys; from unlearning_pipelines.cli import main; main()"
    loops = 2 if asked.quick else 5
    torch_s = [python("-c", "import torch")[0] for _ in range(loops)]
    helps = [python("-c", main, "--help")[0] for _ in range(loops)]
    value, spread = middle(helps)
    yield line("start", "unlearn --help, CPU seconds", value, 0.3, spread=spread)
    for what, code, target in (
        ("surroundings of a stage without tensors, CPU seconds", "import unlearning_components.surroundings", 0.5),
        ("ledger's commands, CPU seconds", "import unlearning_pipelines.ledger_cli, unlearning.ledger.overview", None),
    ):
        value, spread = middle([python("-c", code)[0] for _ in range(loops)])
        yield line("start", what, value, target, spread=spread)
    ratios = [python("-c", "import unlearning.training, unlearning.methods.apply")[0] / one for one in torch_s]
    value, spread = middle(ratios)
    yield line("start", "the library with tensors / import torch", value, 1.2, spread=spread)


def others(name: str, row: str) -> Callable[[argparse.Namespace], Iterator[Line]]:
    """Rows of another benchmark that gives them in this form."""

    def lines(asked: argparse.Namespace) -> Iterator[Line]:
        words = ["--quick"] if asked.quick else []
        yield from script(name, *words, *(["--rows", row] if name == "loops.py" else []))

    return lines


ROWS: dict[str, Callable[[argparse.Namespace], Iterator[Line]]] = {
    "S1": steps,
    "S5": whole,
    "S6": evaluation,
    "S7": stages,
    "S8": demo,
    "S9": ledger,
    "data": data,
    "start": start,
    "loops": others("loops.py", "loops"),
    "two": others("loops.py", "two"),
    "large": others("large.py", "large"),
    "growth": others("growth.py", "growth"),
    "gpu": others("gpu.py", "gpu"),
}
SAME = {"S2": "S1", "S3": "S1", "S4": "S1"}


def table(lines: list[Line]) -> str:
    """Readable: a row each."""
    head = f"{'row':6} {'network':10} {'method':20} {'what':62} {'value':>9} {'target':>8}      {'spread':16}"
    rows = [head]
    for one in lines:
        met = {True: "ok", False: "MISS", None: ""}[one.get("met")]
        value, target = ("-" if one.get(key) is None else f"{one[key]:.4g}" for key in ("value", "target"))
        spread = "{:.3g} - {:.3g}".format(*one["spread"]) if one.get("spread") else ""
        rows.append(
            f"{one['row']:6} {one.get('network') or '':10} {one.get('method') or '':20} {one['what'][:62]:62} "
            f"{value:>9} {target:>8} {met:4} {spread:16}"
        )
    return "\n".join(rows)


def drawn(lines: list[Line], path: Path) -> None:
    """Every value as a share of its target, on a logarithmic axis; left of the line is met."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [one for one in lines if one.get("target") and one.get("value") and one["row"] != "S10"]
    figure = Figure(figsize=(8, 1.2 + 0.14 * len(shown)))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = [max(one["value"] / one["target"], 0.01) for one in shown]
    colours = ["tab:green" if one["met"] else "tab:red" for one in shown]
    axes.scatter(shares, range(len(shown)), c=colours, s=14)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    names = [" ".join(filter(None, (one["row"], one.get("network"), one.get("method"), one["what"]))) for one in shown]
    axes.set_yticks(range(len(shown)), [name[:80] for name in names], fontsize=6)
    axes.set_ylim(len(shown), -1)
    axes.set_xlabel("value / target: left of the line is met")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, bbox_inches="tight", dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help=f"of {', '.join((*ROWS, *SAME, 'S10'))}; all when left out")
    parser.add_argument("--quick", action="store_true", help="small networks and few rounds")
    parser.add_argument("--networks", default="", help="of S1-S4")
    parser.add_argument("--methods", default="", help="of S1-S4")
    parser.add_argument("--read", type=Path, nargs="+", help="measure nothing: put the rows of these files together")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown, with --read")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "bench.jsonl")
    asked = parser.parse_args()
    if asked.read:
        lines = [json.loads(text) for path in asked.read for text in path.read_text().splitlines()]
        finish(lines, asked)
        return
    every = (*ROWS, *SAME, "S10")
    wanted = asked.rows.split(",") if asked.rows else list(every)
    if unknown := [row for row in wanted if row not in every]:
        parser.error(f"unknown: {', '.join(unknown)} (known: {', '.join(every)})")
    facts = {"hardware": hardware(), "versions": versions(), "commit": commit()}
    lines = []

    def keep(one: Line) -> None:
        lines.append({**one, **facts, "when": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime())})
        print(json.dumps(one), flush=True)

    for row, measure in ROWS.items():
        if row in wanted or any(SAME.get(one) == row for one in wanted) or (row == "S1" and "S10" in wanted):
            try:
                for one in measure(asked):
                    if one["row"] in wanted or one["row"] not in every or asked.rows == "S10":
                        keep(one)
            except RuntimeError as error:
                keep(line(row, f"failed: {error}"[:200], None, None))
    if "S10" in wanted:
        for one in authors(asked, lines):
            keep(one)
    finish(lines, asked)


def finish(lines: list[Line], asked: argparse.Namespace) -> None:
    """The file, the picture and the table."""
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text("".join(json.dumps(one) + "\n" for one in lines))
    drawn(lines, asked.out.with_suffix(".png"))
    print("\n" + (markdown(lines) if asked.markdown else table(lines)))


def markdown(lines: list[Line]) -> str:
    """The table for a page."""
    rows = ["| row | network | method | what | value | target | | quartiles |", "|---|---|---|---|---|---|---|---|"]
    for one in lines:
        met = {True: "met", False: "**missed**", None: ""}[one.get("met")]
        value, target = ("" if one.get(key) is None else f"{one[key]:.3g}" for key in ("value", "target"))
        spread = "{:.3g} to {:.3g}".format(*one["spread"]) if one.get("spread") else ""
        cells = (one["row"], one.get("network") or "", one.get("method") or "", one["what"], value, target, met, spread)
        rows.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
