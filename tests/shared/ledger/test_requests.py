import hashlib
import hmac
import json
import stat
import unicodedata
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearning.errors import DataError, StorageError, UsageError
from unlearning.ledger.deadlines import RULES, add_months, due_dates, extended
from unlearning.ledger.pseudonyms import Pseudonyms, key_from, key_of_file, new_key
from unlearning.ledger.requests import DeletionRequest, request_from, wrong_with_id
from unlearning.ledger.vault import Kept, Vault
from unlearning.storage import FolderStore

NAMES = Pseudonyms(b"k" * 32)
GOOD: dict[str, Any] = {
    "controller": "shop",
    "key": "7b1c",
    "kind": "subject",
    "ids": ["user-2", "user-1", "user-2"],
    "model": "faces",
    "submitted_at": "2026-11-21T10:30:00+01:00",
}
HOSTILE_IDS = [
    "", "../etc", "/etc/passwd", "a/../b", "file:///etc/passwd", "C:\\windows", "%2e%2e/x", "=1+1", "+1", "-1",
    "@SUM(A1)",
    "\tx", "x\r", "a\nb", "a\x00b", "<script>", "a&b", "{{7*7}}", "a'b", 'a"b', "`id`", "$(id)", "\x1b[31mred",
    "\u202eabc", "zero\u200bwidth", "us\u0435r", "\uff55ser", "cafe\u0301", "caf\u00e9", " x", "x ", "x" * 257,
    "x" * 10_000,
]  # fmt: skip


def when(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_a_request_keeps_each_id_once_in_order_and_its_times_in_utc() -> None:
    request = request_from(GOOD)
    assert request.ids == ("user-1", "user-2")
    assert request.submitted_at == when("2026-11-21T09:30:00")
    assert (request.dataset, request.regulation, request.priority) == ("*", "gdpr", "normal")
    assert "user-1" not in repr(request)
    assert "7b1c" not in repr(request)


@pytest.mark.parametrize("value", HOSTILE_IDS)
def test_hostile_ids_are_refused_without_being_repeated(value: str) -> None:
    with pytest.raises(DataError) as caught:
        request_from({**GOOD, "ids": ["fine", value]})
    assert "id 2" in str(caught.value)
    assert len(value) < 3 or value not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", ["7", "user-17", "a@b.org", "train/cat/001.png", "Ankle boot", "urn:x:1", "A+B"])
def test_ids_as_manifests_have_them_are_taken(value: str) -> None:
    assert request_from({**GOOD, "ids": [value]}).ids == (value,)


@given(st.text(max_size=40))
def test_an_id_that_passes_is_printable_ascii_in_normal_form_and_no_formula_or_path(value: str) -> None:
    if not wrong_with_id(value):
        assert value.isascii()
        assert value.isprintable()
        assert value == value.strip() == unicodedata.normalize("NFKC", value)
        assert value[0].isalnum()
        assert not set(value) & set("<>&\"'`$%\\{}=|;*?")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ids": []}, "ids"),
        ({"ids": "user-1"}, "ids"),
        ({"ids": [1]}, "no text"),
        ({"ids": [None]}, "no text"),
        ({"ids": [f"u{n}" for n in range(10_001)]}, "at most 10000"),
        ({"kind": "row"}, "kind"),
        ({"controller": "a b"}, "controller"),
        ({"controller": "x" * 129}, "controller"),
        ({"key": "a@b"}, "key"),
        ({"key": 7}, "key"),
        ({"model": "../m"}, "model"),
        ({"dataset": "**"}, "dataset"),
        ({"regulation": "GDPR"}, "regulation"),
        ({"submitted_at": "2026-11-21"}, "submitted_at"),
        ({"submitted_at": "2026-11-21T10:30:00"}, "submitted_at"),
        ({"submitted_at": 1_700_000_000}, "submitted_at"),
        ({"submitted_at": "2026-02-30T10:30:00Z"}, "submitted_at"),
        ({"submitted_at": "0001-01-01T00:00:00+14:00"}, "submitted_at"),
        ({"priority": "high"}, "priority"),
        ({"features": [0.1, 0.2]}, "unknown"),
    ],
)
def test_a_field_that_does_not_fit_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=named):
        request_from({**GOOD, **change})


def test_a_missing_field_is_named() -> None:
    for field in GOOD:
        with pytest.raises(DataError, match=field):
            request_from({key: value for key, value in GOOD.items() if key != field})


def test_a_request_does_not_change() -> None:
    request = request_from(GOOD)
    with pytest.raises(ValueError, match="frozen"):
        request.key = "other"


def test_digests_are_keyed_and_depend_on_nothing_but_what_they_stand_for() -> None:
    one, other = request_from(GOOD), request_from({**GOOD, "key": "else", "ids": ["user-1", "user-2"]})
    assert one.ref(NAMES) == hmac.new(b"k" * 32, b"7:request4:shop4:7b1c", hashlib.sha256).hexdigest()
    assert one.ref(NAMES) != other.ref(NAMES)
    assert one.target(NAMES) == other.target(NAMES)
    assert one.content(NAMES) == other.content(NAMES)
    assert one.target(Pseudonyms(b"l" * 32)) != one.target(NAMES)
    assert one.content(NAMES) != request_from({**GOOD, "regulation": "ccpa"}).content(NAMES)
    assert one.content(NAMES) == request_from({**GOOD, "priority": "expedite"}).content(NAMES)
    assert one.target(NAMES) != request_from({**GOOD, "kind": "sample"}).target(NAMES)


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_digests_of_different_lists_differ(one: list[str], other: list[str]) -> None:
    assert (NAMES.of("x", *one) == NAMES.of("x", *other)) == (one == other)


def test_a_key_is_made_once_for_its_owner_alone_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.key"
    key = key_of_file(path)
    assert key_of_file(path) == key
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in path.parent.iterdir()] == ["ledger.key"]
    path.write_text("short secret")
    with pytest.raises(UsageError, match="hexadecimal") as caught:
        key_of_file(path)
    assert "short secret" not in str(caught.value)
    with pytest.raises(UsageError, match="32 bytes"):
        Pseudonyms(b"short")
    assert key_from(new_key()) != key_from(new_key())
    assert "kkk" not in repr(NAMES)


@pytest.mark.parametrize(
    ("start", "months", "end"),
    [
        ("2027-01-31", 1, "2027-02-28"),
        ("2028-01-31", 1, "2028-02-29"),
        ("2028-02-29", 12, "2029-02-28"),
        ("2026-12-15", 1, "2027-01-15"),
        ("2026-10-31", 1, "2026-11-30"),
        ("2026-11-30", 3, "2027-02-28"),
        ("2026-03-31", 0, "2026-03-31"),
    ],
)
def test_months_are_calendar_months(start: str, months: int, end: str) -> None:
    assert add_months(when(start), months) == when(end)


def test_due_dates_follow_the_regulation() -> None:
    start = when("2027-01-31T12:00:00")
    assert due_dates("gdpr", start) == (when("2027-02-28T12:00:00"), when("2027-02-28T12:00:00"))
    assert due_dates("ccpa", start) == (when("2027-03-17T12:00:00"), when("2027-03-12T12:00:00"))
    assert extended("gdpr", when("2027-02-28")) == when("2027-04-28")
    assert extended("ccpa", when("2027-03-17")) == when("2027-05-01")
    with pytest.raises(UsageError, match="no extension"):
        extended("other", start)


@given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)), st.sampled_from(sorted(RULES)))
def test_no_due_date_comes_before_its_target_or_after_its_extension(start: datetime, regulation: Any) -> None:
    due, target = due_dates(regulation, start.replace(tzinfo=UTC))
    assert start.replace(tzinfo=UTC) < target <= due
    assert due - start.replace(tzinfo=UTC) <= timedelta(days=90)


def kept(number: int) -> Kept:
    return Kept(ref=f"{number:064x}", key=f"k{number}", kind="subject", ids=(f"user-{number}",))


def test_the_vault_gives_back_what_it_keeps_and_nothing_after_it_was_dropped(tmp_path: Path) -> None:
    vault, now = Vault(FolderStore(tmp_path)), when("2026-11-21T09:30:00")
    key = vault.put([kept(1), kept(2)], now)
    assert key.startswith("requests/20261121T093000-")
    assert list(vault.read(key)) == [kept(1), kept(2)]
    assert "user-1" not in repr(kept(1))
    rest = vault.put([kept(2)], now)
    assert rest != key
    assert vault.holds(key)
    assert vault.drop(key) == 1
    assert vault.drop(key) == 0
    assert not vault.holds(key)
    assert list(vault.parcels(now + timedelta(seconds=1))) == [rest]
    assert list(vault.parcels(now)) == []
    left = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"user-1" not in left


def test_the_vault_opens_nothing_but_parcels(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("requests/notes", b"x")
    store.put("requests/20261121T093000-" + "0" * 32 + ".jsonl", json.dumps({"ref": 1}).encode())
    vault = Vault(store)
    for key in ("requests/notes", "models/x", "requests/../models/x"):
        with pytest.raises(StorageError, match="no parcel"):
            list(vault.read(key))
        with pytest.raises(StorageError, match="no parcel"):
            vault.drop(key)
    with pytest.raises(StorageError, match="damaged"):
        list(vault.read("requests/20261121T093000-" + "0" * 32 + ".jsonl"))


def test_the_record_has_no_field_for_features() -> None:
    assert set(DeletionRequest.model_fields) == {
        "controller", "key", "kind", "ids", "model", "dataset", "regulation", "submitted_at", "priority",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "value", "fits"),
    [
        ("target", "0:80", True),
        ("target", ":80", True),
        ("target", "-5.5:1e3", True),
        ("target", "80:", True),
        ("target", ":", False),
        ("target", "80", False),
        ("target", "nan:1", False),
        ("target", "0:80\n", False),
        ("period", "2017-03", True),
        ("period", "2017-03-01T05", True),
        ("period", "2017-03-01/2017-03-08", True),
        ("period", "2017-03/", False),
        ("period", "../2017", False),
        ("subject", ":80", False),
        ("subject", "2017-03-01/2017-03-08", True),
    ],
)
def test_ranges_and_periods_have_a_form_of_their_own(kind: str, value: str, fits: bool) -> None:
    values = {"controller": "shop", "key": "k", "kind": kind, "ids": [value], "model": "m"}
    values["submitted_at"] = "2026-11-20T12:00:00Z"
    if fits:
        assert request_from(values).ids == (value,)
    else:
        with pytest.raises(DataError, match="ids: id 1 "):
            request_from(values)
