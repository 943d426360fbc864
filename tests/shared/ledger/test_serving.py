import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.claimers import alias as alias_of
from support.claimers import move

from unlearning.errors import LedgerError, UsageError
from unlearning.ledger.claims import Claim, ClaimLostError, claim
from unlearning.ledger.filing import file_requests
from unlearning.ledger.overview import find
from unlearning.ledger.promotion import Version, advise, confirm, not_forgotten, record_rollback, settle
from unlearning.ledger.pseudonyms import Pseudonyms
from unlearning.ledger.requests import DeletionRequest
from unlearning.ledger.serving import base_of, heal, roll_back, serve
from unlearning.ledger.store import Ledger
from unlearning.ledger.vault import Vault
from unlearning.ledger.verification import verify
from unlearning.storage import FolderStore

Make = Callable[..., DeletionRequest]
BASE, ONE, TWO, FOREIGN = (f"{number:064x}" for number in range(1, 5))
DONE = {"outcome": "erased_exact", "certificate": "c" * 64}


@dataclass
class Pointer:
    """An alias in memory; `break_at` raises at its n-th call."""

    at: str = BASE
    moves: list[str] = field(default_factory=list)
    calls: int = 0
    break_at: int = 0
    deaf: bool = False

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self.break_at:
            raise LedgerError("the registry is away")

    def digest(self) -> str:
        self._count()
        return self.at

    def move(self, digest: str) -> None:
        self._count()
        self.moves.append(digest)
        if not self.deaf:
            self.at = digest
        self._count()


def claimed(ledger: Ledger, *requests: DeletionRequest, owner: str = "a") -> Claim:
    list(file_requests(ledger, requests, actor="intake"))
    held = claim(ledger, owner=owner)
    assert held is not None
    return held


def alarms(ledger: Ledger) -> list[dict[str, str]]:
    return [one.content for one in ledger.events() if one.kind == "alarmed"]


def test_serving_moves_the_alias_once_and_repeating_it_changes_nothing(ledger: Ledger, request_of: Make) -> None:
    held, alias = claimed(ledger, request_of(1)), Pointer()
    assert heal(ledger, "faces", alias, actor="run").action == "nothing"
    for _ in range(3):
        serve(ledger, held, Version(ONE, BASE, "2"), alias)
    settle(ledger, held, **DONE)
    count = ledger.head()[0]
    assert heal(ledger, "faces", alias, actor="run").action == "nothing"
    assert (alias.at, alias.moves, ledger.head()[0]) == (ONE, [ONE], count)
    assert alarms(ledger) == []
    assert verify(ledger) == []


def test_an_interruption_at_any_call_of_the_registry_is_mended_by_the_next_try(
    ledger: Ledger, request_of: Make
) -> None:
    parent = BASE
    for place in range(1, 9):
        held, alias = claimed(ledger, request_of(place)), Pointer(parent, break_at=place)
        wanted = f"{place + 100:064x}"
        while True:
            try:
                heal(ledger, "faces", alias, actor="run")
                serve(ledger, held, Version(wanted, parent, "2"), alias)
                break
            except LedgerError as error:
                if str(error) != "the registry is away":
                    raise
        settle(ledger, held, **DONE)
        assert alias.at == wanted
        assert alias.moves in ([wanted], [wanted, wanted])
        assert not_forgotten(ledger, "faces", wanted) == []
        parent = wanted
    assert alarms(ledger) == []
    assert verify(ledger) == []


def test_an_alias_that_does_not_stay_is_no_promotion(ledger: Ledger, request_of: Make) -> None:
    held, alias = claimed(ledger, request_of(1)), Pointer(deaf=True)
    with pytest.raises(LedgerError, match="was moved to 000000000000 and points at 000000000000"):
        serve(ledger, held, Version(ONE, BASE, "2"), alias)
    assert advise(ledger, "faces", alias.at).action == "move_alias"
    with pytest.raises(UsageError, match="not confirmed"):
        settle(ledger, held, **DONE)


def test_a_foreign_model_is_put_back_by_the_next_run_with_an_alarm(ledger: Ledger, request_of: Make) -> None:
    held, alias = claimed(ledger, request_of(1)), Pointer()
    serve(ledger, held, Version(ONE, BASE, "2"), alias)
    settle(ledger, held, **DONE)
    for stranger in (BASE, FOREIGN, ""):
        alias.at = stranger
        found = heal(ledger, "faces", alias, actor="run")
        assert (found.action, alias.at) == ("put_back", ONE)
    assert [alarm["found"] for alarm in alarms(ledger)] == [BASE, FOREIGN, ""]
    assert {alarm["expected"] for alarm in alarms(ledger)} == {ONE}
    assert verify(ledger) == []


def test_a_foreign_model_during_a_promotion_alarms_and_the_promotion_wins(ledger: Ledger, request_of: Make) -> None:
    held, alias = claimed(ledger, request_of(1)), Pointer(break_at=4)
    with pytest.raises(LedgerError, match="away"):
        serve(ledger, held, Version(ONE, BASE, "2"), alias)
    alias.at = FOREIGN
    assert serve(ledger, held, Version(ONE, BASE, "2"), alias).action == "alarm"
    settle(ledger, held, **DONE)
    assert (alias.at, [alarm["found"] for alarm in alarms(ledger)]) == (ONE, [FOREIGN])


def test_a_rollback_needs_a_version_that_forgot_everything_and_no_batch_under_way(
    ledger: Ledger, request_of: Make
) -> None:
    held, alias = claimed(ledger, request_of(1)), Pointer()
    serve(ledger, held, Version(ONE, BASE, "2"), alias)
    with pytest.raises(UsageError, match="promoted and not settled"):
        roll_back(ledger, "faces", ONE, alias, actor="operator")
    settle(ledger, held, **DONE)
    held = claimed(ledger, request_of(2))
    serve(ledger, held, Version(TWO, ONE, "3", covers=(held.batch,)), alias)
    settle(ledger, held, **DONE)
    for older in (BASE, ONE, FOREIGN):
        with pytest.raises(UsageError, match="still knows"):
            roll_back(ledger, "faces", older, alias, actor="operator")
    assert alias.at == TWO
    alias.at = ONE
    roll_back(ledger, "faces", TWO, alias, actor="operator")
    assert alias.at == TWO
    assert verify(ledger) == []


def test_a_batch_made_from_an_older_model_is_dissolved_and_the_next_begins_with_the_ledgers(
    ledger: Ledger, request_of: Make
) -> None:
    held, alias = claimed(ledger, request_of(1)), Pointer()
    assert base_of(ledger, "faces", alias) == BASE
    serve(ledger, held, Version(ONE, BASE, "2"), alias)
    settle(ledger, held, **DONE)
    alias.at = BASE
    assert base_of(ledger, "faces", alias) == ONE
    held = claimed(ledger, request_of(2))
    with pytest.raises(UsageError, match="still knows"):
        serve(ledger, held, Version(TWO, BASE, "3"), alias)
    again = claim(ledger, owner="b")
    assert again is not None
    serve(ledger, again, Version(TWO, ONE, "3"), alias)
    assert alias.at == TWO


def test_who_lost_the_claim_never_touches_the_alias(ledger: Ledger, request_of: Make, clock: Any) -> None:
    held, alias = claimed(ledger, request_of(1)), Pointer()
    clock.forward(hours=2)
    other = claim(ledger, owner="b")
    assert other is not None
    with pytest.raises(ClaimLostError):
        serve(ledger, held, Version(ONE, BASE, "2"), alias)
    assert alias.moves == []
    serve(ledger, other, Version(TWO, BASE, "2"), alias)
    with pytest.raises(ClaimLostError):
        serve(ledger, held, Version(ONE, BASE, "2"), alias)
    assert alias.moves == [TWO]


class FileAlias:
    """An alias in a file, whose move tells that it began and then takes its time."""

    def __init__(self, folder: Path, slow: bool) -> None:
        self.folder, self.slow = folder, slow

    def digest(self) -> str:
        return alias_of(self.folder, "faces")

    def move(self, digest: str) -> None:
        if self.slow:
            (self.folder / "moving").touch()
            time.sleep(0.3)
        move(self.folder, "faces", digest)


def sleeper(url: str, folder: Path, held: Claim) -> None:
    ledger = Ledger(url, Pseudonyms(b"k" * 32), Vault(FolderStore(folder / "store")))
    serve(ledger, held, Version(ONE, BASE, "2"), FileAlias(folder, slow=True))


def test_a_writer_that_is_stopped_while_it_moves_the_alias_keeps_the_others_out(
    url: str, dialect: str, tmp_path: Path, request_of: Make
) -> None:
    ledger = Ledger(url, Pseudonyms(b"k" * 32), Vault(FolderStore(tmp_path / "store")))
    list(file_requests(ledger, [request_of(1)], actor="intake"))
    held = claim(ledger, owner="a", lease_seconds=0.2)
    assert held is not None
    process = multiprocessing.get_context("fork").Process(target=sleeper, args=(url, tmp_path, held))
    ledger.close()
    process.start()
    while not (tmp_path / "moving").exists():
        time.sleep(0.01)
    os.kill(process.pid or 0, signal.SIGSTOP)
    time.sleep(0.3)

    waker = multiprocessing.get_context("fork").Process(target=_after, args=(0.5, process.pid))
    waker.start()
    began = time.monotonic()
    other = claim(ledger, owner="b", lease_seconds=60)  # waits for the sleeper's turn to end
    waited = time.monotonic() - began
    process.join(20)
    waker.join(20)
    assert waited > 0.3
    assert process.exitcode == 0
    assert other is not None
    assert other.state == "promoting"
    assert alias_of(tmp_path, "faces") == ONE
    confirm(ledger, other, ONE)
    settle(ledger, other, **DONE)
    assert find(ledger, ledger.members(other.members)[0])["state"] == "served"
    assert verify(ledger) == []
    with pytest.raises(UsageError, match="still knows"):
        record_rollback(ledger, "faces", BASE, actor="operator")
    ledger.close()


def _after(seconds: float, pid: int | None) -> None:
    time.sleep(seconds)
    os.kill(pid or 0, signal.SIGCONT)
