from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unlearning.errors import StorageError, UsageError
from unlearning.ledger.claims import Claim, claim, dissolve
from unlearning.ledger.completion import keep, kept, propose, sweep
from unlearning.ledger.filing import file_requests
from unlearning.ledger.promotion import Version, begin, confirm, settle
from unlearning.ledger.store import Ledger
from unlearning.storage import FolderStore

CLAIM = Claim("b" * 64, 7, "a", "", "claimed", "faces", "*", "subject", "c" * 64, 1, "")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    (folder / "inner").mkdir(parents=True)
    (folder / "weights").write_bytes(b"weights")
    (folder / "inner" / "card").write_bytes(b"card")
    return folder


def test_a_finished_stage_is_found_again_and_the_first_to_finish_stays(
    store: FolderStore, made: Path, tmp_path: Path
) -> None:
    assert not kept(store, CLAIM, "repair", tmp_path / "into")
    keep(store, CLAIM, "repair", made)
    keep(store, CLAIM, "repair", made)
    (made / "weights").write_bytes(b"other")
    keep(store, replace(CLAIM, token=8), "repair", made)
    assert kept(store, replace(CLAIM, token=9), "repair", tmp_path / "into")
    assert (tmp_path / "into" / "weights").read_bytes() == b"weights"
    assert (tmp_path / "into" / "inner" / "card").read_bytes() == b"card"
    assert not kept(store, CLAIM, "impair", tmp_path / "other")


def test_an_unfinished_stage_is_not_found(store: FolderStore, tmp_path: Path) -> None:
    store.put(f"work/{CLAIM.batch}/repair/7/weights", b"half")
    assert not kept(store, CLAIM, "repair", tmp_path / "into")


@pytest.mark.parametrize(
    ("key", "data"),
    [
        ("repair/7/weights", b"weightz"),
        ("repair/7/weights", b""),
        ("repair/done.json", b""),
        ("repair/done.json", b"[]"),
        ("repair/done.json", b'{"stage":"repair","batch":"other","token":7,"files":{}}'),
    ],
)
def test_damage_is_named_and_nothing_is_used(
    store: FolderStore, made: Path, tmp_path: Path, key: str, data: bytes
) -> None:
    keep(store, CLAIM, "repair", made)
    store.put(f"work/{CLAIM.batch}/{key}", data)
    with pytest.raises(StorageError, match="to run"):
        kept(store, CLAIM, "repair", tmp_path / "into")


def test_a_record_leads_out_of_no_folder(store: FolderStore, tmp_path: Path) -> None:
    record = f'{{"stage":"repair","batch":"{CLAIM.batch}","token":7,"files":{{"../../x":"{"0" * 64}"}}}}'
    store.put(f"work/{CLAIM.batch}/repair/done.json", record.encode())
    with pytest.raises(StorageError):
        kept(store, CLAIM, "repair", tmp_path / "into")
    assert not (tmp_path / "x").exists()


def test_what_ended_batches_left_is_swept_and_what_is_at_work_or_promoted_stays(
    ledger: Ledger, store: FolderStore, made: Path, request_of: Any
) -> None:
    first, second, third = "1" * 64, "2" * 64, "3" * 64
    for digest in (first, second, third):
        store.put(f"models/{digest}/card.json", b"card")
    list(file_requests(ledger, [request_of(1)], actor="intake"))
    held = claim(ledger, owner="a")
    assert held is not None
    keep(store, held, "repair", made)
    propose(store, held, first)
    assert sweep(ledger, store, actor="cleaner") == 0
    dissolve(ledger, held, "a gate said no")
    assert sweep(ledger, store, actor="cleaner") == 5
    assert sorted(store.keys("models")) == [f"models/{second}/card.json", f"models/{third}/card.json"]
    assert list(store.keys("work")) == []
    held = claim(ledger, owner="b")
    assert held is not None
    propose(store, held, second)
    begin(ledger, held, Version(second, "", "1"))
    assert sweep(ledger, store, actor="cleaner") == 0
    confirm(ledger, held, second)
    settle(ledger, held, outcome="erased_exact", certificate="c" * 64)
    assert sweep(ledger, store, actor="cleaner") == 1
    assert sorted(store.keys("models")) == [f"models/{second}/card.json", f"models/{third}/card.json"]
    list(file_requests(ledger, [request_of(2)], actor="intake"))
    held = claim(ledger, owner="c")
    assert held is not None
    propose(store, held, second)  # the very model that serves, made again
    dissolve(ledger, held, "taken back")
    assert sweep(ledger, store, actor="cleaner") == 1
    assert store.exists(f"models/{second}/card.json")
    with pytest.raises(UsageError, match="64 hexadecimal"):
        propose(store, held, "../x")
