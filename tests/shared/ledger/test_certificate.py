import copy
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner

from unlearning.errors import LedgerError, UsageError
from unlearning.ledger.certificate import (
    LEVELS,
    NOT_CLAIMED,
    PREFIX,
    Facts,
    Measure,
    Served,
    leaves,
    publish,
    receipts,
    statement,
)
from unlearning.ledger.checking import Line, check_certificate, check_receipt, ok
from unlearning.ledger.events import canonical
from unlearning.ledger.merkle import Tree, is_included, root
from unlearning.ledger.signing import opened, public_key, public_pem, sign, signer_of
from unlearning.storage import FolderStore

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
SIGNER = CryptoSigner.generate_ed25519()
KEY = public_key(public_pem(SIGNER))
WEIGHTS = b"weights"


def served(count: int) -> list[Served]:
    return [
        Served(
            request=hashlib.sha256(str(number).encode()).hexdigest(),
            outcome="erased_approx_audited",
            submitted_at=f"2026-11-{number % 20 + 1:02d}T12:00:00.000000Z",
            due_at=f"2026-12-{number % 20 + 1:02d}T12:00:00.000000Z",
        )
        for number in range(count)
    ]


FACTS = Facts(
    batch="b" * 64,
    requests=served(5),
    outcome="erased_approx_audited",
    limits=["it is no proof"],
    ledger_seq=17,
    ledger_head="e" * 64,
    model="faces",
    before={"version": "1", "digest": "1" * 64},
    after={"version": "2", "digest": "2" * 64},
    files={"weights.safetensors": hashlib.sha256(WEIGHTS).hexdigest()},
    data={"manifest": "3" * 64, "forgetRows": 5, "retainRows": 95, "exclusionList": "4" * 64},
    method={"name": "unsir", "settings": {"steps": 3, "rate": 0.5, "a/b~c": []}, "seed": 0, "rung": 0},
    measures=[
        Measure(metric="forget.test", value=0.0, standard_error=0.0, low=None, high=0.05, outcome="pass"),
        Measure(metric="attack", value=0.5, standard_error=0.01, low=0.4, high=0.6, outcome="pass"),
    ],
    policy="5" * 64,
    provenance={"run": "6" * 32, "torch": "2.14"},
    picked_at="2026-11-21T11:00:00.000000Z",
    promoted_at="2026-11-21T11:59:00.000000Z",
    obligations={"oldModel": "retired by 2026-11-28"},
)


def made(facts: Facts = FACTS, signer: CryptoSigner = SIGNER) -> bytes:
    return sign(statement(facts, signed_at=NOON, key_id=signer.public_key.keyid), signer)


CERTIFICATE = made()
ENVELOPE, STATED = opened(CERTIFICATE)


def marks(lines: list[Line], mark: str) -> list[str]:
    return [line.what for line in lines if line.mark == mark]


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every leaf, by a walk of its own."""
    if isinstance(value, dict) and value:
        for name in value:
            yield from places(value[name], (*way, name))
    elif isinstance(value, list) and value:
        for place in range(len(value)):
            yield from places(value[place], (*way, place))
    else:
        yield way


def altered(value: Any, way: tuple[Any, ...], new: Any = None) -> Any:
    """A copy with one leaf changed: to something else of its type, or to `new`."""
    result = copy.deepcopy(value)
    inner = result
    for step in way[:-1]:
        inner = inner[step]
    was = inner[way[-1]]
    if new is not None:
        inner[way[-1]] = new
    elif isinstance(was, bool):
        inner[way[-1]] = not was
    elif isinstance(was, int | float):
        inner[way[-1]] = was + 1
    elif isinstance(was, str):
        inner[way[-1]] = was[:-1] + ("0" if was[-1:] != "0" else "1")
    else:
        inner[way[-1]] = "x"
    return result


def repacked(stated: dict[str, Any]) -> bytes:
    """The changed statement in the old envelope, with the old signature."""
    import base64

    payload = base64.b64encode(canonical(stated).encode()).decode()
    return (canonical({**ENVELOPE, "payload": payload}) + "\n").encode()


def test_what_is_untouched_holds_and_what_cannot_be_known_is_said_to_be_not_checked(tmp_path: Path) -> None:
    lines = check_certificate(CERTIFICATE, KEY)
    assert ok(lines)
    assert marks(lines, "failed") == []
    assert {"signature", "fields", "claim", "counts", "gate attack", "times"} <= set(marks(lines, "verified"))
    unknown = {"model", "certificate before", "requests", "ledger", "measurements", "what remains"}
    assert set(marks(lines, "not checked")) == unknown
    (tmp_path / "weights.safetensors").write_bytes(WEIGHTS)
    assert "model" in marks(check_certificate(CERTIFICATE, KEY, model=tmp_path), "verified")


@pytest.mark.parametrize("way", list(places(STATED)), ids=lambda way: "/".join(map(str, way))[-60:])
def test_a_changed_value_fails_and_is_named(way: tuple[Any, ...]) -> None:
    lines = check_certificate(repacked(altered(STATED, way)), KEY)
    assert "signature" in marks(lines, "failed")
    named = "/".join(str(step) for step in way)
    if way[1:2] == ("fieldDigests",):
        named = way[2]
    wanted = f"field /{named.lstrip('/')}" if "a/b~c" not in named else "field /predicate/method/settings/a~1b~0c"
    assert wanted in marks(lines, "failed"), lines
    assert "claim" not in marks(lines, "verified"), "nothing is vouched for that nobody signed"


def test_every_value_has_its_own_digest_and_the_walks_agree() -> None:
    ways = [way for way in places(STATED) if way[1:2] != ("fieldDigests",)]
    assert len(ways) == len(STATED["predicate"]["fieldDigests"]) > 50
    assert len(list(leaves(STATED))) == len(list(places(STATED)))


@given(st.data())
def test_any_value_put_in_any_place_fails(data: st.DataObject) -> None:
    way = data.draw(st.sampled_from(list(places(STATED))))
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    new = data.draw(scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(), scalars, max_size=2))
    changed = altered(STATED, way, new) if new is not None else altered(STATED, way)
    if canonical(changed) != canonical(STATED):
        lines = check_certificate(repacked(changed), KEY)
        assert not ok(lines)
        assert any(line.what.startswith("field") for line in lines if line.mark == "failed")


def test_fields_added_or_removed_are_named() -> None:
    more = copy.deepcopy(STATED)
    more["predicate"]["claim"]["extra"] = "all data erased"
    less = copy.deepcopy(STATED)
    del less["predicate"]["claim"]["knownLimits"]
    assert "field /predicate/claim/extra" in marks(check_certificate(repacked(more), KEY), "failed")
    assert "field /predicate/claim/knownLimits/0" in marks(check_certificate(repacked(less), KEY), "failed")


@pytest.mark.parametrize("way", list(places(ENVELOPE)), ids=str)
def test_a_changed_envelope_fails(way: tuple[Any, ...]) -> None:
    lines = check_certificate(canonical(altered(ENVELOPE, way)).encode(), KEY)
    assert not ok(lines)
    assert lines[0].what in ("signature", "form")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"payload":"e30=","payload":"e30=","payloadType":"x","signatures":[]}',
        b'{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[]}',
        b'{"payload":"e31=","payloadType":"application/vnd.in-toto+json","signatures":[]}',
        b'{"payload":"NaN","payloadType":"application/vnd.in-toto+json","signatures":[]}',
        b"[" * 100_000,
        CERTIFICATE.replace(b'"payloadType"', b'"extra":1,"payloadType"'),
        CERTIFICATE[: len(CERTIFICATE) // 2],
    ],
)
def test_what_is_no_certificate_fails_in_words(data: bytes) -> None:
    lines = check_certificate(data, KEY)
    assert not ok(lines)
    assert all("\n" not in line.detail for line in lines)


def test_an_old_or_strange_key_fails() -> None:
    other = CryptoSigner.generate_ed25519()
    assert "signature" in marks(check_certificate(CERTIFICATE, public_key(public_pem(other))), "failed")
    forged = sign(statement(FACTS, signed_at=NOON, key_id=KEY.keyid), other)
    assert "signature" in marks(check_certificate(forged, KEY), "failed")
    named = sign(statement(FACTS, signed_at=NOON, key_id=other.public_key.keyid), SIGNER)
    assert "key" in marks(check_certificate(named, KEY), "failed")


def resigned(way: tuple[Any, ...], new: Any) -> list[Line]:
    """What the checks say of a signer that lies consistently."""
    from unlearning.ledger.events import digest_of

    changed = altered(STATED, way, new)
    bare = copy.deepcopy(changed)
    del bare["predicate"]["fieldDigests"]
    changed["predicate"]["fieldDigests"] = {path: digest_of(value) for path, value in leaves(bare)}
    return check_certificate(sign(changed, SIGNER), KEY)


@pytest.mark.parametrize(
    ("way", "new", "line"),
    [
        (("predicate", "claim", "statement"), "All data was erased.", "claim"),
        (("predicate", "claim", "level"), "erased_exact", "claim"),
        (("predicate", "claim", "notClaimed"), "", "not claimed"),
        (("predicate", "batch", "requestCount"), 6, "counts"),
        (("predicate", "gates", "measured", 0, "value"), 0.2, "gate forget.test"),
        (("predicate", "gates", "measured", 0, "outcome"), "fail", "gate forget.test"),
        (("predicate", "gates", "measured"), [], "gates"),
        (("predicate", "times", "dueDatesMet"), False, "times"),
        (("predicateType",), "https://example.org/other", "type"),
        (("predicate", "claim"), "erased", "content"),
        (("predicate", "times", "pickedAt"), 7, "content"),
    ],
)
def test_a_signer_that_contradicts_itself_is_found_out(way: tuple[Any, ...], new: Any, line: str) -> None:
    assert line in marks(resigned(way, new), "failed")


def test_a_clock_that_was_set_back_leaves_the_times_unchecked() -> None:
    lines = resigned(("predicate", "times", "pickedAt"), "2026-11-21T13:00:00.000000Z")
    assert ok(lines)
    assert "times" in marks(lines, "not checked")


def test_another_model_or_one_file_more_fails(tmp_path: Path) -> None:
    weights = tmp_path / "weights.safetensors"
    for content, more in ((b"other", False), (WEIGHTS, True)):
        weights.write_bytes(content)
        if more:
            (tmp_path / "code.py").write_text("import os")
        assert "model" in marks(check_certificate(CERTIFICATE, KEY, model=tmp_path), "failed")
    assert "model" in marks(check_certificate(CERTIFICATE, KEY, model=tmp_path / "nowhere"), "failed")


def test_certificates_follow_on_each_other() -> None:
    first = made()
    second = made(replace(FACTS, batch="c" * 64, previous=hashlib.sha256(first).hexdigest()))
    assert "certificate before" in marks(check_certificate(second, KEY, before=first), "verified")
    for wrong in (second, made(replace(FACTS, batch="d" * 64))):
        assert "certificate before" in marks(check_certificate(second, KEY, before=wrong), "failed")


def test_what_did_not_pass_is_not_certified() -> None:
    failed = replace(FACTS.measures[0], outcome="inconclusive")
    for facts in (replace(FACTS, measures=[failed]), replace(FACTS, requests=[]), replace(FACTS, outcome="gone")):
        with pytest.raises(UsageError, match="certif"):
            statement(facts, signed_at=NOON, key_id="k")


def test_a_certificate_is_published_once_whatever_the_retries(store: FolderStore) -> None:
    first = publish(store, FACTS, SIGNER, now=NOON)
    later = NOON.replace(hour=15)
    other = CryptoSigner.generate_ed25519()
    assert publish(store, replace(FACTS, ledger_seq=20, ledger_head="f" * 64), other, now=later) == first
    data = store.get(f"{PREFIX}/{FACTS.batch}.dsse.json")
    assert (hashlib.sha256(data).hexdigest(), data) == (first, CERTIFICATE)
    with pytest.raises(LedgerError, match="other facts"):
        publish(store, replace(FACTS, outcome="erased_exact"), SIGNER, now=later)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 33])
def test_a_receipt_proves_its_request_and_speaks_of_no_other(count: int) -> None:
    requests = served(count)
    data = made(replace(FACTS, requests=requests))
    written = list(receipts(data, requests))
    assert len(written) == count
    for receipt, request in zip(written, sorted(requests, key=lambda one: one.request), strict=True):
        lines = check_receipt(json.dumps(receipt).encode(), data, KEY)
        assert ok(lines), lines
        assert receipt["content"]["request"] == request.request
        others = {one.request for one in requests} - {request.request}
        assert not any(other in json.dumps(receipt) for other in others)
        assert receipt["notClaimed"] == NOT_CLAIMED
        assert receipt["statement"] in LEVELS.values()
    (only,) = receipts(data, requests, wanted=[requests[0].request])
    assert only["content"]["request"] == requests[0].request


def test_any_one_field_of_a_receipt_altered_fails_and_is_named() -> None:
    (receipt,) = receipts(CERTIFICATE, FACTS.requests, wanted=[FACTS.requests[2].request])
    for way in places(receipt):
        lines = check_receipt(json.dumps(altered(receipt, way)).encode(), CERTIFICATE, KEY)
        named = [what for what in marks(lines, "failed") if str(way[0]) in what or what == "receipt: form"]
        assert named, (way, lines)
    for size in (1, 4, 6, 8, True, 5.0, "5"):
        changed = altered(receipt, ("proof", "size"), size)
        assert not ok(check_receipt(json.dumps(changed).encode(), CERTIFICATE, KEY))
    for data in (b"", b"{}", b"[]", json.dumps({**receipt, "more": 1}).encode()):
        assert not ok(check_receipt(data, CERTIFICATE, KEY))


def test_receipts_want_the_very_requests_of_the_certificate() -> None:
    for wrong in (served(4), [*served(4), replace(served(5)[4], outcome="erased_exact")]):
        with pytest.raises(LedgerError, match="not those of its certificate"):
            list(receipts(CERTIFICATE, wrong))


@given(st.lists(st.binary(max_size=8), min_size=1, max_size=40), st.data())
def test_a_tree_proves_its_entries_and_nothing_else(entries: list[bytes], data: st.DataObject) -> None:
    tree = Tree(entries)
    place = data.draw(st.integers(0, len(entries) - 1))
    beside = tree.proof(place)
    assert tree.root == root(entries)
    assert is_included(entries[place], place, len(entries), beside, tree.root)
    assert not is_included(entries[place] + b"x", place, len(entries), beside, tree.root)
    assert not is_included(entries[place], place, len(entries), [*beside, tree.root], tree.root)
    assert not is_included(entries[place], len(entries), len(entries), beside, tree.root)


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing.pem"
    first = signer_of(path)
    assert path.stat().st_mode & 0o777 == 0o600
    public = path.with_name("signing.pem.pub").read_bytes()
    assert public_pem(first) == public == public_pem(signer_of(path))
    assert b"PRIVATE" not in public
    assert ok(check_certificate(made(signer=signer_of(path)), public_key(public)))
    for wrong in (b"", b"key", public):
        path.write_bytes(wrong)
        with pytest.raises(UsageError, match=r"signing\.pem cannot be used"):
            signer_of(path)
        if wrong != public:
            with pytest.raises(UsageError, match="public key"):
                public_key(wrong)


def test_checking_loads_neither_the_database_nor_torch() -> None:
    code = (
        "import sys; from unlearning.ledger.checking import check_certificate; from unlearning.ledger.signing import "
        "public_key; print(sorted({'sqlalchemy', 'torch', 'kfp', 'mlflow', 'pydantic'} & set(sys.modules)))"
    )
    path = ":".join(sys.path)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": path})
    assert answer.stdout.strip() == "[]", answer
