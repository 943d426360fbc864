import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from unlearning.errors import ModelError, TrackingError
from unlearning.storage import open_store, upload_folder
from unlearning.tracking import Registry, Tracker


@pytest.fixture
def registry(tracker: Tracker) -> Registry:
    return Registry(tracker)


@pytest.fixture
def name() -> str:
    return f"digits-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "card.json").write_text("{}")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def register(registry: Registry, name: str, digest: str, **given: Any) -> int:
    defaults = {"bundle_uri": f"s3://bucket/models/{digest}", "weights_sha256": "w" + digest, "run_id": ""}
    return registry.register(name, digest=digest, **{**defaults, **given})


def test_one_content_is_one_version_however_often_it_is_registered(
    tracker: Tracker, registry: Registry, name: str
) -> None:
    run = tracker.open_run("p", "run-1", {}, {})
    assert register(registry, name, "d1", run_id=run, description="first", tags={"method": "unsir"}) == 1
    assert register(registry, name, "d2") == 2
    assert register(registry, name, "d1", tags={"method": "other", "later": "yes"}) == 1
    found = registry.version(name, "1")
    assert (found.name, found.version, found.digest) == (name, 1, "d1")
    assert found.bundle_uri == found.source == "s3://bucket/models/d1"
    assert found.tags["method"] == "unsir", "what was said first stands"
    assert found.tags["later"] == "yes"
    assert found.tags["unlearning.weights_sha256"] == "wd1"
    assert found.aliases == ()
    assert registry.resolve(f"models:/{name}/2").digest == "d2"
    shown = tracker.client.get_model_version(name, "1")
    assert (shown.run_id, shown.description) == (run, "first")


def test_eight_writers_of_one_content_agree_on_one_version(tracker: Tracker, name: str) -> None:
    register(Registry(tracker), name, "d0")

    def write(_: int) -> int:
        own = Tracker(tracker.tracking_uri, tracker.experiment)
        return register(Registry(own), name, "d1")

    with ThreadPoolExecutor(8) as pool:
        numbers = set(pool.map(write, range(8)))
    kept = [int(item.version) for item in tracker.client.search_model_versions(f"name = '{name}'")]
    assert len(numbers) == 1
    assert sorted(kept) == sorted([1, *numbers])


def test_an_alias_moves_and_is_read_back(registry: Registry, name: str) -> None:
    register(registry, name, "d1")
    register(registry, name, "d2")
    registry.set_alias(name, "production", 1)
    registry.set_alias(name, "candidate", 2)
    registry.set_alias(name, "champion", 1)
    assert registry.version(name, "production").version == 1
    assert registry.version(name, "1").aliases == ("champion", "production")
    registry.set_alias(name, "production", 2)
    assert registry.resolve(f"models:/{name}@production").version == 2
    assert registry.version(name, "2").aliases == ("candidate", "production")


def test_an_alias_that_another_writer_moves_meanwhile_is_reported(
    embedded: Tracker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded.prepare()
    registry = Registry(embedded)
    register(registry, name, "d1")
    register(registry, name, "d2")
    true = embedded.client.set_registered_model_alias

    def raced(name: str, alias: str, version: str) -> None:
        true(name, alias, version)
        true(name, alias, "2")

    monkeypatch.setattr(embedded.client, "set_registered_model_alias", raced)
    with pytest.raises(TrackingError, match="set to version 1 but points at 2"):
        registry.set_alias(name, "production", 1)


def test_unknown_names_aliases_and_versions_name_what_there_is(registry: Registry, name: str) -> None:
    with pytest.raises(ModelError, match=f'no registered model "{name}"'):
        registry.version(name, "production")
    register(registry, name, "d1")
    registry.set_alias(name, "production", 1)
    for wanted in ("staging", "7"):
        with pytest.raises(ModelError, match=f'has no "{wanted}": its aliases are production, its versions 1$'):
            registry.version(name, wanted)
    with pytest.raises(ModelError, match='has no "7"'):
        registry.set_alias(name, "production", 7)
    assert registry.version(name, "production").version == 1


@pytest.mark.parametrize("uri", ["models:/", "models:/a", "models:/a/b", "models:/m@x/1", "s3://a/b", "models:/a@b@c"])
def test_other_addresses_name_no_model(embedded: Tracker, uri: str) -> None:
    with pytest.raises(ModelError, match=r"write models:/NAME@ALIAS or models:/NAME/3"):
        Registry(embedded).resolve(uri)


@pytest.mark.parametrize("bad", ["", "a/b", "a'b", "a:b", "a@b"])
def test_a_name_that_no_address_could_hold_is_refused(embedded: Tracker, bad: str) -> None:
    with pytest.raises(TrackingError, match="cannot be called"):
        register(Registry(embedded), bad, "d1")


def test_a_bundle_in_a_folder_is_fetched_from_there(embedded: Tracker, name: str, bundle: Path, tmp_path: Path) -> None:
    embedded.prepare()
    registry = Registry(embedded)
    store = open_store(str(tmp_path / "store"))
    uri = upload_folder(store, "models/d1", bundle)
    register(registry, name, "d1", bundle_uri=uri)
    register(registry, name, "d2", bundle_uri="models/d1")
    came = registry.fetch(f"models:/{name}/1", tmp_path / "came")
    assert content(came) == content(bundle)
    came = registry.fetch(f"models:/{name}/2", tmp_path / "again", store_uri=store.uri)
    assert content(came) == content(bundle)


def test_a_bundle_in_s3_is_fetched_from_there(
    registry: Registry, name: str, bundle: Path, s3: str, tmp_path: Path
) -> None:
    uri = upload_folder(open_store(f"s3://{s3}/deep/prefix"), "models/d1", bundle)
    register(registry, name, "d1", bundle_uri=uri)
    registry.set_alias(name, "production", 1)
    assert content(registry.fetch(f"models:/{name}@production", tmp_path / "came")) == content(bundle)


def test_a_server_gets_the_files_of_a_local_bundle(served: Tracker, name: str, bundle: Path, tmp_path: Path) -> None:
    served.prepare()
    registry = Registry(served)
    run = served.open_run("p", "run-1", {}, {})
    local = {"bundle_uri": bundle.as_uri(), "run_id": run}
    with pytest.raises(TrackingError, match="accepts no local address"):
        register(registry, name, "d1", **local)
    assert register(registry, name, "d1", folder=bundle, **local) == 1
    found = registry.version(name, "1")
    assert found.bundle_uri == ""
    assert found.source.endswith(f"{run}/artifacts/model")
    into = tmp_path / "came"
    into.mkdir()
    (into / "card.json").write_text("an older one")
    assert content(registry.fetch(f"models:/{name}/1", into)) == content(bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "came"], "nothing else is left"


def test_a_content_is_removed_with_all_its_versions_and_files_and_an_alias_keeps_it(
    tracker: Tracker, name: str, bundle: Path
) -> None:
    tracker.prepare()
    registry = Registry(tracker)
    run = tracker.open_run("p", f"run-{name}", {}, {})
    digest, kept = f"d-{name}", f"k-{name}"
    local = {"bundle_uri": bundle.as_uri(), "run_id": run, "folder": bundle}
    register(registry, name, digest, **(local if tracker.is_server else {}))
    register(registry, name, kept)
    assert registry.holders(digest) == [name]
    there = registry.copies(name, digest)
    assert there[0] == f"models:/{name}/1"
    assert len(there) == (3 if tracker.is_server else 1)
    registry.set_alias(name, "champion", 1)
    with pytest.raises(TrackingError, match="take it off first"):
        registry.remove(name, digest)
    registry.set_alias(name, "champion", 2)
    registry.set_alias(name, "candidate", 1)
    assert registry.remove(name, digest) == 1
    assert registry.remove(name, digest) == 0
    assert registry.copies(name, digest) == registry.holders(digest) == []
    if tracker.is_server:
        assert tracker.client.list_artifacts(run, "model") == []
    assert registry.copies(name, kept) == [f"models:/{name}/2"]


def test_a_version_that_others_registered_is_fetched_from_its_source(
    tracker: Tracker, registry: Registry, name: str, bundle: Path, tmp_path: Path
) -> None:
    run = tracker.client.create_run(tracker.experiment_id).info
    tracker.client.log_artifacts(run.run_id, str(bundle), "anything")
    tracker.client.create_registered_model(name)
    tracker.client.create_model_version(name, f"{run.artifact_uri}/anything", run.run_id)
    assert registry.version(name, "1").digest == ""
    assert content(registry.fetch(f"models:/{name}/1", tmp_path / "came")) == content(bundle)


def test_a_version_whose_files_are_gone_is_reported(embedded: Tracker, name: str, tmp_path: Path) -> None:
    embedded.prepare()
    run = embedded.client.create_run(embedded.experiment_id).info
    embedded.client.create_registered_model(name)
    embedded.client.create_model_version(name, f"{run.artifact_uri}/absent", run.run_id)
    with pytest.raises((ModelError, TrackingError), match=f"models:/{name}/1"):
        Registry(embedded).fetch(f"models:/{name}/1", tmp_path / "came")
