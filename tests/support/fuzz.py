"""Rows of requests spoilt in every way, taken in by the real intake: none may crash it, or have it write elsewhere.

Usage: PYTHONPATH=tests python -m support.fuzz [--rows 1000000] [--seed N] [--out FILE]
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from support.hostile import TELLTALE, payloads

from unlearning.errors import DataError
from unlearning.ledger.intake import Report, import_file
from unlearning.ledger.pseudonyms import Pseudonyms
from unlearning.ledger.store import Ledger
from unlearning.ledger.vault import Vault
from unlearning.ledger.verification import verify
from unlearning.storage import FolderStore

HOSTILE = [text for _, text in payloads()]
FIELDS = ("controller", "key", "kind", "ids", "model", "dataset", "regulation", "submitted_at", "priority")
ROWS = 20_000
GOOD_SHARE = 0.04
_JSON = (None, True, -1, 1.5, 10**30, "", [], {}, [[]], {"a": [1]}, "9" * 400, "2026-02-30T00:00:00Z", "\ud800")
_PIECES = (
    b"\x00",
    b"\xff",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b'"',
    b"\\",
    b"{",
    b"[",
    b"\xef\xbb\xbf",
    b"\r",
    b",",
    b"NaN",
)


def good(draw: random.Random, number: int) -> dict[str, Any]:
    return {
        "controller": "shop",
        "key": f"k{number}",
        "kind": draw.choice(("subject", "sample", "class")),
        "ids": [f"user-{draw.randrange(10**6)}" for _ in range(draw.randrange(1, 3))],
        "model": "faces",
        "submitted_at": "2026-11-20T12:00:00Z",
    }


def spoilt(draw: random.Random, record: dict[str, Any], *, text: bool) -> dict[str, Any]:
    """The record with one or two fields changed, left out or added; as text where a format has no other."""
    for _ in range(draw.randrange(1, 3)):
        name = draw.choice(FIELDS)
        value: Any = draw.choice(HOSTILE) if text or draw.random() < 0.6 else draw.choice(_JSON)
        if name == "ids" and isinstance(before := record.get("ids"), list) and draw.random() < 0.8:
            value = [*before, value]
        if draw.random() < 0.1:
            record.pop(name, None)
        elif not text and draw.random() < 0.1:
            record[draw.choice(HOSTILE)] = value
        else:
            record[name] = value
    return record


def torn(draw: random.Random, line: bytes) -> bytes:
    """A line with bytes changed, cut, doubled or put in; never one line more, and never a blank one."""
    for _ in range(draw.randrange(1, 4)):
        place = draw.randrange(len(line) + 1)
        kind = draw.randrange(5)
        if kind == 0:
            line = line[:place] + draw.choice(_PIECES) + line[place:]
        elif kind == 1:
            line = line[:place]
        elif kind == 2:
            line = line[:place] + bytes([draw.randrange(256)]) + line[place + 1 :]
        elif kind == 3:
            line = line + line[place:]
        else:
            line = line[:place] + draw.choice(HOSTILE).encode("utf-8", "surrogatepass") + line[place:]
    return line.replace(b"\n", b"?") if line.strip(b" \t\r\n\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\xc2") else b"?"


def json_lines(draw: random.Random, start: int, count: int) -> bytes:
    lines = []
    for number in range(start, start + count):
        record = good(draw, number)
        if draw.random() > GOOD_SHARE and draw.random() < 0.6:
            record = spoilt(draw, record, text=False)
            line = json.dumps(record, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
            if draw.random() < 0.1:
                line = b'{"key": "a", ' + line[1:]
            lines.append(line.replace(b"\n", b" "))
        else:
            line = json.dumps(record).encode()
            lines.append(line if draw.random() < 2 * GOOD_SHARE else torn(draw, line))
    return b"\n".join(lines) + b"\n"


def table_of_text(draw: random.Random, start: int, count: int) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, FIELDS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    lines = [out.getvalue().encode().strip()]
    for number in range(start, start + count):
        record = good(draw, number)
        plain = draw.random() < GOOD_SHARE
        if not plain and draw.random() < 0.6:
            record = spoilt(draw, record, text=True)
        ids = record.get("ids")
        record["ids"] = ";".join(map(str, ids)) if isinstance(ids, list) else ids
        out.seek(0)
        out.truncate()
        writer.writerow(record)
        line = out.getvalue().encode("utf-8", "surrogatepass").strip(b"\n").replace(b"\n", b" ")
        lines.append(line if plain or draw.random() < 0.5 else torn(draw, line))
    return b"\n".join(lines) + b"\n"


def parquet(draw: random.Random, start: int, count: int) -> bytes:
    records = []
    for number in range(start, start + count):
        record = good(draw, number)
        if draw.random() > GOOD_SHARE:
            record = spoilt(draw, record, text=True)
        ids = record.get("ids")
        record["ids"] = ids if isinstance(ids, list) else [ids]
        records.append({name: record.get(name) for name in FIELDS})
    columns = {name: pa.array([one[name] for one in records], pa.string()) for name in FIELDS if name != "ids"}
    columns["ids"] = pa.array([one["ids"] for one in records], pa.list_(pa.string()))
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    data = bytearray(out.getvalue())
    if draw.random() < 0.2:  # what is inside is no longer what its tail says
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


MAKERS: dict[str, Callable[[random.Random, int, int], bytes]] = {
    "jsonl": json_lines,
    "csv": table_of_text,
    "parquet": parquet,
}
_WATCHED: list[list[str]] = []
_HOOKED: list[bool] = []


@contextmanager
def written() -> Iterator[list[str]]:
    """The absolute paths that this process opens to write, makes, renames or links meanwhile."""
    if not _HOOKED:
        sys.addaudithook(_noted)
        _HOOKED.append(True)
    found: list[str] = []
    _WATCHED.append(found)
    try:
        yield found
    finally:
        _WATCHED.remove(found)


def _noted(event: str, arguments: tuple[Any, ...]) -> None:
    if not _WATCHED:
        return
    if event == "open":
        path, _, flags = arguments
        wanted = [path] if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else []
    elif event in ("os.rename", "os.link", "os.symlink"):
        wanted = list(arguments[:2])
    elif event == "os.mkdir":
        wanted = [arguments[0]]
    else:
        return
    for path in wanted:
        if isinstance(path, str | bytes | os.PathLike):
            for found in _WATCHED:
                found.append(str(Path(os.fsdecode(path)).absolute()))


def outside(paths: list[str], folder: Path) -> set[str]:
    """Those that the intake has no business with: all but the ledger, the vault and the report of rejects."""
    allowed = (f"{folder}/store/requests", f"{folder}/ledger.db", f"{folder}/rejects.jsonl", "/dev/null")
    return {path for path in paths if not path.startswith(allowed) and path != f"{folder}/store"}


def wrong_with(report: Report, rejects: Path, count: int) -> list[str]:
    """What a report of a file of so many rows must not be."""
    wrong = []
    if report.accepted + report.repeated + report.rejected != count:
        wrong.append(f"{count} rows gave {report.accepted} + {report.repeated} + {report.rejected}")
    for text in rejects.read_text().splitlines():
        line = json.loads(text)
        reason = line["reason"]
        if not (1 <= line["line"] <= count + 1 and reason and len(reason) < 600):
            wrong.append(f"a rejection without line or reason: {text[:200]}")
        if TELLTALE in reason or not (reason.isascii() and reason.isprintable()):
            wrong.append(f"a reason repeats what it rejects: {text[:200]}")
    return wrong


def fuzz(folder: Path, rows: int, seed: int, each: int = ROWS) -> tuple[Counter[str], list[str]]:
    """Figures, and what was wrong.

    Args:
        folder: An empty one.
        rows: How many rows in all.
        seed: Of everything.
        each: Rows in one file.
    """
    draw, figures, wrong = random.Random(seed), Counter[str](), list[str]()
    ledger = Ledger(f"sqlite:///{folder}/ledger.db", Pseudonyms(b"k" * 32), Vault(FolderStore(folder / "store")))
    ledger.upgrade()
    reasons = Counter[str]()
    for number, start in enumerate(range(0, rows, each)):
        count, kind = min(each, rows - start), list(MAKERS)[number % len(MAKERS)]
        path = folder / f"drop.{kind}"
        path.write_bytes(MAKERS[kind](draw, start, count))
        figures["rows"] += count
        with written() as paths:
            try:
                report = import_file(ledger, path, actor="fuzz", rejects=folder / "rejects.jsonl")
            except DataError as error:
                figures["files refused whole"] += 1
                if kind != "parquet" or "\n" in str(error) or TELLTALE in str(error):
                    wrong.append(f"a whole file was refused: {str(error)[:200]}")
                report = None
        if strange := outside(paths, folder):
            wrong.append(f"written outside: {sorted(strange)[:3]}")
        if report is not None:
            figures["accepted"] += report.accepted
            figures["rejected"] += report.rejected
            wrong += wrong_with(report, folder / "rejects.jsonl", count) if kind != "parquet" or report.rejected else []
            reasons.update(
                json.loads(line)["reason"][:40] for line in (folder / "rejects.jsonl").read_text().splitlines()
            )
    figures["different reasons"] = len(reasons)
    wrong += verify(ledger)
    ledger.close()
    return figures, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    memory, start = Path("/dev/shm"), time.monotonic()
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="unlearn-fuzz-") as name:
        figures, wrong = fuzz(Path(name), chosen.rows, chosen.seed)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    line = {"step": "fuzz", **figures, "wrong": len(wrong), "found": wrong[:3], "resident_mib": resident}
    line |= {"seconds": round(time.monotonic() - start, 1), "seed": chosen.seed}
    print(json.dumps(line))
    if chosen.out is not None:
        with chosen.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
