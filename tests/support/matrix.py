"""The failure matrix: every row's trials on the stand-in, what violated an invariant, and one line of JSON about it.

Usage: PYTHONPATH=tests python -m support.matrix [--short] [--rows R03,R21] [--soak N [--arrivals]] [--out FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from cProfile import Profile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import ends
from support.faults import CANARY, IDS, KILLED, LEASE, MODEL, Faults, World, in_fork

from unlearning.errors import StorageError, UnlearningError, UsageError
from unlearning.ledger.certificate import PREFIX, leaves
from unlearning.ledger.checking import check_certificate, ok
from unlearning.ledger.filing import cancel, release
from unlearning.ledger.ladder import claim_next, set_aside
from unlearning.ledger.overview import list_requests
from unlearning.ledger.serving import base_of, roll_back
from unlearning.ledger.signing import opened, public_key, public_pem, signer_of

Trial = Callable[[Path], list[str]]
DAY = 86400.0
MEMORY = Path("/dev/shm")
CALM = (0, 1)
"""Exit codes of a run that nobody killed: done, or one line of error."""


@dataclass
class Bench:
    """What trials start from.

    Attributes:
        templates: Worlds to copy: "first" has four requests waiting, "second" has served a batch before.
        operations: Names of the operations of a clean run of each.
        accepted: The requests in each.
        random: Of the trials that are drawn.
        short: Whether to draw few.
    """

    templates: dict[str, Path]
    operations: dict[str, list[str]]
    accepted: dict[str, set[str]]
    random: random.Random
    short: bool = False

    def every(self, *names: str, step: int = 1) -> Iterator[tuple[str, int]]:
        """Each operation of a clean run in each world, those whose name begins so, or some of them in short."""
        for which, operations in self.operations.items():
            if self.short and which == "second":
                continue
            places = [n for n, name in enumerate(operations, 1) if not names or name.startswith(names)]
            for place in places[:: step if self.short else 1]:
                yield which, place


@contextmanager
def prepared(seed: int, short: bool) -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None, prefix="unlearn-faults-") as name:
        top = Path(name)
        first, second = World(top / "first"), World(top / "second")
        first.folder.mkdir()
        first.lay_out()
        shutil.copytree(first.folder, second.folder)
        if second.run() != "closed":
            raise UnlearningError("the clean run did not close its batch")
        second.file("key-9", IDS[7:9])
        second.file("key-10", IDS[9:10])
        templates = {"first": first.folder, "second": second.folder}
        operations, accepted = {}, {}
        for which, folder in templates.items():
            world, faults = copied(folder, top / f"count-{which}"), Faults()
            accepted[which] = refs(world)
            world.run(faults)
            operations[which] = faults.names
        yield Bench(templates, operations, accepted, random.Random(seed), short)


def copied(template: Path, to: Path) -> World:
    shutil.copytree(template, to)
    return World(to)


def refs(world: World) -> set[str]:
    with world.open() as (ledger, _, _):
        return {row["ref"] for row in list_requests(ledger)}


def ended(code: int, log: Path, allowed: tuple[int, ...]) -> list[str]:
    """I9: a run ends as it should, and an error is one line."""
    text = log.read_text() if log.exists() else ""
    wrong = ["I7 ids are in what a run printed"] if CANARY in text else []
    wrong += [] if code in allowed else [f"I9 a run ended with {code}: {text[-300:]}"]
    if code == 1 and not (text.startswith("error: ") and text.count("\n") == 1):
        wrong.append(f"I9 an error was not one line: {text[-300:]}")
    return wrong


def finish(world: World, accepted: set[str], *states: str) -> list[str]:
    """Recovers, and looks at everything."""
    try:
        world.recover()
        return world.violations(accepted, open_states=states)
    except UnlearningError as error:
        return [f"I1 recovery stopped: {error}"]


def once(bench: Bench, which: str, faults: Faults, allowed: tuple[int, ...], **changes: Any) -> Trial:
    """One run with a fault in a fork, recovery, and a look at everything."""

    def trial(folder: Path) -> list[str]:
        world = copied(bench.templates[which], folder)
        for name, value in changes.items():
            setattr(world, name, value)
        log = folder.with_suffix(".log")
        wrong = ended(in_fork(lambda: world.run(copy.copy(faults)), log), log, allowed)
        return wrong + finish(world, bench.accepted[which])

    return trial


def kills(bench: Bench) -> Iterator[Trial]:
    for kind in ("kill before", "kill after"):
        for which, place in bench.every(step=7):
            yield once(bench, which, Faults(place, kind), (KILLED,))


def nested(bench: Bench) -> Iterator[Trial]:
    def make(seed: int, which: str) -> Trial:
        def trial(folder: Path) -> list[str]:
            draw, world = random.Random(seed), copied(bench.templates[which], folder)
            log, wrong = folder.with_suffix(".log"), list[str]()
            for _ in range(5):
                faults = Faults(draw.randrange(1, 77), draw.choice(["kill before", "kill after"]))
                wrong += ended(in_fork(lambda used=faults: world.run(used), log), log, (0, KILLED))
                world.late += LEASE + 1
            return wrong + finish(world, bench.accepted[which])

        return trial

    for number in range(4 if bench.short else 100):
        yield make(bench.random.randrange(1 << 30), ("first", "second")[number % 2])


def together(bench: Bench, runs: int, trials: int) -> Iterator[Trial]:
    def make(seed: int) -> Trial:
        def trial(folder: Path) -> list[str]:
            draw, world = random.Random(seed), copied(bench.templates["first"], folder)
            pids = []
            for number in range(runs):
                wait = draw.random() * 0.1 if runs > 2 else 0.0
                log = folder.with_name(f"{folder.name}-{number}.log")
                if not (pid := os.fork()):
                    time.sleep(wait)
                    os._exit(in_fork(lambda n=number: world.run(owner=f"run-{n}"), log) & 0xFF)
                pids.append((pid, log))
            wrong = []
            for pid, log in pids:
                wrong += ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), log, (0,))
            return wrong + finish(world, bench.accepted["first"])

        return trial

    for _ in range(2 if bench.short else trials):
        yield make(bench.random.randrange(1 << 30))


def calls(bench: Bench, make_call: Callable[[World], Callable[[], None]], *states: str) -> Iterator[Trial]:
    """Something else happens at each operation of a run that is outside of the ledger's turns."""

    def make(which: str, place: int) -> Trial:
        def trial(folder: Path) -> list[str]:
            world, log = copied(bench.templates[which], folder), folder.with_suffix(".log")
            faults = Faults(place, "call", call=make_call(world))
            wrong = ended(in_fork(lambda: world.run(faults), log), log, CALM)
            mended = finish(world, refs(world), *states)
            if bench.accepted[which] - refs(world):
                wrong.append("I1 a request was lost")
            return wrong + mended

        return trial

    for which, place in bench.every(step=12):
        yield make(which, place)


def takeover(world: World) -> Callable[[], None]:
    def call() -> None:
        World(world.folder, late=world.late + LEASE + 1).run(owner="other")

    return call


def arrival(world: World) -> Callable[[], None]:
    return lambda: (world.file("late", IDS[5:6]), None)[1]


def taken_back(world: World) -> Callable[[], None]:
    def call() -> None:
        with world.open() as (ledger, _, _):
            first = next(iter(list_requests(ledger)))
            try:
                cancel(ledger, first["ref"], "taken back", actor="desk")
            except UsageError as error:
                if "cannot be cancelled" not in str(error):
                    raise

    return call


def stranger(world: World) -> Callable[[], None]:
    def call() -> None:
        (world.folder / "registry" / "alias").write_text((world.folder / "base").read_text())

    return call


def jump(seconds: float) -> Callable[[World], Callable[[], None]]:
    def make(world: World) -> Callable[[], None]:
        def call() -> None:
            world.late += seconds

        return call

    return make


def catch_up(bench: Bench) -> Iterator[Trial]:
    def trial(folder: Path) -> list[str]:
        world, start = copied(bench.templates["first"], folder), time.monotonic()
        answers = [world.run(owner=f"slot-{number}") for number in range(20)]
        wrong = [] if answers == ["closed"] + ["nothing"] * 19 else [f"I2 20 slots gave {answers}"]
        if time.monotonic() - start > 60:
            wrong.append("R09 it took more than a minute")
        return wrong + finish(world, bench.accepted["first"])

    yield from [trial] * (1 if bench.short else 5)


def rollback(bench: Bench) -> Iterator[Trial]:
    """A rollback to the first model after a batch was settled."""

    def trial(folder: Path) -> list[str]:
        world = copied(bench.templates["second"], folder)
        with world.open() as (ledger, _, registry):
            try:
                roll_back(ledger, MODEL, (folder / "base").read_text(), registry, actor="operator")
            except UsageError:
                return finish(world, bench.accepted["second"])
        return ["I5 a rollback to a model that knows deleted data was let through"]

    yield from [trial] * (1 if bench.short else 5)


def foreign(bench: Bench) -> Iterator[Trial]:
    yield from calls(bench, stranger)
    yield from rollback(bench)


def bursts(bench: Bench) -> Iterator[Trial]:
    def make(seed: int, which: str) -> Trial:
        def trial(folder: Path) -> list[str]:
            world, log, wrong = copied(bench.templates[which], folder), folder.with_suffix(".log"), list[str]()
            for number in range(4):
                faults = Faults(only="store", chance=(seed + number, 0.3))
                log.unlink(missing_ok=True)
                wrong += ended(in_fork(lambda used=faults: world.run(used), log), log, CALM)
                world.late += LEASE + 1
            return wrong + finish(world, bench.accepted[which])

        return trial

    for number in range(4 if bench.short else 100):
        yield make(bench.random.randrange(1 << 30), ("first", "second")[number % 2])


def lost_replies(bench: Bench) -> Iterator[Trial]:
    for which, place in bench.every(step=6):
        yield once(bench, which, Faults(place, "error after"), CALM)


def refusals(bench: Bench) -> Iterator[Trial]:
    for kind in ("error before", "error on"):
        for which, place in bench.every(step=12):
            yield once(bench, which, Faults(place, kind), CALM)


def damage(bench: Bench) -> Iterator[Trial]:
    for kind in ("flip", "short", "empty"):
        for which, place in bench.every("store get", "store download", step=3):
            yield once(bench, which, Faults(place, kind), CALM)


def registry_away(bench: Bench) -> Iterator[Trial]:
    for kind in ("error before", "error after", "error on", "kill before", "kill after"):
        for which, operations in bench.operations.items():
            count = sum(name.startswith("registry") for name in operations)
            for place in range(1, count + 1, 5 if bench.short else 1):
                allowed = CALM if kind.startswith("error") else (KILLED,)
                yield once(bench, which, Faults(place, kind, only="registry"), allowed)


def foreign_artifact(bench: Bench) -> Iterator[Trial]:
    def make(which: str, content: str) -> Trial:
        def trial(folder: Path) -> list[str]:
            world, log = copied(bench.templates[which], folder), folder.with_suffix(".log")
            before = (folder / "registry" / "alias").read_text()
            world.tampers = [content]
            wrong = ended(in_fork(world.run, log), log, (1,))
            if (folder / "registry" / "alias").read_text() != before:
                wrong.append("I3 a foreign artifact was promoted")
            world.tampers = []
            for path in (folder / "store" / "models").glob("*/model.json"):
                if path.read_text() == content:
                    path.unlink()
            return wrong + finish(world, bench.accepted[which])

        return trial

    for content in ("", "{}", json.dumps({"knows": [], "parent": ""}), "x" * 1000):
        yield make("first", content)
        yield make("second", content)


def disk_full(bench: Bench) -> Iterator[Trial]:
    for which, place in bench.every("file", step=4):
        yield once(bench, which, Faults(place, "full"), CALM)


def clocks(bench: Bench) -> Iterator[Trial]:
    for seconds in (DAY, -DAY):
        yield from calls(bench, jump(seconds))


def repeats(bench: Bench) -> Iterator[Trial]:
    """R40: the same twice, and the same under another key. R41: one key with other ids. R42: forgotten before."""

    def twice(folder: Path) -> list[str]:
        world = copied(bench.templates["first"], folder)
        again, twin = world.ask(0, 1), world.file("twin", IDS[:1])
        wrong = [] if again in bench.accepted["first"] else ["I2 the same request was taken for a new one"]
        return wrong + finish(world, bench.accepted["first"] | {twin})

    def conflict(folder: Path) -> list[str]:
        world = copied(bench.templates["first"], folder)
        world.file("key-0", IDS[6:7])
        wrong = finish(world, bench.accepted["first"], "held")
        with world.open() as (ledger, _, _):
            held = sum(row["state"] == "held" for row in list_requests(ledger))
        return wrong + ([] if held == 1 else [f"R41 {held} requests are held after one conflict"])

    def forgotten(folder: Path) -> list[str]:
        world = copied(bench.templates["second"], folder)
        new = {world.file("again", IDS[:1]), world.file("unknown", ["row-CANARY-99"])}
        return finish(world, bench.accepted["second"] | new)

    yield from (twice, conflict, forgotten)


def empty_queue(bench: Bench) -> Iterator[Trial]:
    def trial(folder: Path) -> list[str]:
        world = copied(bench.templates["first"], folder)
        world.recover()
        versions, start = sorted((folder / "registry").iterdir()), time.monotonic()
        answer = world.run()
        wrong = [] if answer == "nothing" and time.monotonic() - start < 5 else [f"R49 an empty queue gave {answer}"]
        if sorted((folder / "registry").iterdir()) != versions:
            wrong.append("R49 an empty queue made a version")
        return wrong + finish(world, bench.accepted["first"])

    yield from [trial] * (1 if bench.short else 5)


def gates(bench: Bench) -> Iterator[Trial]:
    """The gate says no, or measures NaN, on the first rungs; after the last everything is held, and nothing lost."""

    def make(value: float, times: int) -> Trial:
        def trial(folder: Path) -> list[str]:
            world = copied(bench.templates["first"], folder)
            world.gate, world.gate_times = value, times
            return finish(world, bench.accepted["first"], *(["held"] if times > 4 else []))

        return trial

    for times in (1, 5) if bench.short else range(1, 6):
        yield make(float("nan"), times)
        yield make(2.0, times)


def altered_certificates(bench: Bench) -> Iterator[Trial]:
    """Each value of a certificate changed."""
    world = World(bench.templates["second"])
    key = public_key(public_pem(signer_of(world.folder / "signing.pem")))
    with world.open() as (_, store, _):
        data = store.get(next(iter(store.keys(PREFIX))))
    envelope, stated = opened(data)

    def make(path: str) -> Trial:
        def trial(folder: Path) -> list[str]:
            import base64

            from unlearning.ledger.events import canonical

            changed = copy.deepcopy(stated)
            inner: Any = changed
            *way, last = [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]
            for step in way:
                inner = inner[int(step) if isinstance(inner, list) else step]
            inner[int(last) if isinstance(inner, list) else last] = "changed"
            payload = base64.b64encode(canonical(changed).encode()).decode()
            lines = check_certificate(canonical({**envelope, "payload": payload}).encode(), key)
            named = any(line.mark == "failed" and line.what.startswith("field") for line in lines)
            return [] if named and not ok(lines) else [f"R66 {path} was changed unseen"]

        return trial

    for number, (path, _) in enumerate(leaves(stated)):
        if not bench.short or number % 10 == 0:
            yield make(path)


def set_aside_for_a_person(bench: Bench) -> Iterator[Trial]:
    """What cannot be served as it is waits for a person, and is served when a person lets go."""

    def make(which: str) -> Trial:
        def trial(folder: Path) -> list[str]:
            world = copied(bench.templates[which], folder)
            with world.open() as (ledger, _, registry):
                found = claim_next(ledger, owner="run", base=base_of(ledger, MODEL, registry))
                if found is None:
                    return ["I1 nothing was there to claim"]
                set_aside(ledger, found.claim, "all rows were asked for")
                held = [row["ref"] for row in list_requests(ledger) if row["state"] == "held"]
            wrong = [] if len(held) == found.claim.count else [f"R48 {len(held)} requests are held"]
            if world.run() != "nothing":
                wrong.append("R48 what is held was served")
            with world.open() as (ledger, _, _):
                for ref in held:
                    release(ledger, ref, actor="desk")
            return wrong + finish(world, bench.accepted[which])

        return trial

    for which in ("first", "second"):
        yield make(which)


def canaries(bench: Bench) -> Iterator[Trial]:
    """Ids after a run that fails, in all that it left and printed; whole runs are followed by a test of their own."""
    for which, place in bench.every(step=12):
        if place % 4 == 0 or bench.short:
            yield once(bench, which, Faults(place, "error before"), CALM)


def yardstick() -> float:
    """CPU seconds of some fixed work: a busy machine makes it as slow as everything else."""
    start = time.process_time()
    for number in range(400):
        json.loads(json.dumps({"number": number, "words": ["some", "fixed", "work"] * 20}))
    return time.process_time() - start


def soak(seed: int, batches: int, arrivals: bool = False) -> dict[str, Any]:
    """Batch after batch on one installation, a tenth of the runs with a fault; whether time and memory stay flat.

    Args:
        seed: Of the faults and requests.
        batches: How many.
        arrivals: Whether requests also come while a batch runs, at random operations of it.
    """
    shares = list[float]()
    draw, seconds, wrong, memory, calls = random.Random(seed), list[float](), list[str](), list[int](), list[int]()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None, prefix="unlearn-soak-") as name:
        world = World(Path(name) / "world")
        world.folder.mkdir()
        world.lay_out()
        log = Path(name) / "log"
        for number in range(batches):
            for arrival in range(draw.randrange(1, 3)):
                world.file(f"soak-{number}-{arrival}", [draw.choice(IDS)])
            if draw.random() < 0.1:
                kind = draw.choice(["kill before", "kill after", "error before", "error after", "full"])
                place = draw.randrange(1, 80)
                faults = Faults(place % 25 + 1, kind, only="file") if kind == "full" else Faults(place, kind)
                log.unlink(missing_ok=True)
                wrong += ended(in_fork(lambda used=faults: world.run(used), log), log, (*CALM, KILLED))
                world.late += LEASE + 1
            faults = Faults()
            if arrivals and draw.random() < 0.5:
                late = (f"late-{number}", [draw.choice(IDS)])
                faults = Faults(draw.randrange(1, 80), "call", call=lambda of=late: (world.file(*of), None)[1])
            counted = Profile() if number in (49, batches - 1) else None
            start = time.process_time()  # other work on the machine does not count
            if counted is not None:
                counted.enable()
            world.run(faults, owner=f"soak-{number}")
            if counted is not None:
                counted.disable()
                calls.append(sum(one.callcount for one in counted.getstats()))
                memory.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4 // 1024)
                print(f"batch {number + 1}: {calls[-1]} calls, {memory[-1]} MiB", flush=True)
            else:
                took = time.process_time() - start
                seconds.append(took)
                shares.append(took / yardstick())
        wrong += finish(world, refs(world))
    first, last = statistics.median(seconds[:50]), statistics.median(seconds[-50:])
    slope = statistics.linear_regression(range(len(seconds)), seconds).slope
    figures = {
        "cpu_seconds_first_50": round(first, 4),
        "cpu_seconds_last_50": round(last, 4),
        "cpu_seconds_more_each_100_batches": round(100 * slope, 5),
        "yardsticks_first_50": round(statistics.median(shares[:50]), 2),
        "yardsticks_last_50": round(statistics.median(shares[-50:]), 2),
        "calls_of_batch_50_and_last": calls,
        "resident_mib": memory,
    }
    return {
        "row": "R68",
        "batches": batches,
        "arrivals_while_running": arrivals,
        "violations": len(wrong),
        "found": wrong[:3],
        **figures,
    }


ROWS: dict[str, tuple[str, Callable[[Bench], Iterator[Trial]]]] = {
    "R01-R03": ("kill -9 before and after every operation, and inside every write", kills),
    "R04": ("recovery killed again and again", nested),
    "R06": ("two runs at the same moment", lambda bench: together(bench, 2, 150)),
    "R07": ("five runs at random offsets", lambda bench: together(bench, 5, 50)),
    "R08": ("another run takes over at every operation", lambda bench: calls(bench, takeover)),
    "R09": ("twenty queued slots", catch_up),
    "R12": ("a request arrives at every operation", lambda bench: calls(bench, arrival)),
    "R13": ("a request is taken back at every operation", lambda bench: calls(bench, taken_back, "cancelled")),
    "R14": ("a stranger moves the alias at every operation; a rollback", foreign),
    "R20": ("a third of the store's operations fail", bursts),
    "R21": ("the reply of every operation is lost", lost_replies),
    "R24": ("every operation refused, once and from there on", refusals),
    "R23": ("one bit flipped, half, and nothing of every read", damage),
    "R30-R32": ("the registry fails, or the run dies, at each of its operations", registry_away),
    "R33": ("another artifact under the model's digest", foreign_artifact),
    "R34": ("the disk is full at every write", disk_full),
    "R22": (
        "every operation takes longer than the lease",
        lambda bench: ends.slow(
            bench.templates["first"], copied, (n for which, n in bench.every(step=12) if which == "first")
        ),
    ),
    "R25": ("ten thousand keys to list", lambda bench: ends.many_keys(bench.templates["first"], copied)),
    "R28": (
        "kill -9 or an error at every operation of an old model's removal",
        lambda bench: ends.retirement(bench.templates["second"], copied, step=6 if bench.short else 1),
    ),
    "R36": ("the clock jumps by a day at every operation", clocks),
    "R40-R42": ("repeated, conflicting, unknown, forgotten before", repeats),
    "R43": (
        "files of spoilt rows",
        lambda bench: ends.spoilt(3 if bench.short else 60, bench.random.randrange(1 << 30)),
    ),
    "R44": ("packed, endless, nested", lambda _: ends.bombs()),
    "R45-R47": (
        "hostile ids and keys between good rows",
        lambda bench: ends.hostile(bench.templates["first"], copied, step=40 if bench.short else 1),
    ),
    "R48": ("all rows or a last class asked for: held for a person", set_aside_for_a_person),
    "R50": ("ten thousand requests wait", lambda bench: ends.many_requests(bench.templates["first"], copied)),
    "R60": ("pickles where a model should be", lambda _: ends.pickles()),
    "R61": ("weights that are not the model's", lambda _: ends.broken_models()),
    "R64": ("a gate's bound misspelt or missing", lambda _: ends.mistaken_policies()),
    "R49": ("an empty queue", empty_queue),
    "R62": ("a gate says no or measures NaN, rung by rung", gates),
    "R67": ("ids in what failed runs left and printed", canaries),
    "R66": ("each value of a certificate changed", altered_certificates),
}


@dataclass
class Result:
    """What became of a row."""

    row: str
    what: str
    trials: int = 0
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0
    stopped: bool = False


def run_row(bench: Bench, name: str, folder: Path) -> Result:
    what, trials = ROWS[name]
    result, start = Result(name, what), time.monotonic()
    for number, trial in enumerate(trials(bench)):
        place = folder / f"{name}-{number}"
        try:
            found = trial(place)
        except KeyboardInterrupt:  # what was tried counts
            result.stopped = True
            break
        except (OSError, StorageError) as error:
            found = [f"the harness stopped: {error}"]
        result.trials += 1
        result.violations += [f"trial {number}: {one}" for one in found]
        for left in folder.glob(f"{place.name}*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    result.seconds = round(time.monotonic() - start, 1)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", default="")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--soak", type=int, default=0, metavar="BATCHES", help="run so many batches in a row instead")
    parser.add_argument("--arrivals", action="store_true", help="with --soak: requests also come while a batch runs")
    chosen = parser.parse_args()
    rows = [row for row in chosen.rows.split(",") if row] or list(ROWS)
    commit = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    about = {"seed": chosen.seed, "commit": commit.stdout.strip() or "unknown", "short": chosen.short}
    results = []
    if chosen.soak:
        figures = {**soak(chosen.seed, max(100, chosen.soak), chosen.arrivals), **about}
        print(json.dumps(figures))
        if chosen.out is not None:
            with chosen.out.open("a") as file:
                file.write(json.dumps(figures) + "\n")
        return 1 if figures["violations"] else 0
    with prepared(chosen.seed, chosen.short) as bench:
        count = ", ".join(f"{which} {len(names)}" for which, names in bench.operations.items())
        print(f"operations of a clean run: {count}; seed {chosen.seed}, commit {about['commit']}")
        print(f"{'row':8} {'trials':>6} {'violations':>10} {'seconds':>8}  what")
        for name in rows:
            result = run_row(bench, name, next(iter(bench.templates.values())).parent)
            results.append(result)
            shown = f"{result.trials:6} {len(result.violations):10} {result.seconds:8}"
            print(f"{name:8} {shown}  {result.what}", flush=True)
            if chosen.out is not None:
                line = {"row": name, "what": result.what, "trials": result.trials, "seconds": result.seconds}
                line |= {"stopped": True} if result.stopped else {}
                with chosen.out.open("a") as file:
                    file.write(json.dumps({**line, "violations": len(result.violations), **about}) + "\n")
            for violation in result.violations[:3]:
                print(f"         {violation[:300]}", flush=True)
            if result.stopped:
                break
    trials, wrong = sum(one.trials for one in results), sum(len(one.violations) for one in results)
    bound = f"; with none in {trials}, the rate is below {3 / trials:.2%} (95 %)" if not wrong else ""
    print(f"{trials} trials, {wrong} violations of I1 to I9{bound}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
