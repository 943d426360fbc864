"""Rows of the matrix about what comes in, models that are not what they should be, and the end of old ones."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.faults import CANARY, KILLED, LEASE, MODEL, Faults, World, in_fork
from support.fuzz import fuzz
from support.hostile import payloads

from unlearning.errors import DataError, ModelError, UnlearningError, UsageError
from unlearning.ledger.claims import plan
from unlearning.ledger.filing import file_requests
from unlearning.ledger.intake import import_file
from unlearning.ledger.overview import list_requests, status
from unlearning.ledger.promotion import advise
from unlearning.ledger.readers import rows
from unlearning.ledger.requests import request_from
from unlearning.ledger.retirement import retirable, retire_one
from unlearning.ledger.verification import verify

Trial = Callable[[Path], list[str]]
Copied = Callable[[Path, Path], World]
GOOD = {"controller": "shop", "kind": "sample", "model": MODEL, "submitted_at": "2026-11-20T12:00:00Z"}


def retire_all(world: World, faults: Faults | None = None) -> int:
    """Removes every version that serves no more; how many were removed."""
    with world.open(faults) as (ledger, store, registry):
        found = retirable(ledger, days=0)
        gone = [retire_one(ledger, store, registry, *one, days=0, actor="retire") for one in found]
        return sum(one.removed is not None for one in gone)


def retirement(template: Path, copied: Copied, *, step: int) -> Iterator[Trial]:
    """R28: kill -9, an error before and an error after each operation of the removal of an old model."""
    faults = Faults()
    counted = copied(template, template.with_name("count-retirement"))
    retire_all(counted, faults)

    def make(place: int, kind: str) -> Trial:
        def trial(folder: Path) -> list[str]:
            world, log = copied(template, folder), folder.with_suffix(".log")
            code = in_fork(lambda: retire_all(world, Faults(place, kind)), log)
            wrong = [] if code in (0, 1, KILLED) else [f"I9 a removal ended with {code}: {log.read_text()[-300:]}"]
            world.late += LEASE + 1
            retire_all(world)
            with world.open() as (ledger, store, registry):
                wrong += [f"I6 {finding}" for finding in verify(ledger)]
                proofs = [one.content["digest"] for one in ledger.events() if one.kind == "destroyed"]
                base = (world.folder / "base").read_text()
                if proofs != [base] or store.remains(f"models/{base}") or registry.copies(MODEL, base):
                    wrong.append("I8 an old model is not gone, or not proved gone once")
                if advise(ledger, MODEL, registry.digest()).action != "nothing":
                    wrong.append("I4 the alias moved")
            return wrong

        return trial

    for kind in ("kill before", "kill after", "error before", "error after"):
        for place in range(1, len(faults.names) + 1, step):
            yield make(place, kind)


def spoilt(trials: int, first: int) -> Iterator[Trial]:
    """R43: files of spoilt rows, each from another seed."""

    def make(seed: int) -> Trial:
        def trial(folder: Path) -> list[str]:
            folder.mkdir()
            return [f"R43 {one}" for one in fuzz(folder, 90, seed, 30)[1]]

        return trial

    for seed in range(trials):
        yield make(first + seed)


def bombs() -> Iterator[Trial]:
    """R44: packed files, endless lines and deep nesting are refused or rejected at once."""
    contents: dict[str, bytes] = {
        "gzip.jsonl": b"\x1f\x8b\x08\x00" + b"\x00" * 100,
        "zip.csv": b"PK\x03\x04" + b"\x00" * 100,
        "bzip.jsonl": b"BZh9" + b"\x00" * 100,
        "xz.jsonl": b"\xfd7zXZ\x00" + b"\x00" * 100,
        "zstd.jsonl": b"\x28\xb5\x2f\xfd" + b"\x00" * 100,
        "line.jsonl": b'{"key": "' + b"a" * (20 << 20),
        "deep.jsonl": b"[" * 500_000,
        "number.jsonl": b'{"key": ' + b"9" * 1_000_000 + b"}",
        "tail.parquet": b"PAR1" + b"\xff" * 64 + b"\xff\xff\xff\x7fPAR1",
        "fields.csv": b"key,kind,ids\n" + b"," * 2_000_000 + b"\n",
    }

    def make(name: str) -> Trial:
        def trial(folder: Path) -> list[str]:
            folder.mkdir()
            (folder / name).write_bytes(contents[name])
            start = time.process_time()
            try:
                taken = [row for row in rows(folder / name) if row.values is not None]
            except DataError:
                taken = []
            seconds = time.process_time() - start
            return [] if not taken and seconds < 1 else [f"R44 {name}: {len(taken)} rows taken, {seconds:.1f} s"]

        return trial

    for name in contents:
        yield make(name)


def hostile(template: Path, copied: Copied, *, step: int) -> Iterator[Trial]:
    """R45 to R47: each payload as id and as key between two good rows, and a batch after it."""

    def make(number: int, text: str) -> Trial:
        def trial(folder: Path) -> list[str]:
            world = copied(template, folder)
            good = [{**GOOD, "key": f"good-{number}-{n}", "ids": [f"row-{CANARY}-{5 + n}"]} for n in range(2)]
            bad = [{**GOOD, "key": "bad", "ids": [f"row-{CANARY}-1", text]}, {**GOOD, "key": text, "ids": ["row"]}]
            path = folder.with_suffix(".jsonl")
            path.write_text("".join(json.dumps(one) + "\n" for one in (good[0], *bad, good[1])))
            with world.open() as (ledger, _, _):
                report = import_file(ledger, path, actor="intake")
                accepted = {row["ref"] for row in list_requests(ledger)}
            wrong = [] if [line for line, _ in report.rejects] == [2, 3] else [f"R45 {text[:40]!r} was let through"]
            world.recover()
            return wrong + world.violations(accepted)

        return trial

    for number, (_, text) in enumerate(payloads()):
        if number % step == 0:
            yield make(number, text)


def slow(template: Path, copied: Copied, places: Iterator[int]) -> Iterator[Trial]:
    """R22: an operation takes longer than the lease, at each one, and nobody else comes meanwhile."""

    def make(place: int) -> Trial:
        def trial(folder: Path) -> list[str]:
            world, log = copied(template, folder), folder.with_suffix(".log")

            def wait() -> None:
                world.late += 2 * LEASE

            code = in_fork(lambda: world.run(Faults(place, "call", call=wait)), log)
            wrong = [] if code in (0, 1) else [f"I9 a run ended with {code}: {log.read_text()[-300:]}"]
            world.late += 3 * LEASE
            with world.open() as (ledger, _, _):
                accepted = {row["ref"] for row in list_requests(ledger)}
            world.recover()
            return wrong + world.violations(accepted)

        return trial

    for place in places:
        yield make(place)


def many_keys(template: Path, copied: Copied) -> Iterator[Trial]:
    """R25: what ended batches left is found to the last of 10,000 keys."""

    def trial(folder: Path) -> list[str]:
        world = copied(template, folder)
        left = world.folder / "store" / "work" / ("e" * 64) / "unlearn" / "1"
        left.mkdir(parents=True)
        for number in range(10_000):
            (left / f"{number:05d}").touch()
        with world.open() as (ledger, store, _):
            accepted = {row["ref"] for row in list_requests(ledger)}
            if len(list(store.keys("work"))) != 10_000:
                return ["R25 a listing lacks keys"]
        world.recover()
        return world.violations(accepted)

    yield trial


def many_requests(template: Path, copied: Copied) -> Iterator[Trial]:
    """R50: 10,000 requests wait; a million are a benchmark."""

    def trial(folder: Path) -> list[str]:
        world, wrong = copied(template, folder), list[str]()
        with world.open() as (ledger, _, _):
            wanted = (request_from({**GOOD, "key": f"many-{n}", "ids": [f"row-{CANARY}-{n}"]}) for n in range(10_000))
            count = sum(filed.status == "accepted" for filed in file_requests(ledger, wanted, actor="intake"))
            for what, limit, call in (("plan", 2.0, lambda: plan(ledger)), ("status", 5.0, lambda: status(ledger))):
                start = time.process_time()
                call()
                if (seconds := time.process_time() - start) > limit:
                    wrong.append(f"R50 {what} took {seconds:.1f} s of CPU")
            if status(ledger).counts["pending"] < count:
                wrong.append("I1 requests are missing")
        return wrong

    yield trial


@dataclass
class Bomb:
    """Leaves a file behind when somebody unpickles it."""

    path: str

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def bundle(to: Path) -> None:
    """A small network's bundle."""
    from unlearning.models.architectures import build
    from unlearning.models.bundle import ModelCard, save_bundle

    shape, width = (1, 8, 8), {"width": 0.0625}
    card = ModelCard(architecture="allcnn", arguments=width, input_shape=shape, outputs=3, classes=("a", "b", "c"))
    save_bundle(build("allcnn", width, input_shape=shape, outputs=3), card, to)


def pickles() -> Iterator[Trial]:
    """R60: pickles where weights, cards and whole bundles should be: none is ever loaded."""
    import torch

    from unlearning.models.bundle import load_bundle

    def make(name: str, form: str) -> Trial:
        def trial(folder: Path) -> list[str]:
            bundle(folder)
            mark = folder.with_suffix(".mark")
            bomb = Bomb(str(mark))
            if form == "zip":
                torch.save({"a": bomb}, folder / name)
            elif form == "legacy":
                torch.save({"a": bomb}, folder / name, _use_new_zipfile_serialization=False)
            else:
                (folder / name).write_bytes(pickle.dumps(bomb if form == "bare" else {"state_dict": bomb}))
            try:
                load_bundle(folder)
            except ModelError:
                return [] if not mark.exists() else [f"R60 {form} as {name} was unpickled"]
            return [f"R60 {form} as {name} was taken for a model"]

        return trial

    for name in (
        "weights.safetensors",
        "card.json",
        "weights.pt",
        "model.pkl",
        "model.bin",
        "python_model.pkl",
        "a.ckpt",
        "b.pth",
    ):
        for form in ("zip", "legacy", "bare", "mapping"):
            yield make(name, form)


def broken_models() -> Iterator[Trial]:
    """R61: weights that are not finite, empty, of another shape, missing, too many, cut or of another architecture."""
    import torch
    from safetensors.torch import load_file, save_file

    from unlearning.models.bundle import load_bundle

    def changed(change: Callable[[dict[str, Any]], Any]) -> Trial:
        def trial(folder: Path) -> list[str]:
            bundle(folder)
            path, card = folder / "weights.safetensors", json.loads((folder / "card.json").read_text())
            state = load_file(path)
            change(state)
            path.unlink()
            save_file(state, path)
            card["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
            card["weights_bytes"] = path.stat().st_size
            (folder / "card.json").write_text(json.dumps(card))
            return _refused(lambda: load_bundle(folder))

        return trial

    def first(state: dict[str, Any]) -> str:
        return next(name for name, value in state.items() if value.is_floating_point() and value.numel() > 1)

    def put(value: float) -> Callable[[dict[str, Any]], Any]:
        return lambda state: state[first(state)].view(-1).__setitem__(0, value)

    yield changed(put(math.nan))
    yield changed(put(math.inf))
    yield changed(put(-math.inf))
    yield changed(lambda state: state.__setitem__(first(state), torch.zeros(0)))
    yield changed(lambda state: state.__setitem__(first(state), state[first(state)].flatten()))
    yield changed(lambda state: state.__setitem__(first(state), state[first(state)].double()))
    yield changed(lambda state: state.pop(first(state)))
    yield changed(lambda state: state.__setitem__("one.more", torch.zeros(1)))
    yield changed(lambda state: state.clear())

    def torn(change: Callable[[Path], Any]) -> Trial:
        def trial(folder: Path) -> list[str]:
            bundle(folder)
            change(folder)
            return _refused(lambda: load_bundle(folder))

        return trial

    def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Any]:
        return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))

    for name in ("weights.safetensors", "card.json"):
        yield torn(rewrite(name, lambda data: data[: len(data) // 2]))
        yield torn(rewrite(name, lambda data: b""))
        yield torn(rewrite(name, lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:]))
        yield torn(lambda folder, name=name: (folder / name).unlink())
    yield torn(rewrite("card.json", lambda data: data.replace(b'"allcnn"', b'"resnet18"')))
    yield torn(rewrite("card.json", lambda data: data.replace(b'"outputs":3', b'"outputs":4').replace(b": 3", b": 4")))
    yield torn(lambda folder: (folder / "more.txt").touch())


def mistaken_policies() -> Iterator[Trial]:
    """R64: a bound that is missing, misspelt or makes no sense: nothing starts."""
    from unlearning.policy.gates import policy_with, retest_policy

    one = "retain_accuracy_drop.test"
    wrong: list[Mapping[str, Any]] = [
        {"retain_acuracy_drop.test": {"high": 0.1}},
        {one: {}},
        {one: {"hihg": 0.1}},
        {one: {"high": "0.1x"}},
        {one: {"high": math.nan}},
        {one: {"high": math.inf}},
        {one: {"low": 0.5, "high": 0.1}},
        {one: 0.1},
        {one: [0, 1]},
        {one: "off"},
        {one: True},
        {"": {"high": 1}},
        {"retest.seen_gap": {"hgih": 1}},
        {"retest.seengap": {"high": 1}},
    ]

    def make(overrides: Mapping[str, Any]) -> Trial:
        def trial(folder: Path) -> list[str]:
            check = retest_policy if next(iter(overrides)).startswith("retest") else policy_with
            return _refused(lambda: check(overrides), UsageError)

        return trial

    for overrides in wrong:
        yield make(overrides)


def _refused(call: Callable[[], object], kind: type[UnlearningError] = ModelError) -> list[str]:
    try:
        call()
    except kind as error:
        return [] if "\n" not in str(error) else [f"I9 an error was not one line: {error}"]
    return ["it was let through"]
