"""Processes that claim batches, do the work of nobody, and die or oversleep while they do it.

Usage: PYTHONPATH=tests python -m support.claimers [--rounds N] [--database sqlite|postgresql] [--out FILE]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from support.postgres import database, private_server, run

from unlearning.errors import LedgerError, UnlearningError
from unlearning.ledger import tables
from unlearning.ledger.claims import Claim, ClaimLostError, batch_members, claim, renew
from unlearning.ledger.filing import file_requests
from unlearning.ledger.overview import list_requests
from unlearning.ledger.promotion import Version, advise, begin, confirm, not_forgotten, settle, standing
from unlearning.ledger.pseudonyms import Pseudonyms
from unlearning.ledger.requests import request_from
from unlearning.ledger.store import Ledger
from unlearning.ledger.vault import Vault
from unlearning.ledger.verification import verify
from unlearning.storage import FolderStore

LEASE = 2.0
CLAIMERS = 8
MODELS = ("model-0", "model-1", "model-2")


def alias(folder: Path, model: str) -> str:
    """What the stand-in of a registry's alias holds."""
    path = folder / f"alias-{model}"
    return path.read_text() if path.exists() else ""


def move(folder: Path, model: str, digest: str) -> None:
    unfinished = folder / f".{model}.{os.getpid()}"
    unfinished.write_text(digest)
    unfinished.replace(folder / f"alias-{model}")


def work(url: str, folder: Path, number: int, until: float) -> None:
    """Claims and serves until nothing is left; a quarter of the claims end by SIGKILL, others outlive their lease."""
    ledger = Ledger(url, Pseudonyms(b"k" * 32), Vault(FolderStore(folder / "store")))
    chance = random.Random(f"{number}-{os.getpid()}")
    time.sleep(0.2 * chance.random())
    while time.time() < until:
        held = claim(ledger, owner=f"worker-{number}-{os.getpid()}", limit=2, lease_seconds=LEASE)
        if held is None:
            if not is_waiting(ledger):
                break
            time.sleep(0.2 + 0.4 * chance.random())
            continue
        note(folder, "claimed", held)
        try:
            serve(ledger, folder, held, chance)
        except ClaimLostError:
            note(folder, "lost", held)
        except LedgerError:  # the database had no turn for it in a minute: another try takes the batch over
            note(folder, "gave up", held)
    ledger.close()


def is_waiting(ledger: Ledger) -> bool:
    table = tables.requests
    query = sa.select(table.c.ref).where(table.c.state.in_(("pending", "claimed", "promoting"))).limit(1)
    with ledger.reading() as connection:
        return connection.execute(query).first() is not None


def serve(ledger: Ledger, folder: Path, held: Claim, chance: random.Random) -> None:
    """One batch from claim to settled, with an accident at a random place of it."""
    accident = chance.choices(["none", "die", "sleep"], [60, 25, 15])[0]
    place = chance.randrange(4)

    def accident_at(here: int) -> None:
        if here == place and accident == "die":
            note(folder, "died", held)
            os.kill(os.getpid(), signal.SIGKILL)
        if here == place and accident == "sleep":
            note(folder, "slept", held)
            time.sleep(1.5 * LEASE)

    accident_at(0)
    if held.state == "claimed":
        if not batch_members(ledger, held):
            raise UnlearningError("a batch without requests")
        parent = standing(ledger, held.model).expected
        digest = hashlib.sha256(f"{held.batch}{held.token}".encode()).hexdigest()
        begin(ledger, held, Version(digest, parent, "1"))
    accident_at(1)
    advice = advise(ledger, held.model, alias(folder, held.model))
    if advice.action == "move_alias":
        renew(ledger, held, lease_seconds=LEASE)
        move(folder, held.model, advice.digest)
        advice = advise(ledger, held.model, alias(folder, held.model))
    accident_at(2)
    if advice.action == "confirm":
        confirm(ledger, held, alias(folder, held.model))
    accident_at(3)
    settle(ledger, held, outcome="erased_approx_audited", certificate="c" * 64)
    note(folder, "settled", held)


def note(folder: Path, what: str, held: Claim) -> None:
    with (folder / f"notes-{os.getpid()}").open("a") as file:
        file.write(json.dumps([what, held.batch, held.token]) + "\n")
        file.flush()


def notes(folder: Path) -> list[tuple[str, str, int]]:
    """What all the processes wrote down."""
    return [
        tuple(json.loads(line)) for path in sorted(folder.glob("notes-*")) for line in path.read_text().splitlines()
    ]


def race(url: str, folder: Path, *, requests: int, seconds: float) -> Counter[str]:
    """What happened in one round of claimers that die and oversleep, until everything is served.

    Args:
        url: A database with tables and no open request.
        folder: Of the round; made.
        requests: How many are filed.
        seconds: After which a claimer gives up.

    Raises:
        AssertionError: When a request was lost, served twice, or the ledger does not hold.
    """
    folder.mkdir()
    ledger = opened(url, folder)
    fields = {"controller": "shop", "kind": "subject", "submitted_at": "2026-11-20T12:00:00Z"}
    wanted = (
        request_from({**fields, "key": f"{folder.name}-{n}", "ids": [f"user-{n}"], "model": MODELS[n % 3]})
        for n in range(requests)
    )
    refs = {one.ref for one in file_requests(ledger, wanted, actor="intake")}
    ledger.close()
    fork, until = multiprocessing.get_context("fork"), time.time() + seconds
    running = [fork.Process(target=work, args=(url, folder, number, until)) for number in range(CLAIMERS)]
    for process in running:
        process.start()
    started = CLAIMERS
    while any(process.is_alive() for process in running):
        for place, process in enumerate(running):
            if process.exitcode is not None and process.exitcode < 0:  # killed: another pod takes its place
                running[place] = fork.Process(target=work, args=(url, folder, started, until))
                running[place].start()
                started += 1
        time.sleep(0.02)
    assert [process.exitcode for process in running] == [0] * CLAIMERS
    assert {row["state"] for row in list_requests(ledger) if row["ref"] in refs} == {"served"}
    events = list(ledger.events())
    settled = Counter(one.batch for one in events if one.kind == "settled")
    roots = {one.batch: one.members for one in events if one.kind == "claimed"}
    members = Counter(ref for batch in settled for ref in ledger.members(roots[batch]) if ref in refs)
    assert set(settled.values()) == {1}
    assert members == dict.fromkeys(refs, 1), "every request was served exactly once"
    told = Counter(what for what, _, _ in notes(folder))
    assert Counter(batch for what, batch, _ in notes(folder) if what == "settled").most_common(1)[0][1] == 1
    for model in MODELS:
        served = alias(folder, model)
        assert not_forgotten(ledger, model, served) == []
        assert advise(ledger, model, served).action == "nothing"
    assert verify(ledger) == []
    ledger.close()
    return told


def opened(url: str, folder: Path) -> Ledger:
    return Ledger(url, Pseudonyms(b"k" * 32), Vault(FolderStore(folder / "store")))


@contextmanager
def databases(kind: str, folder: Path) -> Iterator[Iterator[str]]:
    """Addresses of empty databases with tables, one for each round; each is gone when the next is asked for."""
    if kind == "sqlite":

        def files() -> Iterator[str]:
            lay_out(f"sqlite:///{folder}/template.db", folder)
            while True:
                shutil.copy(folder / "template.db", folder / "ledger.db")
                yield f"sqlite:///{folder}/ledger.db"
                for left in folder.glob("ledger.db*"):
                    left.unlink()

        yield files()
        return
    with private_server() as server:

        def copies() -> Iterator[str]:
            run(server, "CREATE DATABASE template")
            lay_out(database(server, "template"), folder)
            while True:
                run(server, "CREATE DATABASE round TEMPLATE template")
                yield database(server, "round")
                run(server, "DROP DATABASE round WITH (FORCE)")

        yield copies()


def lay_out(url: str, folder: Path) -> None:
    ledger = opened(url, folder)
    ledger.upgrade()
    ledger.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    told, start, done = Counter[str](), time.monotonic(), 0
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="unlearn-claimers-") as name:
        top = Path(name)
        with databases(chosen.database, top) as urls:
            for number, url in zip(range(chosen.rounds), urls, strict=False):
                told += race(url, top / f"round-{number}", requests=chosen.requests, seconds=600)
                shutil.rmtree(top / f"round-{number}")
                done += 1
                if done % 10 == 0:
                    print(f"{done} rounds, {time.monotonic() - start:.0f} s, {dict(told)}", flush=True)
    line = {
        "step": "8 claimers, a quarter killed after claiming, some outlive their lease",
        "rounds": done,
        "requests_each": chosen.requests,
        "result": "every request was served exactly once",
        "happened": dict(told),
        "seconds": round(time.monotonic() - start, 1),
        "database": chosen.database,
    }
    print(json.dumps(line))
    if chosen.out is not None:
        with chosen.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
