"""The inbox in a bucket of a real S3 server over HTTP: what was dropped is filed once, whatever reply is lost."""

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.s3 import client, require_conditions

from unlearning.errors import StorageError
from unlearning.ledger.inbox import PREFIX, REFUSED, REPORTS, refused_files, take_in, waiting
from unlearning.ledger.overview import list_requests
from unlearning.ledger.pseudonyms import Pseudonyms
from unlearning.ledger.store import Ledger
from unlearning.ledger.vault import Vault
from unlearning.ledger.verification import verify
from unlearning.storage import ObjectStore, open_store

WHERE = f"{PREFIX}/shop/faces"
Opened = Callable[[], tuple[Ledger, ObjectStore]]


@pytest.fixture(params=["sqlite"])
def dialect(request: pytest.FixtureRequest) -> str:
    """Nothing here depends on the database."""
    return str(request.param)


@pytest.fixture(params=["bucket", "versioned bucket"])
def bucket(request: pytest.FixtureRequest, s3: str) -> str:
    if request.param == "versioned bucket":
        client().put_bucket_versioning(Bucket=s3, VersioningConfiguration={"Status": "Enabled"})
    require_conditions(s3)
    return s3


@pytest.fixture
def opened(bucket: str, url: str) -> Iterator[Opened]:
    """Gives a process's own view: a ledger whose ids are in the bucket, and the store."""
    ledgers = []

    def make() -> tuple[Ledger, ObjectStore]:
        store = open_store(f"s3://{bucket}/unlearning")
        ledgers.append(Ledger(url, Pseudonyms(b"k" * 32), Vault(store)))
        return ledgers[-1], store

    yield make
    for one in ledgers:
        one.close()


def dropped(bucket: str, name: str, content: bytes) -> None:
    """As somebody else's program drops a file."""
    client().put_object(Bucket=bucket, Key=f"unlearning/{WHERE}/{name}", Body=content)


def rows(*keys: str) -> bytes:
    return b"key,kind,ids\n" + "".join(f"{key},subject,user-{key}\n" for key in keys).encode()


def test_what_lies_under_the_prefix_is_filed_refused_and_removed_in_all_versions(bucket: str, opened: Opened) -> None:
    ledger, store = opened()
    dropped(bucket, "a.csv", rows("1", "2"))
    dropped(bucket, "b.xlsx", b"PK")
    good, bad = take_in(ledger, store, actor="intake")
    assert (good.accepted, bool(bad.refused), waiting(store)) == (2, True, False)
    assert store.get(bad.moved) == b"PK"
    assert store.remains(PREFIX) == [], "no version of a file with ids stays behind"
    assert {one["controller"] for one in list_requests(ledger)} == {"shop"}
    assert json.loads(store.get(good.report))["accepted"] == 2
    assert verify(ledger) == []


@pytest.mark.parametrize("bucket", ["bucket"], indirect=True)
@pytest.mark.parametrize(
    ("operation", "number"),
    [*(("PutObject", number) for number in range(1, 5)), ("DeleteObjects", 1), ("DeleteObjects", 2), ("HeadObject", 2)],
)
def test_a_lost_reply_files_nothing_twice_and_loses_nothing(
    bucket: str, opened: Opened, operation: str, number: int
) -> None:
    from botocore.exceptions import ReadTimeoutError

    ledger, store = opened()
    dropped(bucket, "a.csv", rows("1", "2"))
    dropped(bucket, "b.xlsx", b"PK")
    seen = list[str]()

    def lose(**_: Any) -> None:
        seen.append(operation)
        if len(seen) == number:
            raise ReadTimeoutError(endpoint_url="http://somewhere")

    for kind in ("usual", "once"):
        store._client(kind).meta.events.register(f"before-parse.s3.{operation}", lose)  # type: ignore[attr-defined]
    for _ in range(3):
        try:
            take_in(ledger, store, actor="intake")
        except StorageError:
            continue
    assert seen, "the reply that was to be lost never came"
    assert (len(list(list_requests(ledger))), waiting(store)) == (2, False)
    assert (len(list(store.keys(REPORTS))), len(refused_files(store))) == (2, 1)
    assert store.remains(PREFIX) == []
    assert verify(ledger) == []


@pytest.mark.parametrize("bucket", ["versioned bucket"], indirect=True)
def test_two_intakes_at_once_file_every_request_once(bucket: str, opened: Opened) -> None:
    for number in range(4):
        dropped(bucket, f"{number}.csv", rows(*(f"{number}-{row}" for row in range(5))))
    dropped(bucket, "x.xlsx", b"PK")
    both, errors = [opened(), opened()], list[BaseException]()
    start = threading.Barrier(len(both))

    def run(ledger: Ledger, store: ObjectStore) -> None:
        try:
            start.wait()
            take_in(ledger, store, actor="intake")
        except BaseException as error:  # shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=run, args=one) for one in both]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert errors == []
    ledger, store = both[0]
    assert (len(list(list_requests(ledger))), waiting(store), store.remains(PREFIX)) == (20, False, [])
    assert len(list(store.keys(REPORTS))) == 5
    assert len(list(store.keys(REFUSED))) == 1
    assert verify(ledger) == []
