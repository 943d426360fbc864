import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
from support.s3 import require_conditions

from unlearning.errors import StorageError, UsageError
from unlearning.ledger.claims import claim
from unlearning.ledger.filing import file_requests
from unlearning.ledger.promotion import Version, begin, confirm, record_rollback, settle
from unlearning.ledger.requests import DeletionRequest
from unlearning.ledger.retirement import PREFIX, note_copies, retirable, retire_one, run_of
from unlearning.ledger.store import Ledger
from unlearning.ledger.verification import verify
from unlearning.storage import FolderStore, ObjectStore, open_store

Make = Callable[..., DeletionRequest]
BASE, ONE, TWO = (f"{number:064x}" for number in range(1, 4))


class Shelf:
    """A registry in memory."""

    def __init__(self, *digests: str) -> None:
        self.there = set(digests)
        self.others: dict[str, str] = {}

    def copies(self, name: str, digest: str) -> list[str]:
        return [f"models:/{name}/{digest[-1]}"] if digest in self.there else []

    def remove(self, name: str, digest: str) -> int:
        there = digest in self.there
        self.there.discard(digest)
        return int(there)

    def holders(self, digest: str) -> list[str]:
        return [self.others[digest]] if digest in self.others else []


@pytest.fixture(params=["folder", "bucket"])
def models(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """A folder, or a bucket with versions on a server over HTTP."""
    if request.param == "folder":
        return FolderStore(tmp_path / "objects")
    bucket = request.getfixturevalue("s3")
    versioning = {"Status": "Enabled"}
    boto3.session.Session().client("s3").put_bucket_versioning(Bucket=bucket, VersioningConfiguration=versioning)
    require_conditions(bucket)
    return open_store(f"s3://{bucket}/some/prefix")


@pytest.fixture(params=["sqlite"])
def dialect(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def served(ledger: Ledger, request: DeletionRequest, digest: str, parent: str, place: str = "") -> None:
    list(file_requests(ledger, [request], actor="intake"))
    held = claim(ledger, owner="a", base=parent)
    assert held is not None
    if place:
        for _ in range(2):
            note_copies(ledger, held, digest, place)
    begin(ledger, held, Version(digest, parent, digest[-1]))
    confirm(ledger, held, digest)
    settle(ledger, held, outcome="erased_approx_audited", certificate="c" * 64)


def fill(store: ObjectStore, digest: str) -> None:
    for _ in range(2):  # a second version of each, and a marker over one
        store.put(f"models/{digest}/weights.safetensors", b"w" * 100)
        store.put(f"models/{digest}/card.json", b"{}")


def retired(ledger: Ledger, store: ObjectStore, shelf: Shelf, digest: str, days: float = 7) -> Any:
    return retire_one(ledger, store, shelf, "faces", digest, days=days, actor="retire")


def test_an_old_model_goes_with_all_its_versions_and_copies_and_a_listing_proves_it(
    ledger: Ledger, request_of: Make, models: ObjectStore, clock: Any, tmp_path: Path
) -> None:
    runs, shelf = FolderStore(tmp_path / "runs"), Shelf(BASE, ONE, TWO)
    for number, (digest, parent) in enumerate(((ONE, BASE), (TWO, ONE))):
        runs.put(f"v2/artifacts/run-{number}/distill/x/unlearned/weights.safetensors", b"w")
        place = run_of(f"{runs.uri}/v2/artifacts/run-{number}/distill/x/unlearned")
        assert place.endswith(f"run-{number}")
        served(ledger, request_of(number), digest, parent, place)
        clock.forward(days=1)
    for digest in (BASE, ONE, TWO):
        fill(models, digest)
    assert retirable(ledger, days=7) == []
    clock.forward(days=4.5)
    assert retirable(ledger, days=7) == []
    clock.forward(days=1)
    assert retirable(ledger, days=7) == [("faces", BASE)]
    assert retirable(ledger, days=0) == [("faces", BASE), ("faces", ONE)]
    assert retirable(ledger, days=0, model="voices") == []
    gone = retired(ledger, models, shelf, BASE)
    assert gone.removed["registered versions"] == 1
    assert gone.removed["artifacts of runs"] == 1
    assert gone.removed["object versions"] >= (4 if models.uri.startswith("s3://") else 2)
    assert models.remains(f"models/{BASE}") == []
    assert len(models.remains(f"models/{ONE}")) == (4 if models.uri.startswith("s3://") else 2)
    assert list(runs.keys()) == ["v2/artifacts/run-1/distill/x/unlearned/weights.safetensors"]
    (proof,) = ledger.events_of("faces", "destroyed") or [one for one in ledger.events() if one.kind == "destroyed"]
    assert proof.content["remaining"] == 0
    (key,) = models.keys(PREFIX)
    record = json.loads(models.get(key))
    assert (record["digest"], record["event"], record["hash"]) == (BASE, proof.seq, proof.hash)
    assert retirable(ledger, days=0) == [("faces", ONE)]
    with pytest.raises(UsageError, match="still knows"):
        record_rollback(ledger, "faces", BASE, actor="operator")
    assert verify(ledger) == []


def test_what_serves_is_needed_or_belongs_to_another_waits(
    ledger: Ledger, request_of: Make, models: ObjectStore
) -> None:
    shelf = Shelf(BASE, ONE)
    served(ledger, request_of(1), ONE, BASE)
    fill(models, BASE)
    fill(models, ONE)
    assert "serves" in retired(ledger, models, shelf, ONE).reason
    shelf.others[BASE] = "voices"
    assert '"voices" has it too' in retired(ledger, models, shelf, BASE).text()
    shelf.others.clear()
    list(file_requests(ledger, [request_of(2)], actor="intake"))
    held = claim(ledger, owner="a", base=ONE)
    assert held is not None
    assert "at work" in retired(ledger, models, shelf, BASE).reason
    assert len(models.remains(f"models/{BASE}")) >= 2
    begin(ledger, held, Version(TWO, ONE, "3"))
    assert "at work" in retired(ledger, models, shelf, BASE).reason
    assert verify(ledger) == []


def test_a_version_that_may_be_half_gone_never_serves_again_and_the_next_try_ends_it(
    ledger: Ledger, request_of: Make, tmp_path: Path
) -> None:
    class Stuck(FolderStore):
        def delete(self, prefix: str) -> int:
            if self.broken:
                raise StorageError("the store is away")
            return super().delete(prefix)

        broken = True

    store, shelf = Stuck(tmp_path / "objects"), Shelf(BASE, ONE)
    served(ledger, request_of(1), ONE, BASE)
    served(ledger, request_of(2), TWO, ONE)
    fill(store, ONE)
    with pytest.raises(StorageError, match="away"):
        retired(ledger, store, shelf, ONE)
    with pytest.raises(UsageError, match="still knows"):
        record_rollback(ledger, "faces", ONE, actor="operator")
    assert ("faces", ONE) in retirable(ledger, days=0)
    store.broken = False
    assert retired(ledger, store, shelf, ONE).removed is not None
    assert ("faces", ONE) not in retirable(ledger, days=0)
    assert len([one for one in ledger.events() if one.kind == "retired"]) == 1
    assert verify(ledger) == []


def test_what_is_left_in_spite_of_all_is_an_error_and_no_proof(
    ledger: Ledger, request_of: Make, tmp_path: Path
) -> None:
    class Keeping(FolderStore):
        def delete(self, prefix: str) -> int:
            return 2

    store, shelf = Keeping(tmp_path / "objects"), Shelf(BASE)
    served(ledger, request_of(1), ONE, BASE)
    fill(store, BASE)
    with pytest.raises(StorageError, match="2 things of model 000000000000 are left"):
        retired(ledger, store, shelf, BASE)
    assert [one for one in ledger.events() if one.kind == "destroyed"] == []
    assert list(store.keys(PREFIX)) == []


@pytest.mark.parametrize(
    ("artifact", "run"),
    [
        ("s3://kfp/v2/artifacts/deletion-batch/7a/distill/9e/unlearned", "s3://kfp/v2/artifacts/deletion-batch/7a"),
        ("minio://ml/v2/a/retrain-2/unlearned", "minio://ml/v2/a"),
        ("/home/runs/7a/distill/unlearned", "/home/runs/7a"),
        ("s3://bucket/distill/unlearned", "s3://bucket/distill/unlearned"),
        ("s3://bucket/elsewhere/unlearned", "s3://bucket/elsewhere/unlearned"),
    ],
)
def test_the_folder_of_a_run_is_read_off_an_artifact_and_never_guessed_too_high(artifact: str, run: str) -> None:
    assert run_of(artifact) == run
