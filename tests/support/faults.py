"""A deletion batch on a tiny stand-in of a model, in a folder of its own, with a fault at any chosen operation.

Every operation of the store, the registry, the ledger and the files beneath passes `Faults`; a clean run counts them.
The model is the list of what it knows, so that whether it forgot is read off it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from unlearning.errors import LedgerError, StorageError, TrackingError, UnlearningError
from unlearning.ledger.certificate import PREFIX as CERTIFICATES
from unlearning.ledger.certificate import Measure
from unlearning.ledger.checking import check_certificate, ok
from unlearning.ledger.completion import keep, kept, propose, sweep
from unlearning.ledger.filing import file_requests
from unlearning.ledger.ladder import claim_next, turn_away
from unlearning.ledger.overview import list_requests, status
from unlearning.ledger.promotion import Version, advise, not_forgotten
from unlearning.ledger.pseudonyms import Pseudonyms
from unlearning.ledger.requests import request_from
from unlearning.ledger.segments import seal, verify_sealed
from unlearning.ledger.serving import base_of, heal, serve
from unlearning.ledger.settlement import prepare, settle_batch
from unlearning.ledger.signing import opened, public_key, public_pem, signer_of
from unlearning.ledger.store import Ledger, Writer
from unlearning.ledger.vault import Vault
from unlearning.ledger.verification import verify
from unlearning.storage import FolderStore

MODEL, MANIFEST, CANARY = "faces", "d" * 64, "CANARY"
IDS = [f"row-{CANARY}-{number}" for number in range(400)]
LEASE = 3600.0
START = datetime(2026, 11, 21, 12, tzinfo=UTC)
KILLED = -9


class Faults:
    """Counts operations and does something at one or more of them.

    Args:
        at: Number of the operation, from 1; 0 for none.
        kind: "kill before", "kill after", "error before", "error after", "error on" (from there on), "full", "flip",
            "short", "empty", or "call".
        call: For "call": what to do before the operation, outside the ledger's turns alone.
        only: Count operations whose name begins so, and no others.
        chance: Errors before or after at random operations, with this seed and share.
    """

    def __init__(
        self,
        at: int = 0,
        kind: str = "",
        *,
        call: Callable[[], None] | None = None,
        only: str = "",
        chance: tuple[int, float] | None = None,
    ) -> None:
        self.at, self.kind, self.call, self.only = at, kind, call, only
        self.random = random.Random(chance[0]) if chance else None
        self.share = chance[1] if chance else 0.0
        self.names: list[str] = []
        self.depth = 0

    def around(self, name: str, operation: Callable[[], Any]) -> Any:
        """The operation's result, unless this is where the fault is."""
        if not name.startswith(self.only):
            return operation()
        self.names.append(name)
        here = len(self.names) == self.at or (self.kind == "error on" and 0 < self.at <= len(self.names))
        kind = self.kind if here else ""
        if self.random is not None and self.random.random() < self.share:
            kind = self.random.choice(["error before", "error after"])
        if kind == "call" and self.depth == 0 and self.call is not None:
            self.call()
        if kind == "kill before":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind in ("error before", "error on"):
            raise _error(name)
        if kind == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        result = operation()
        if kind == "kill after":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "error after":
            raise _error(name)
        if kind in ("flip", "short", "empty") and isinstance(result, bytes) and result:
            middle = len(result) // 2
            flipped = result[:middle] + bytes([result[middle] ^ 1]) + result[middle + 1 :]
            return {"flip": flipped, "short": result[:middle], "empty": b""}[kind]
        return result


def _error(name: str) -> UnlearningError:
    kind = {"store": StorageError, "file": StorageError, "registry": TrackingError}.get(name.split()[0], LedgerError)
    return kind(f"{name} was refused by the harness: run again")


class FaultyStore(FolderStore):
    def __init__(self, folder: Path, faults: Faults) -> None:
        super().__init__(folder)
        self.faults = faults

    def get(self, key: str) -> bytes:
        return self.faults.around("store get", lambda: FolderStore.get(self, key))  # type: ignore[no-any-return]

    def put(self, key: str, data: bytes) -> None:
        self.faults.around("store put", lambda: FolderStore.put(self, key, data))

    def create(self, key: str, data: bytes) -> bool:
        return bool(self.faults.around("store create", lambda: FolderStore.create(self, key, data)))

    def exists(self, key: str) -> bool:
        return bool(self.faults.around("store exists", lambda: FolderStore.exists(self, key)))

    def keys(self, prefix: str = "") -> Iterator[str]:
        return iter(self.faults.around("store keys", lambda: list(FolderStore.keys(self, prefix))))

    def upload(self, key: str, path: Path) -> None:
        self.faults.around("store upload", lambda: FolderStore.upload(self, key, path))

    def download(self, key: str, path: Path) -> None:
        def fetch() -> bytes:
            FolderStore.download(self, key, path)
            return path.read_bytes()

        path.write_bytes(self.faults.around("store download", fetch))

    def remains(self, prefix: str) -> list[str]:
        return list(self.faults.around("store remains", lambda: FolderStore.remains(self, prefix)))

    def delete(self, prefix: str) -> int:
        return int(self.faults.around("store delete", lambda: FolderStore.delete(self, prefix)))

    def _write(self, path: Path, fill: Any, publish: Any) -> None:
        def published(unfinished: Path, to: Path) -> None:
            self.faults.around("file publish", lambda: publish(unfinished, to))

        def filled(file: Any) -> None:
            self.faults.around("file fill", lambda: fill(file))

        FolderStore._write(self, path, filled, published)


class FaultyLedger(Ledger):
    faults: Faults

    @contextmanager
    def writing(self, actor: str) -> Iterator[Writer]:
        self.faults.around("ledger begin", lambda: None)
        with Ledger.writing(self, actor) as writer:
            self.faults.depth += 1
            try:
                yield writer
                self.faults.around("ledger commit", lambda: None)
            finally:
                self.faults.depth -= 1
        self.faults.around("ledger ended", lambda: None)


class FileRegistry:
    """Versions and one alias in a folder; every move of the alias is noted with the ledger's number of then."""

    def __init__(self, folder: Path, faults: Faults, ledger: Ledger | None) -> None:
        self.folder, self.faults, self.ledger = folder, faults, ledger

    def register(self, digest: str) -> str:
        def make() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / digest).touch()

        self.faults.around("registry register", make)
        return digest[:8]

    def digest(self) -> str:
        path = self.folder / "alias"
        return str(self.faults.around("registry read", lambda: path.read_text() if path.exists() else ""))

    def move(self, digest: str) -> None:
        def replace() -> None:
            if not (self.folder / digest).exists():
                raise TrackingError(f"there is no version {digest[:12]}: register it first")
            unfinished = self.folder / f".alias-{os.getpid()}"
            unfinished.write_text(digest)
            seq = self.ledger.head()[0] if self.ledger else 0
            with (self.folder / "moves").open("a") as file:
                file.write(f"{seq} {digest}\n")
            unfinished.replace(self.folder / "alias")

        self.faults.around("registry move", replace)

    def copies(self, name: str, digest: str) -> list[str]:
        there = (self.folder / digest).exists()
        return list(self.faults.around("registry copies", lambda: [digest] if there else []))

    def remove(self, name: str, digest: str) -> int:
        there = (self.folder / digest).exists()
        self.faults.around("registry remove", lambda: (self.folder / digest).unlink(missing_ok=True))
        return int(there)

    def holders(self, digest: str) -> list[str]:
        return list(self.faults.around("registry holders", lambda: [MODEL] if (self.folder / digest).exists() else []))


@dataclass
class World:
    """One installation in a folder.

    Attributes:
        folder: Everything of it.
        late: Seconds that its clock is ahead.
        gate: What the gate measures instead of the truth, for the first `gate_times` batches: NaN, or a number.
        gate_times: See `gate`.
    """

    folder: Path
    late: float = 0.0
    gate: float | None = None
    gate_times: int = 0
    tampers: list[str] = field(default_factory=list)

    @contextmanager
    def open(self, faults: Faults | None = None) -> Iterator[tuple[FaultyLedger, FaultyStore, FileRegistry]]:
        faults = faults or Faults()
        store = FaultyStore(self.folder / "store", faults)
        url = f"sqlite:///{self.folder}/ledger.db"
        ledger = FaultyLedger(url, Pseudonyms(b"k" * 32), Vault(store), clock=self.clock)
        ledger.faults = faults
        try:
            yield ledger, store, FileRegistry(self.folder / "registry", faults, ledger)
        finally:
            ledger.close()

    def clock(self) -> datetime:
        return START + timedelta(seconds=self.late)

    def lay_out(self) -> None:
        """Tables, a first model that knows every row, and four requests, one of them about nothing."""
        with self.open() as (ledger, store, registry):
            ledger.upgrade()
            with tempfile.TemporaryDirectory() as name:
                made = write_model(Path(name), {known(one) for one in IDS}, "")
                upload(store, made, Path(name))
            registry.register(made)
            registry.move(made)
            (self.folder / "base").write_text(made)
            signer_of(self.folder / "signing.pem")
        self.ask(0, 1)
        self.ask(1, 1)
        self.ask(2, 3)
        self.file("nothing", [f"row-{CANARY}-unknown"])

    def ask(self, number: int, count: int = 1) -> str:
        return self.file(f"key-{number}", IDS[number : number + count])

    def file(self, key: str, ids: list[str], *, faults: Faults | None = None) -> str:
        with self.open(faults) as (ledger, _, _):
            request = request_from(
                {
                    "controller": "shop",
                    "key": key,
                    "kind": "sample",
                    "ids": ids,
                    "model": MODEL,
                    "submitted_at": "2026-11-20T12:00:00Z",
                }
            )
            (filed,) = file_requests(ledger, [request], actor="intake")
            return filed.ref

    def run(self, faults: Faults | None = None, owner: str = "run") -> str:
        """One scheduled run: "nothing", "empty", "refused" or "closed"."""
        with self.open(faults) as (ledger, store, registry):
            heal(ledger, MODEL, registry, actor=owner)
            sweep(ledger, store, actor=owner)
            found = claim_next(ledger, owner=owner, base=base_of(ledger, MODEL, registry), lease_seconds=LEASE)
            if found is None:
                seal(ledger, store)
                return "nothing"
            with tempfile.TemporaryDirectory(dir=self.folder) as name:
                return self._serve(ledger, store, registry, found, Path(name))

    def _serve(self, ledger: Ledger, store: FaultyStore, registry: FileRegistry, found: Any, desk: Path) -> str:
        held = found.claim
        wanted = prepare(ledger, held, set(IDS).__contains__, evidence=MANIFEST)
        if not wanted.ids:
            return "empty"
        if not kept(store, held, "unlearn", desk / "model"):
            before = read_model(store, held.base, desk / "before")
            gone = {known(one) for one in wanted.ids}
            write_model(desk / "model", set(before["knows"]) - gone, held.base)
            keep(store, held, "unlearn", desk / "model")
        model = json.loads((desk / "model" / "model.json").read_text())
        digest = hashlib.sha256((desk / "model" / "model.json").read_bytes()).hexdigest()
        left: float = len({known(one) for one in wanted.ids} & set(model["knows"]))
        rung = found.rung
        if self.gate is not None and rung < self.gate_times:
            left = self.gate
        if not left <= 0:  # NaN is no pass
            turn_away(ledger, held, outcome="fail", reasons=["it still knows"])
            return "refused"
        propose(store, held, digest)
        uploaded = upload(store, digest, desk / "model")
        for tamper in self.tampers:
            (self.folder / "store" / uploaded).write_text(tamper)
        read_model(store, digest, desk / "read-back")
        number = registry.register(digest)
        serve(ledger, held, Version(digest, str(model["parent"]), number), registry)
        facts = {
            "before": {"digest": held.base},
            "after": {"digest": digest, "version": number},
            "files": {"model.json": digest},
            "data": {"manifest": MANIFEST, "forgetRows": len(wanted.ids)},
            "method": {"name": "removal", "rung": rung},
            "measures": [Measure(metric="known", value=left, standard_error=0.0, low=None, high=0.0, outcome="pass")],
            "policy": "8" * 64,
        }
        signer = signer_of(self.folder / "signing.pem")
        settle_batch(ledger, store, signer, held, outcome="erased_exact", facts=facts, obligations={})
        sweep(ledger, store, actor=held.owner)
        seal(ledger, store)
        return "closed"

    def recover(self, most: int = 15) -> list[str]:
        """What the scheduled runs do that follow on a fault, until nothing is left."""
        answers: list[str] = []
        while len(answers) < most:
            self.late += LEASE + 1
            answers.append(self.run(owner=f"recovery-{len(answers)}"))
            if answers[-1] == "nothing":
                return answers
        raise UnlearningError(f"it does not end: {answers}")

    def served(self) -> set[str]:
        """What the model knows that the alias points at."""
        with self.open() as (_, store, registry), tempfile.TemporaryDirectory() as name:
            return set(read_model(store, registry.digest(), Path(name))["knows"])

    def violations(self, accepted: set[str], *, open_states: tuple[str, ...] = ()) -> list[str]:
        """What does not hold of I1 to I8, a sentence each; I9 is looked at where processes end.

        Args:
            accepted: Requests that were filed for sure.
            open_states: States besides "closed" in which a request may be left, such as "held".
        """
        with self.open() as (ledger, store, registry):
            wrong = [f"I6 {finding}" for finding in (*verify(ledger), *verify_sealed(ledger, store))]
            rows = {row["ref"]: row for row in list_requests(ledger)}
            if set(rows) != accepted or sum(status(ledger).counts.values()) != len(accepted):
                wrong.append(f"I1 {len(accepted)} requests were accepted and {len(rows)} are there")
            allowed = {"closed", *open_states}
            wrong += [
                f"I1 request {ref[:8]} is left {row['state']}"
                for ref, row in rows.items()
                if row["state"] not in allowed
            ]
            alias = registry.digest()
            if (advice := advise(ledger, MODEL, alias)).action != "nothing":
                wrong.append(f"I4 {advice.reason}")
            if missing := not_forgotten(ledger, MODEL, alias):
                wrong.append(f"I5 the served model has not forgotten {len(missing)} batches")
            events = list(ledger.events())
            wrong += self._twice(events, rows) + self._history(events, ledger, store)
            wrong += self._certificates(events, store) + self._leftovers(events, store)
        return wrong + [f"I7 ids are in {place}" for place in self.leaks()]

    def _twice(self, events: list[Any], rows: dict[str, Any]) -> list[str]:
        """I2: who is in two settled batches."""
        settled = [one.batch for one in events if one.kind == "settled"]
        wrong = [f"I2 batch {batch[:8]} was settled twice" for batch in set(settled) if settled.count(batch) > 1]
        closed = [one.batch for one in events if one.kind == "closed"]
        wrong += [f"I2 batch {batch[:8]} was closed twice" for batch in set(closed) if closed.count(batch) > 1]
        served = {row["batch"] for row in rows.values() if row["outcome"].startswith("erased")}
        return wrong + [f"I2 batch {batch[:8]} of a request was never settled" for batch in served - set(settled)]

    def _history(self, events: list[Any], ledger: Ledger, store: FaultyStore) -> list[str]:
        """I5 at every moment: each model that the alias was moved to had forgotten what was settled by then."""
        wrong = []
        settled = [one for one in events if one.kind == "settled"]
        ids = self._gone(ledger)
        knows: dict[str, set[str]] = {}
        for line in (self.folder / "registry" / "moves").read_text().splitlines():
            seq, digest = line.split()
            if digest not in knows:
                with tempfile.TemporaryDirectory() as name:
                    knows[digest] = set(read_model(store, digest, Path(name))["knows"])
            for one in settled:
                if one.seq <= int(seq) and knows[digest] & ids.get(one.batch, set()):
                    wrong.append(f"I5 {digest[:8]} was served at event {seq} and knew batch {one.batch[:8]}")
        return wrong

    def _gone(self, ledger: Ledger) -> dict[str, set[str]]:
        """What each batch asked to be forgotten."""
        batch_of = {row["ref"]: row["batch"] for row in list_requests(ledger)}
        found: dict[str, set[str]] = {}
        for path in (self.folder / "store" / "requests").rglob("*.jsonl"):
            for line in map(json.loads, path.read_text().splitlines()):
                if batch := batch_of.get(line["ref"]):
                    found.setdefault(batch, set()).update(known(value) for value in line["ids"])
        return found

    def _certificates(self, events: list[Any], store: FaultyStore) -> list[str]:
        """I3 and I6: every settled batch has its certificate; they chain, and the last fits the served model."""
        wrong, before = [], b""
        key = public_key(public_pem(signer_of(self.folder / "signing.pem")))
        for one in (one for one in events if one.kind == "settled"):
            data = store.get(f"{CERTIFICATES}/{one.batch}.dsse.json")
            digest = opened(data)[1]["predicate"]["model"]["after"]["digest"]
            with tempfile.TemporaryDirectory() as name:
                read_model(store, digest, Path(name))
                lines = check_certificate(data, key, model=Path(name), before=before or None)
            if not ok(lines) or hashlib.sha256(data).hexdigest() != one.content["certificate"]:
                wrong.append(f"I3 the certificate of {one.batch[:8]} does not hold")
            before = data
        return wrong

    def _leftovers(self, events: list[Any], store: FaultyStore) -> list[str]:
        """I8: no intermediate and no model that was never promoted."""
        wrong = [f"I8 {key} is left" for key in store.keys("work")]
        promoted = {one.content["digest"] for one in events if one.kind == "promoting"}
        promoted.add((self.folder / "base").read_text())
        models = {key.split("/")[1] for key in store.keys("models")}
        return wrong + [f"I8 the model {digest[:8]} was never promoted" for digest in models - promoted]

    def leaks(self) -> list[str]:
        """I7: files outside of the vault that hold an id."""
        vault = self.folder / "store" / "requests"
        return [
            path.name
            for path in self.folder.rglob("*")
            if path.is_file() and not path.is_relative_to(vault) and CANARY.encode() in path.read_bytes()
        ]


def known(value: str) -> str:
    """What the stand-in knows of a row."""
    return hashlib.sha256(value.encode()).hexdigest()[:16]


def write_model(folder: Path, knows: set[str], parent: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    data = json.dumps({"knows": sorted(knows), "parent": parent}).encode()
    (folder / "model.json").write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def upload(store: FaultyStore, digest: str, folder: Path) -> str:
    key = f"models/{digest}/model.json"
    if not store.exists(key):
        store.upload(key, folder / "model.json")
    return key


def read_model(store: FaultyStore, digest: str, into: Path) -> dict[str, Any]:
    into.mkdir(parents=True, exist_ok=True)
    store.download(f"models/{digest}/model.json", into / "model.json")
    data = (into / "model.json").read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise StorageError(f"models/{digest[:12]} is not the model of that digest: nothing is promoted")
    content: dict[str, Any] = json.loads(data)
    return content


def in_fork(call: Callable[[], object], log: Path) -> int:
    """How a forked process ends that makes the call: 0, 1 after an error of ours in one line, else its signal."""
    pid = os.fork()
    if not pid:
        code = 0
        try:
            with log.open("a") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
                try:
                    call()
                except UnlearningError as error:
                    file.write(f"error: {error}\n")
                    code = 1
                except BaseException as error:  # a traceback would be a violation, so it is told by its code
                    file.write(f"{type(error).__name__}: {error}\n")
                    code = 70
        finally:
            os._exit(code)
    _, ended = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(ended)
