"""How long a million pending requests take: filing them, then status, plan, claim and settling in fresh processes.

Usage: python benchmarks/ledger.py [REQUESTS [URL]]; one JSON line for each measurement.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from unlearning.ledger.claims import claim, plan
from unlearning.ledger.filing import file_requests
from unlearning.ledger.overview import status
from unlearning.ledger.promotion import Version, begin, confirm, settle
from unlearning.ledger.pseudonyms import Pseudonyms
from unlearning.ledger.requests import DeletionRequest, request_from
from unlearning.ledger.store import Ledger
from unlearning.ledger.vault import Vault
from unlearning.ledger.verification import verify
from unlearning.storage import FolderStore

LIMITS = {"plan": 120.0, "status": 5.0, "nothing to claim": 5.0}
MOST_MIB = 1024


def opened(url: str, folder: Path) -> Ledger:
    return Ledger(url, Pseudonyms(b"k" * 32), Vault(FolderStore(folder / "store")))


def requests(count: int) -> Iterator[DeletionRequest]:
    start = datetime.now(UTC) - timedelta(days=20)
    for number in range(count):
        yield request_from(
            {
                "controller": "shop",
                "key": f"request-{number}",
                "kind": "subject",
                "ids": [f"user-{number}"],
                "model": "faces",
                "submitted_at": start + timedelta(seconds=number),
            }
        )


def fill(ledger: Ledger, count: int) -> str:
    return str(sum(filed.status == "accepted" for filed in file_requests(ledger, requests(count), actor="benchmark")))


def make_plan(ledger: Ledger, _: int) -> str:
    found = plan(ledger)
    return f"{len(found.refs) if found else 0} requests, batch {found.batch[:12] if found else 'none'}"


def show_status(ledger: Ledger, _: int) -> str:
    return f"{status(ledger).counts['pending']} pending"


def claim_and_settle(ledger: Ledger, _: int) -> str:
    held = claim(ledger, owner="benchmark")
    if held is None:
        raise SystemExit("error: there was nothing to claim")
    begin(ledger, held, Version("a" * 64, "", "1"))
    confirm(ledger, held, "a" * 64)
    settle(ledger, held, outcome="erased_exact", certificate="c" * 64)
    return f"{status(ledger).counts['served']} served"


def nothing_to_claim(ledger: Ledger, _: int) -> str:
    return "none" if claim(ledger, owner="benchmark") is None else "something"


def check(ledger: Ledger, _: int) -> str:
    return f"{len(verify(ledger))} findings"


def measure(name: str, step: Callable[[Ledger, int], str], url: str, folder: Path, count: int) -> None:
    """One step in a process of its own, so that its memory is its own too."""

    def run(answer: Any) -> None:
        ledger = opened(url, folder)
        start = time.perf_counter()
        result = step(ledger, count)
        seconds = time.perf_counter() - start
        answer.send((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, result))

    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)
    process = fork.Process(target=run, args=(there,))
    process.start()
    there.close()
    seconds, mib, result = here.recv()
    process.join()
    line = {"step": name, "requests": count, "seconds": round(seconds, 2), "resident_mib": round(mib), "result": result}
    if name in LIMITS:
        line |= {"limit_seconds": LIMITS[name], "limit_mib": MOST_MIB}
        line["met"] = seconds < LIMITS[name] and mib < MOST_MIB
    print(json.dumps({**line, "database": url.partition(":")[0]}), flush=True)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = Path(name)
        url = sys.argv[2] if len(sys.argv) > 2 else f"sqlite:///{folder}/ledger.db"
        ledger = opened(url, folder)
        ledger.upgrade()
        ledger.close()
        for step, function in (
            ("file", fill),
            ("status", show_status),
            ("plan", make_plan),
            ("claim to settled", claim_and_settle),
            ("nothing to claim", nothing_to_claim),
            ("verify", check),
        ):
            measure(step, function, url, folder, count)


if __name__ == "__main__":
    main()
