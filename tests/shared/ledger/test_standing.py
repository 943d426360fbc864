from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unlearning.errors import UsageError
from unlearning.ledger.claims import claim
from unlearning.ledger.filing import file_requests
from unlearning.ledger.ladder import rung_of
from unlearning.ledger.promotion import Version, begin, confirm, not_forgotten, record_rollback, settle, withdraw
from unlearning.ledger.pseudonyms import Pseudonyms
from unlearning.ledger.requests import DeletionRequest
from unlearning.ledger.segments import seal
from unlearning.ledger.standing import folded, standing_of, standings
from unlearning.ledger.store import Ledger
from unlearning.ledger.vault import Vault
from unlearning.ledger.verification import verify
from unlearning.storage import FolderStore

Make = Callable[..., DeletionRequest]
DIGESTS = [f"{number:064x}" for number in range(1, 30)]


def hasty(ledger: Ledger) -> Ledger:
    """The same ledger, which no longer waits for the disk."""
    sa.event.listen(ledger._engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    return ledger


def served(ledger: Ledger, request: DeletionRequest, digest: str, parent: str = "", outcome: str = "") -> str:
    list(file_requests(ledger, [request], actor="intake"))
    held = claim(ledger, owner="a")
    assert held is not None
    begin(ledger, held, Version(digest, parent, "1"))
    confirm(ledger, held, digest)
    settle(ledger, held, outcome=outcome or "erased_approx_audited", certificate="c" * 64)
    return held.batch


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["serve", "cover", "withdraw", "roll back"]), st.integers(0, 28), st.integers(0, 28)),
        max_size=12,
    )
)
def test_which_version_may_serve_is_what_sets_of_batches_say(
    url: str, request_of: Make, steps: list[tuple[str, int, int]], tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("standing")
    ledger = Ledger(f"sqlite:///{folder}/ledger.db", Pseudonyms(b"k" * 32), Vault(FolderStore(folder / "store")))
    hasty(ledger).upgrade()
    forgotten: dict[str, set[str]] = {}
    done: set[str] = set()
    expected = ""
    for number, (act, which, other) in enumerate(steps):
        digest, parent = DIGESTS[which], DIGESTS[other] if other % 3 else expected
        if act == "roll back":
            allowed = expected and digest in forgotten and done <= forgotten[digest]
            try:
                record_rollback(ledger, "faces", digest, actor="operator")
                assert allowed
                expected = digest
            except UsageError:
                assert not allowed
            continue
        list(file_requests(ledger, [request_of(f"{folder.name}-{number}")], actor="intake"))
        held = claim(ledger, owner="a")
        assert held is not None
        covers = done if act == "cover" else set[str]()
        knows = forgotten.get(parent, set()) | covers
        try:
            begin(ledger, held, Version(digest, parent, "1", tuple(covers)))
            assert done <= knows
        except UsageError:
            assert not done <= knows
            begin(ledger, held, Version(digest, expected, "1"))
        forgotten[digest] = forgotten.get(digest, set()) | done
        if act == "withdraw":
            withdraw(ledger, held, "", "registry refused")
        else:
            confirm(ledger, held, digest)
            settle(ledger, held, outcome="erased_approx_audited", certificate="c" * 64)
            done.add(held.batch)
            forgotten[digest].add(held.batch)
            expected = digest
        for one in (*forgotten, "f" * 64):
            assert set(not_forgotten(ledger, "faces", one)) == done - forgotten.get(one, set())
    assert verify(ledger) == []
    with ledger.reading() as connection:
        for model, found in standings(connection).items():
            assert found == folded(
                ledger.events_of(model, *("promoting", "confirmed", "withdrawn", "settled", "restored"))
            )
            assert found.expected == expected
    ledger.close()


def test_versions_that_served_say_when_they_left_and_a_retrain_starts_the_count_again(
    ledger: Ledger, request_of: Make
) -> None:
    served(ledger, request_of(1), DIGESTS[1], DIGESTS[0])
    served(ledger, request_of(2), DIGESTS[2], DIGESTS[1])
    with ledger.reading() as connection:
        found = standing_of(connection, "faces", *DIGESTS[:3])
    left = [bool(found.versions[digest].left_at) for digest in DIGESTS[:3]]
    assert (left, found.approximate, found.eroded) == ([True, True, False], 2, False)
    with ledger.writing("run") as writer:
        writer.append("eroded", body={"model": "faces"})
    with ledger.reading() as connection:
        assert standing_of(connection, "faces").eroded
    served(ledger, request_of(3), DIGESTS[3], DIGESTS[2], "erased_exact")
    with ledger.reading() as connection:
        found = standing_of(connection, "faces")
    assert (found.approximate, found.eroded) == (0, False)
    assert verify(ledger) == []


def test_a_ledger_of_the_first_layout_is_brought_up_to_date_from_its_events(ledger: Ledger, request_of: Make) -> None:
    served(ledger, request_of(1), DIGESTS[1], DIGESTS[0])
    served(ledger, request_of(2, model="voices"), DIGESTS[5])
    served(ledger, request_of(3), DIGESTS[2], DIGESTS[1])
    with ledger.reading() as connection:
        before = standings(connection)
    with ledger.writing("test") as writer:
        for statement in (
            "DROP TABLE serving",
            "DROP TABLE versions",
            "DROP TABLE sealed",
            "DROP INDEX batches_settled",
            "DROP INDEX batches_ended",
            "DROP INDEX events_gated",
            "ALTER TABLE batches DROP COLUMN settled_seq",
            "UPDATE alembic_version SET version_num = '0001'",
        ):
            writer.connection.execute(sa.text(statement))
    assert ledger.upgrade() == "0002"
    with ledger.reading() as connection:
        assert standings(connection) == before
    assert set(before) == {"faces", "voices"}
    assert verify(ledger) == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE serving SET expected = :digest",
        "UPDATE serving SET settled_seq = 0",
        "UPDATE versions SET until = 999",
        "UPDATE versions SET parent = :digest",
        "DELETE FROM versions",
        "DELETE FROM serving",
        "UPDATE batches SET settled_seq = 0",
    ],
)
def test_what_is_changed_by_hand_is_found(ledger: Ledger, request_of: Make, statement: str) -> None:
    served(ledger, request_of(1), DIGESTS[1], DIGESTS[0])
    assert verify(ledger) == []
    with ledger.writing("test") as writer:
        query = sa.text(statement)
        writer.connection.execute(query.bindparams(digest="f" * 64) if ":digest" in statement else query)
    assert len(verify(ledger)) == 1


def test_a_run_reads_no_more_rows_after_a_hundred_batches_than_after_ten(
    ledger: Ledger, request_of: Make, tmp_path: Path, dialect: str
) -> None:
    if dialect != "sqlite":
        pytest.skip("steps of the database's machine are counted on SQLite")
    hasty(ledger)
    evidence, counts = FolderStore(tmp_path / "evidence"), list[int]()

    def steps_of(call: Callable[[], object]) -> int:
        ticks = [0]

        def connected(connection: Any, _: Any) -> None:
            connection.set_progress_handler(lambda: ticks.__setitem__(0, ticks[0] + 1), 10)

        sa.event.listen(ledger._engine, "connect", connected)
        call()
        sa.event.remove(ledger._engine, "connect", connected)
        return ticks[0]

    def batch(number: int) -> None:
        served(ledger, request_of(number), f"{number + 1:064x}", f"{number:064x}" if number else "")
        rung_of(ledger, "faces")
        seal(ledger, evidence)

    for number in range(100):
        if number in (9, 99):
            counts.append(steps_of(lambda now=number: batch(now)))
        else:
            batch(number)
    assert counts[1] < counts[0] * 1.3
