import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearning import references
from unlearning.errors import ModelError, StorageError, UsageError
from unlearning.models.architectures import build
from unlearning.models.bundle import ModelCard, load_bundle, save_bundle
from unlearning.references import Reference, fetch, find, of_manifest, remove, rows_digest, save
from unlearning.storage import ObjectStore, open_store
from unlearning.training import build_seeded

MANIFEST, OTHER = "a" * 64, "b" * 64
WANTED = Reference(
    manifest_sha256=MANIFEST,
    left_out_sha256=rows_digest([3, 5]),
    architecture="lenet5",
    recipe={"epochs": 2, "learning_rate": 0.1},
    seed=0,
)


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    return open_store(f"s3://{request.getfixturevalue('s3')}/some/prefix")


@pytest.fixture
def bundled(tmp_path: Path) -> Callable[..., Path]:
    """A new bundle in a folder of its own; other seeds give other weights."""

    def make(seed: int, **changes: Any) -> Path:
        card = ModelCard(
            architecture="lenet5",
            arguments={},
            input_shape=(1, 8, 8),
            outputs=2,
            classes=("no", "yes"),
            manifest_sha256=MANIFEST,
        )
        folder = tmp_path / f"bundle-{seed}-{len(list(tmp_path.iterdir()))}"
        model = build_seeded(lambda: build("lenet5", {}, input_shape=(1, 8, 8), outputs=2), seed)
        save_bundle(model, dataclasses.replace(card, **changes), folder)
        return folder

    return make


# Keys


def test_the_key_depends_on_every_field_and_on_nothing_else() -> None:
    changes: dict[str, Any] = {
        "manifest_sha256": OTHER,
        "left_out_sha256": rows_digest([3]),
        "architecture": "mlp",
        "arguments": {"hidden": [3]},
        "recipe": {"epochs": 3, "learning_rate": 0.1},
        "seed": 1,
        "method": {"name": "unsir"},
        "code_version": "0.0.0",
    }
    assert set(changes) == {one.name for one in dataclasses.fields(Reference)}
    keys = {dataclasses.replace(WANTED, **{name: value}).key for name, value in changes.items()}
    assert len(keys | {WANTED.key}) == len(changes) + 1
    turned = dataclasses.replace(WANTED, recipe={"learning_rate": 0.1, "epochs": 2})
    assert turned.key == WANTED.key


def test_the_key_of_a_reference_never_changes() -> None:
    fixed = dataclasses.replace(WANTED, code_version="1")
    text = (
        '{"architecture":"lenet5","arguments":{},"code_version":"1","left_out_sha256":"' + rows_digest([3, 5]) + '",'
        '"manifest_sha256":"' + MANIFEST + '","method":null,"recipe":{"epochs":2,"learning_rate":0.1},"seed":0}'
    )
    assert fixed.key == hashlib.sha256(text.encode()).hexdigest()


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**9), max_size=20), st.integers(0, 10**9))
def test_the_digest_of_rows_is_that_of_their_set(rows: list[int], other: int) -> None:
    digest = rows_digest(rows)
    assert digest == rows_digest([*reversed(rows), *rows])
    assert (digest == rows_digest([*rows, other])) == (other in rows)


@pytest.mark.parametrize(
    "changes",
    [
        {"manifest_sha256": ""},
        {"left_out_sha256": "A" * 64},
        {"recipe": {"rate": float("nan")}},
        {"recipe": {"rate": {1, 2}}},
    ],
)
def test_what_no_key_can_be_made_of_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="reference: "):
        dataclasses.replace(WANTED, **changes)


# The bank


def test_a_saved_reference_is_found_fetched_and_listed(
    store: ObjectStore, bundled: Callable[..., Path], tmp_path: Path
) -> None:
    assert find(store, WANTED) is None
    assert of_manifest(store, MANIFEST) == []
    folder = bundled(0)
    saved = save(store, WANTED, folder)
    assert saved.reference == WANTED
    assert find(store, WANTED) == saved
    assert of_manifest(store, MANIFEST) == [saved]
    assert of_manifest(store, OTHER) == []
    bundle = fetch(store, saved, tmp_path / "fetched")
    assert bundle.digest == saved.digest
    one, other = (load_bundle(path)[0].state_dict() for path in (folder, bundle.folder))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert find(store, dataclasses.replace(WANTED, seed=1)) is None


def test_the_first_stays_and_a_second_bundle_leaves_nothing_behind(
    store: ObjectStore, bundled: Callable[..., Path]
) -> None:
    first = save(store, WANTED, bundled(0))
    before = list(store.keys())
    assert save(store, WANTED, bundled(0)) == first
    assert save(store, WANTED, bundled(1)) == first
    assert list(store.keys()) == before


def test_builders_at_once_settle_on_one_whole_bundle(
    store: ObjectStore, bundled: Callable[..., Path], tmp_path: Path
) -> None:
    folders = [bundled(seed) for seed in (0, 1, 2, 3, 0, 1)]
    gate = Barrier(len(folders))

    def work(folder: Path) -> references.Stored:
        gate.wait()
        return save(store, WANTED, folder)

    with ThreadPoolExecutor(len(folders)) as pool:
        settled = list(pool.map(work, folders))
    assert len(set(map(repr, settled))) == 1
    assert find(store, WANTED) == settled[0]
    assert fetch(store, settled[0], tmp_path / "fetched").digest == settled[0].digest
    assert len([key for key in store.keys("references") if key.endswith(".safetensors")]) == 1


def test_an_interrupted_save_is_no_reference_and_is_taken_up_again(
    store: ObjectStore, bundled: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = bundled(0), type(store).create

    def create(self: ObjectStore, key: str, data: bytes) -> bool:
        if key.endswith("reference.json"):
            raise StorageError("the store went away")
        return real(self, key, data)

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "create", create)
        with pytest.raises(StorageError, match="went away"):
            save(store, WANTED, folder)
    assert find(store, WANTED) is None
    assert of_manifest(store, MANIFEST) == []
    assert fetch(store, save(store, WANTED, folder), tmp_path / "fetched").digest


def test_shadows_and_other_seeds_stand_side_by_side(store: ObjectStore, bundled: Callable[..., Path]) -> None:
    wanted = [
        WANTED,
        dataclasses.replace(WANTED, seed=1),
        dataclasses.replace(WANTED, left_out_sha256=rows_digest(range(50)), method={"name": "unsir", "seed": 1}),
    ]
    saved = [save(store, one, bundled(place)) for place, one in enumerate(wanted)]
    assert of_manifest(store, MANIFEST) == sorted(saved, key=lambda one: one.reference.key)


def test_a_removed_reference_leaves_nothing(store: ObjectStore, bundled: Callable[..., Path]) -> None:
    kept = save(store, dataclasses.replace(WANTED, seed=1), bundled(1))
    save(store, WANTED, bundled(0))
    assert remove(store, WANTED) == 4
    assert find(store, WANTED) is None
    assert of_manifest(store, MANIFEST) == [kept]
    assert not [key for key in store.keys("references") if WANTED.key in key]
    assert remove(store, WANTED) == 0


# What is not to be trusted


@pytest.fixture
def folder_store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "store"))


def test_a_bundle_of_other_data_or_another_network_is_refused(
    folder_store: ObjectStore, bundled: Callable[..., Path]
) -> None:
    with pytest.raises(ModelError, match="manifest_sha256 is unknown, the reference's aaa"):
        save(folder_store, WANTED, bundled(0, manifest_sha256=""))
    with pytest.raises(ModelError, match="architecture is lenet5, the reference's mlp"):
        save(folder_store, dataclasses.replace(WANTED, architecture="mlp"), bundled(0))
    assert list(folder_store.keys()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: b"{", "no reference's record"),
        (lambda values: b"[]", "no reference's record"),
        (lambda values: json.dumps({**values, "schema": "unlearning-reference/9"}).encode(), "this version reads"),
        (lambda values: json.dumps({**values, "bundle": "../x"}).encode(), "this version reads"),
        (
            lambda values: json.dumps({**values, "reference": {**values["reference"], "seed": 9}}).encode(),
            "is the record of",
        ),
        (
            lambda values: json.dumps({**values, "reference": {**values["reference"], "more": 9}}).encode(),
            "no reference's record",
        ),
    ],
)
def test_a_record_that_is_none_or_of_another_is_refused(
    folder_store: ObjectStore,
    bundled: Callable[..., Path],
    change: Callable[[dict[str, Any]], bytes],
    words: str,
) -> None:
    save(folder_store, WANTED, bundled(0))
    key = f"references/{WANTED.key}/reference.json"
    folder_store.put(key, change(json.loads(folder_store.get(key))))
    with pytest.raises(StorageError, match=words):
        find(folder_store, WANTED)


def test_a_bundle_that_is_not_the_one_of_the_record_is_refused(
    folder_store: ObjectStore, bundled: Callable[..., Path], tmp_path: Path
) -> None:
    saved, other = save(folder_store, WANTED, bundled(0)), bundled(1)
    for name in ("weights.safetensors", "card.json"):
        folder_store.upload(f"{saved.prefix}/{name}", other / name)
    with pytest.raises(ModelError, match="its record names"):
        fetch(folder_store, saved, tmp_path / "fetched")


def test_the_bank_is_read_without_torch() -> None:
    code = "import sys, unlearning.references; print('torch' in sys.modules)"
    sources = {**os.environ, "PYTHONPATH": str(Path(references.__file__).parents[1])}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, env=sources
    )
    assert ended.stdout.strip() == "False"
