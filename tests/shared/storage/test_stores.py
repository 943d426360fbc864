import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.s3 import client, require_conditions

from unlearning.errors import StorageError
from unlearning.storage import FolderStore, ObjectStore, download_folder, open_store, split, upload_folder
from unlearning.storage.s3 import S3Store

HOSTILE = [
    "",
    "/etc/passwd",
    "a/../b",
    "..",
    "./a",
    "a//b",
    "a/",
    "a\x00b",
    "a\\b",
    "a\nb",
    "\ud800",
    "x" * 251,
    "a/" * 500 + "b",
    ".writing-x",
]


@pytest.fixture(params=["folder", "bucket", "versioned bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """The same contract everywhere."""
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    bucket = request.getfixturevalue("s3")
    if request.param == "versioned bucket":
        client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    return open_store(f"s3://{bucket}/some/prefix")


@pytest.fixture
def s3_store(s3: str) -> ObjectStore:
    return open_store(f"s3://{s3}/some/prefix")


@pytest.fixture
def heeding(store: ObjectStore) -> None:
    """The store heeds create-if-absent; see `require_conditions`."""
    if isinstance(store, S3Store):
        require_conditions(store.uri.split("/")[2])


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_what_was_put_is_got_and_overwritten_whole(store: ObjectStore) -> None:
    store.put("models/3f/card.json", b"first, longer")
    store.put("models/3f/card.json", b"second")
    assert store.get("models/3f/card.json") == b"second"
    store.put("empty", b"")
    assert store.get("empty") == b""


def test_an_absent_object_is_an_error_that_names_it(store: ObjectStore, tmp_path: Path) -> None:
    assert not store.exists("a/b")
    with pytest.raises(StorageError, match=r"no .*object.*check the key"):
        store.get("a/b")
    with pytest.raises(StorageError, match="a/b"):
        store.download("a/b", tmp_path / "b")
    assert not (tmp_path / "b").exists()
    store.put("a/bc", b"x")
    assert not store.exists("a/b"), "a longer key with the same beginning is another key"
    assert not store.exists("a"), "a folder is no object"


@pytest.mark.usefixtures("heeding")
def test_create_makes_an_object_once_and_never_changes_it(store: ObjectStore) -> None:
    assert store.create("ledger/1", b"one") is True
    assert store.create("ledger/1", b"two") is False
    assert store.create("ledger/1", b"one") is False, "equal content, but an earlier call wrote it"
    assert store.get("ledger/1") == b"one"


@pytest.mark.usefixtures("heeding")
def test_of_eight_creators_at_once_exactly_one_wins(store: ObjectStore) -> None:
    for trial in range(3):
        gate = Barrier(8)

        def claim(number: int, key: str = f"ledger/{trial}", gate: Barrier = gate) -> bool:
            gate.wait()
            return store.create(key, b"writer %d" % number)

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(claim, range(8)))
        assert won.count(True) == 1
        assert store.get(f"ledger/{trial}") == b"writer %d" % won.index(True)


def test_keys_come_sorted_and_a_prefix_ends_at_a_slash(store: ObjectStore) -> None:
    for key in ["b", "a/c", "a.b", "a/b/d", "ab", "a-"]:
        store.put(key, b"x")
    assert list(store.keys()) == ["a-", "a.b", "a/b/d", "a/c", "ab", "b"]
    assert list(store.keys("a")) == ["a/b/d", "a/c"]
    assert list(store.keys("a/")) == ["a/b/d", "a/c"]
    assert list(store.keys("a/c")) == ["a/c"]
    assert list(store.keys("nothing")) == []


def test_what_was_listed_is_read_as_long_as_it_is_the_same(store: ObjectStore) -> None:
    for key, data in {"set/a": b"four", "set/b": b"", "sets": b"no"}.items():
        store.put(key, data)
    first, second = store.listed("set")
    assert [(one.key, one.size) for one in (first, second)] == [("set/a", 4), ("set/b", 0)]
    assert store.read(first) == b"four"
    assert store.read(second) == b""
    assert list(store.listed("set")) == [first, second]
    store.put("set/a", b"FOUR")
    with pytest.raises(StorageError, match=r"set/a was changed since it was listed: list it again"):
        store.read(first)
    assert store.read(next(store.listed("set/a"))) == b"FOUR"
    store.delete("set")
    with pytest.raises(StorageError, match="set/b"):
        store.read(second)


@pytest.mark.parametrize("store", ["folder", "versioned bucket"], indirect=True)
def test_more_keys_than_one_page_are_listed_and_deleted(store: ObjectStore) -> None:
    wanted = [f"many/{number:04}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b"x"), wanted))
    store.put("many2", b"kept")
    assert list(store.keys("many")) == wanted
    assert store.delete("many") == 1100
    assert list(store.keys()) == ["many2"]


def test_delete_takes_the_key_itself_and_all_beneath_but_no_namesake(store: ObjectStore) -> None:
    for key in ["model/a/weights", "model/a/card", "model/ab", "model/b"]:
        store.put(key, b"x")
    assert store.delete("model/a") == 2
    assert store.delete("model/b") == 1
    assert store.delete("model/b") == 0
    assert list(store.keys()) == ["model/ab"]
    with pytest.raises(StorageError, match="refused to delete all"):
        store.delete("")


def test_a_large_file_comes_back_as_it_went(store: ObjectStore, tmp_path: Path) -> None:
    content = hashlib.shake_256(b"seed").digest(9 << 20)
    (tmp_path / "weights").write_bytes(content)
    store.upload("m/weights", tmp_path / "weights")
    store.download("m/weights", tmp_path / "deep" / "er" / "copy")
    assert (tmp_path / "deep" / "er" / "copy").read_bytes() == content
    assert [path.name for path in (tmp_path / "deep" / "er").iterdir()] == ["copy"]


def test_uploading_a_file_that_is_not_there_says_so(store: ObjectStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        store.upload("m/weights", tmp_path / "absent")
    assert not store.exists("m/weights")


def test_hostile_keys_are_refused_by_every_operation(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    operations: dict[str, Callable[[str], object]] = {
        "get": store.get,
        "put": lambda key: store.put(key, b"x"),
        "create": lambda key: store.create(key, b"x"),
        "exists": store.exists,
        "upload": lambda key: store.upload(key, tmp_path / "file"),
        "download": lambda key: store.download(key, tmp_path / "copy"),
        "keys": lambda key: list(store.keys(key)),
        "delete": store.delete,
    }
    for key in HOSTILE:
        for name, operation in operations.items():
            if name in ("keys", "delete") and key in ("", "a/"):
                continue  # lawful prefixes
            with pytest.raises(StorageError, match=r"^the key ") as caught:
                operation(key)
            assert "\n" not in str(caught.value)
    assert list(store.keys()) == []


SEGMENT = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="/\\"), min_size=1, max_size=20)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(segments=st.lists(SEGMENT.filter(lambda s: s not in (".", "..")), min_size=1, max_size=4), data=st.binary())
def test_any_lawful_key_round_trips(store: ObjectStore, segments: list[str], data: bytes) -> None:
    key = "/".join(["x", hashlib.sha256("/".join(segments).encode()).hexdigest()[:12], *segments])
    store.put(key, data)
    assert store.get(key) == data
    assert store.exists(key)
    assert key in list(store.keys())
    assert list(store.keys(key)) == [key]
    assert store.delete(key) >= 1
    assert not store.exists(key)


@pytest.mark.usefixtures("heeding")
def test_a_folder_goes_up_and_comes_down_with_its_card_last(store: ObjectStore, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    (folder / "more").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"w")
    (folder / "more" / "notes").write_bytes(b"n")
    with pytest.raises(StorageError, match=r'has no "card\.json"'):
        upload_folder(store, "models/1", folder)
    assert list(store.keys()) == []
    (folder / "card.json").write_bytes(b"{}")
    uri = upload_folder(store, "models/1", folder)
    assert uri == f"{store.uri}/models/1"
    assert upload_folder(store, "models/1", folder) == uri, "a repeated upload changes nothing"
    where, key = split(uri)
    came = download_folder(open_store(where), key, tmp_path / "came")
    assert sorted(p.relative_to(came).as_posix() for p in came.rglob("*") if p.is_file()) == [
        "card.json",
        "more/notes",
        "weights.safetensors",
    ]
    (folder / "card.json").write_bytes(b'{"other": 1}')
    (folder / "weights.safetensors").write_bytes(b"other")
    with pytest.raises(StorageError, match=r"already holds another card\.json"):
        upload_folder(store, "models/1", folder)
    assert store.get("models/1/weights.safetensors") == b"w", "a refused upload touches nothing"
    with pytest.raises(StorageError, match="nothing at"):
        download_folder(store, "models/2", tmp_path / "none")


def test_a_link_in_an_uploaded_folder_is_refused(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "card.json").write_text("{}")
    (tmp_path / "bundle" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(StorageError, match="not a plain file"):
        upload_folder(store, "m", tmp_path / "bundle")
    assert list(store.keys()) == []


def test_check_passes_on_a_good_store_and_writes_nothing(store: ObjectStore) -> None:
    store.check()
    assert list(store.keys()) == []
    if isinstance(store, FolderStore):
        assert list(Path(store.uri.removeprefix("file://")).parent.iterdir()) == []


# Folders


def test_nothing_outside_the_folder_is_read_or_written(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    store = open_store(str(tmp_path / "store"))
    store.put("a/kept", b"x")
    (tmp_path / "store" / "way").symlink_to(outside)
    (tmp_path / "store" / "a" / "file").symlink_to(outside / "secret")
    for operation in (
        lambda: store.get("way/secret"),
        lambda: store.get("a/file"),
        lambda: store.put("way/new", b"x"),
        lambda: store.put("a/file", b"x"),
        lambda: store.create("way/new", b"x"),
        lambda: store.delete("way"),
        lambda: list(store.keys("way")),
    ):
        with pytest.raises(StorageError, match="symbolic link"):
            operation()
    assert list(store.keys()) == ["a/kept"]
    assert store.delete("a") == 1
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert (outside / "secret").read_text() == "secret"


def test_a_crashed_write_is_never_an_object_and_goes_with_a_deletion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", crash)
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        for act in (store.put, store.create):
            with pytest.raises(KeyboardInterrupt):
                act("a/b", b"half")
    store.put("a/c", b"x")
    assert len(list((tmp_path / "a").iterdir())) == 3
    assert list(store.keys()) == ["a/c"]
    assert not store.exists("a/b")
    assert store.delete("a/b") == 0
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["c"], "the unfinished files of a/b are gone"
    assert store.delete("a/c") == 1
    assert list(tmp_path.iterdir()) == [], "empty folders go too"


def test_an_object_beneath_an_object_is_refused_in_a_folder(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put("a", b"x")
    for act in (store.put, store.create):
        with pytest.raises(StorageError, match="cannot lie beneath another"):
            act("a/b", b"x")
    store.put("c/d", b"x")
    with pytest.raises(StorageError, match="objects lie beneath this key"):
        store.put("c", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]


def test_a_folder_that_cannot_be_used_fails_its_check(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="set UNLEARN_STORE"):
        open_store(str(tmp_path / "file" / "store")).check()


def test_addresses_open_the_store_they_name(tmp_path: Path) -> None:
    spaced = tmp_path / "a b"
    store = open_store(str(spaced))
    store.put("k", b"x")
    assert store.uri == f"file://{tmp_path}/a%20b"
    assert open_store(store.uri).get("k") == b"x"
    assert split(f"{store.uri}/m%20n") == (store.uri, "m n")
    assert split("s3://bucket/models/3f/") == ("s3://bucket/models", "3f")
    assert split("store/models/3f") == ("store/models", "3f")
    for whole in ("s3://bucket", "file:///", "/x", "x"):
        with pytest.raises(StorageError, match="whole store"):
            split(whole)


@pytest.mark.parametrize(
    "uri",
    ["", "gs://bucket/x", "http://user:word@host/x", "file://host/x", "s3://", "s3://key:word@bucket/x", "s3://b/../x"],
)
def test_other_addresses_are_refused_without_their_secrets(uri: str) -> None:
    with pytest.raises(StorageError) as caught:
        open_store(uri)
    assert "word" not in str(caught.value)
    assert "\n" not in str(caught.value)


# S3


def test_delete_leaves_no_version_marker_or_upload(s3: str) -> None:
    boto = client()
    boto.put_bucket_versioning(Bucket=s3, VersioningConfiguration={"Status": "Enabled"})
    store = open_store(f"s3://{s3}/p")
    for content in (b"1", b"2", b"3"):
        store.put("m/a", content)
    store.put("m/b", b"1")
    store.put("mm", b"kept")
    boto.delete_object(Bucket=s3, Key="p/m/a")
    boto.put_object(Bucket=s3, Key="p/m//odd", Body=b"a key that no store would write")
    boto.put_object(Bucket=s3, Key="p/m/", Body=b"")
    boto.create_multipart_upload(Bucket=s3, Key="p/m/large")
    boto.create_multipart_upload(Bucket=s3, Key="p/mm2")
    assert list(store.keys("m/b")) == ["m/b"]
    assert not store.exists("m/a")
    assert store.delete("m") == 7, "three versions and a marker of a, b, the odd key, the folder mark"
    left = boto.list_object_versions(Bucket=s3)
    assert [item["Key"] for item in left["Versions"]] == ["p/mm"]
    assert "DeleteMarkers" not in left
    assert [item["Key"] for item in boto.list_multipart_uploads(Bucket=s3)["Uploads"]] == ["p/mm2"]


def test_a_delete_that_the_server_answers_with_errors_fails(s3_store: Any) -> None:
    s3_store.put("m/a", b"x")
    s3_store._client().meta.events.register(
        "after-call.s3.DeleteObjects",
        lambda parsed, **_: parsed.update(Errors=[{"Key": "m/a", "Code": "AccessDenied"}]),
    )
    with pytest.raises(StorageError, match=r"cannot delete 1 versions.*AccessDenied.*object lock"):
        s3_store.delete("m")


def lose_replies(store: Any, count: int) -> list[str]:
    """The server does what is asked, but the first `count` answers to PUT never arrive."""
    from botocore.exceptions import ReadTimeoutError

    lost: list[str] = []

    def lose(http_response: Any = None, **_: Any) -> None:
        if len(lost) < count:
            lost.append("lost")
            raise ReadTimeoutError(endpoint_url="http://somewhere")

    store._client("once").meta.events.register("before-parse.s3.PutObject", lose)
    return lost


def test_a_lost_reply_to_our_own_write_counts_as_ours(s3_store: Any) -> None:
    lost = lose_replies(s3_store, 1)
    assert s3_store.create("ledger/1", b"one") is True
    assert lost == ["lost"]
    assert s3_store.create("ledger/1", b"one") is False


def test_a_lost_reply_to_a_refused_write_counts_as_theirs(s3_store: Any) -> None:
    s3_store.put("ledger/1", b"one")
    lost = lose_replies(s3_store, 1)
    assert s3_store.create("ledger/1", b"one") is False, "the same bytes, but another writer"
    assert lost == ["lost"]


@pytest.mark.parametrize(("status", "code"), [(409, "ConditionalRequestConflict"), (503, "SlowDown")])
def test_a_conflict_or_a_busy_server_is_tried_again(s3_store: Any, status: int, code: str) -> None:
    from botocore.awsrequest import AWSResponse

    answers: list[int] = []

    def refuse(request: Any, **_: Any) -> Any:
        if len(answers) < 2:
            answers.append(status)
            body = f"<Error><Code>{code}</Code></Error>".encode()
            answer = AWSResponse(request.url, status, {}, None)
            answer._content = body
            return answer
        return None

    s3_store._client("once").meta.events.register("before-send.s3.PutObject", refuse)
    assert s3_store.create("ledger/1", b"one") is True
    assert answers == [status, status]
    assert s3_store.get("ledger/1") == b"one"


def test_a_listing_with_a_climbing_key_is_not_downloaded(s3: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3}")
    client().put_object(Bucket=s3, Key="m/../../evil", Body=b"x")
    with pytest.raises(StorageError, match=r'"\.\."'):
        download_folder(store, "m", tmp_path / "deep" / "into")
    assert list(tmp_path.rglob("evil")) == []


def test_a_missing_bucket_is_named_with_what_to_do(s3: str, tmp_path: Path) -> None:
    store = open_store("s3://no-such-bucket-here/x")
    (tmp_path / "file").write_bytes(b"x")
    for operation in (
        store.check,
        lambda: store.get("a"),
        lambda: store.put("a", b"x"),
        lambda: store.create("a", b"x"),
        lambda: store.exists("a"),
        lambda: list(store.keys()),
        lambda: store.delete("a"),
        lambda: store.upload("a", tmp_path / "file"),
    ):
        with pytest.raises(StorageError) as caught:
            operation()
        assert re.search(
            r"no-such-bucket-here.* at https?://[a-z0-9.]+:\d+: there is no bucket .*: create it or change",
            str(caught.value),
        )


def test_a_dead_endpoint_is_reported_soon_and_without_secrets(monkeypatch: pytest.MonkeyPatch, s3: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://someone:hidden-word@127.0.0.1:{closed_port()}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-word")
    store = open_store(f"s3://{s3}")
    start = time.monotonic()
    with pytest.raises(StorageError, match=r"no answer .*AWS_ENDPOINT_URL_S3") as caught:
        store.check()
    assert time.monotonic() - start < 15
    assert "hidden-word" not in str(caught.value)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_silent_endpoint_is_reported_within_fifteen_seconds(
    monkeypatch: pytest.MonkeyPatch, s3: str, silent_port: int
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent_port}")
    start = time.monotonic()
    with pytest.raises(StorageError, match="no answer"):
        open_store(f"s3://{s3}").check()
    assert time.monotonic() - start < 15


def test_missing_access_keys_are_reported(monkeypatch: pytest.MonkeyPatch, s3: str, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StorageError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        open_store(f"s3://{s3}").check()


def test_the_client_suits_the_server_it_talks_to(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere: Any = open_store(f"s3://{s3}")
    config = elsewhere._client().meta.config
    assert config.s3["addressing_style"] == "path"
    assert config.request_checksum_calculation == "when_required"
    assert config.retries["total_max_attempts"] == 5
    assert elsewhere._client("once").meta.config.retries["total_max_attempts"] == 1
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    amazon: Any = open_store(f"s3://{s3}")
    assert "path" not in str(amazon._client().meta.config.s3)
    assert amazon._client().meta.config.request_checksum_calculation == "when_supported"
