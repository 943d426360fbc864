"""Processes that claim batches, do the work of nobody, and die or oversleep while they do it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import time
from pathlib import Path

from unlearning.errors import UnlearningError
from unlearning.ledger.claims import Claim, ClaimLostError, batch_members, claim, renew
from unlearning.ledger.overview import status
from unlearning.ledger.promotion import Version, advise, begin, confirm, settle, standing
from unlearning.ledger.pseudonyms import Pseudonyms
from unlearning.ledger.store import Ledger
from unlearning.ledger.vault import Vault
from unlearning.storage import FolderStore

LEASE = 0.6


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
    while time.time() < until:
        held = claim(ledger, owner=f"worker-{number}-{os.getpid()}", limit=2, lease_seconds=LEASE)
        if held is None:
            counts = status(ledger).counts
            if counts["pending"] + counts["claimed"] + counts["promoting"] == 0:
                break
            time.sleep(0.02 + 0.05 * chance.random())
            continue
        note(folder, "claimed", held)
        try:
            serve(ledger, folder, held, chance)
        except ClaimLostError:
            note(folder, "lost", held)
    ledger.close()


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
            time.sleep(2.5 * LEASE)

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
