"""What differs between S3 servers: conditions, locks, certificates, the shape of requests."""

import hashlib
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from support.s3 import client, require_conditions
from support.tls import certificate

from unlearning.errors import StorageError
from unlearning.settings import Settings
from unlearning.storage import Listed, open_store
from unlearning.storage import s3 as module
from unlearning.storage.s3 import S3Store


@pytest.fixture(autouse=True)
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known about any server yet."""
    monkeypatch.setattr(module, "_honest", set())


def sent(store: Any, operation: str, kinds: tuple[str, ...] = ("usual", "once")) -> list[Any]:
    """The requests of an operation, as they go out."""
    seen: list[Any] = []
    for kind in kinds:
        store._client(kind).meta.events.register(
            f"before-send.s3.{operation}", lambda request, **_: seen.append(request)
        )
    return seen


def deaf(store: Any) -> None:
    """Makes the server one that does not know If-None-Match: the header never reaches it."""

    def drop(params: Any, **_: Any) -> None:
        params["headers"].pop("If-None-Match", None)

    store._client("once").meta.events.register("before-call.s3.PutObject", drop)


# Conditions


def test_a_server_that_ignores_the_condition_is_found_out_at_the_first_creation(s3: str) -> None:
    store: Any = open_store(f"s3://{s3}/p")
    deaf(store)
    for key in ("ledger/1", "ledger/2"):
        with pytest.raises(StorageError, match=r"If-None-Match\): use a server with conditional writes"):
            store.create(key, b"x")
    store.put("models/1", b"plain writes need no condition")
    assert store.get("models/1") == b"plain writes need no condition"


def test_a_good_server_is_asked_twice_once(s3: str) -> None:
    store: Any = open_store(f"s3://{s3}/p")
    requests = sent(store, "PutObject", ("once",))
    assert [store.create(f"ledger/{number}", b"x") for number in range(3)] == [True] * 3
    assert len(requests) == 4
    assert all(request.headers["If-None-Match"] in (b"*", "*") for request in requests)
    again: Any = open_store(f"s3://{s3}/p")
    requests = sent(again, "PutObject", ("once",))
    assert again.create("ledger/3", b"x")
    assert len(requests) == 1, "known from before in this process"


def test_a_refused_creation_is_proof_enough(s3: str) -> None:
    store: Any = open_store(f"s3://{s3}/p")
    store.put("ledger/1", b"x")
    assert store.create("ledger/1", b"y") is False
    requests = sent(store, "PutObject", ("once",))
    assert store.create("ledger/2", b"x") is True
    assert len(requests) == 1


def test_an_answer_that_does_not_come_is_no_verdict_about_the_server(s3: str) -> None:
    from botocore.exceptions import ReadTimeoutError

    store: Any = open_store(f"s3://{s3}/p")
    answers: list[str] = []

    def lose(http_response: Any = None, **_: Any) -> None:
        answers.append("came" if len(answers) != 1 else "lost")
        if answers[-1] == "lost":
            raise ReadTimeoutError(endpoint_url="http://somewhere")

    store._client("once").meta.events.register("before-parse.s3.PutObject", lose)
    assert store.create("ledger/1", b"x") is True
    assert answers == ["came", "lost"]
    assert store.create("ledger/2", b"x") is True
    assert answers == ["came", "lost", "came", "came"]


# Locks


@pytest.fixture
def locking(s3: str) -> str:
    """A bucket that can lock objects."""
    name = f"{s3}-lock"
    client().create_bucket(Bucket=name, ObjectLockEnabledForBucket=True)
    require_conditions(name)
    return name


def test_a_bucket_with_versions_is_held_to_the_condition_too(s3: str) -> None:
    """Ceph 16 heeds it without versions and ignores it with: then nothing may be created there."""
    client().put_bucket_versioning(Bucket=s3, VersioningConfiguration={"Status": "Enabled"})
    store = open_store(f"s3://{s3}")
    client().put_object(Bucket=s3, Key="probe", Body=b"x")
    try:
        client().put_object(Bucket=s3, Key="probe", Body=b"x", IfNoneMatch="*")
    except ClientError:
        assert store.create("ledger/1", b"x") is True
        assert store.create("ledger/1", b"x") is False
    else:
        with pytest.raises(StorageError, match="in buckets without versions only"):
            store.create("ledger/1", b"x")


def test_evidence_alone_is_locked_and_for_as_long_as_was_said(locking: str) -> None:
    store = open_store(f"s3://{locking}/p", lock_days=30)
    for key in ("evidence/ledger/1", "models/1", "requests/1", "evidences/1"):
        assert store.create(key, b"x")
    store.put("checkpoints/1", b"x")
    heads = {
        key: client().head_object(Bucket=locking, Key=f"p/{key}")
        for key in ("evidence/ledger/1", "models/1", "requests/1", "evidences/1", "checkpoints/1")
    }
    locked = heads.pop("evidence/ledger/1")
    assert locked["ObjectLockMode"] == "GOVERNANCE"
    left = locked["ObjectLockRetainUntilDate"] - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < left <= timedelta(days=30)
    assert all("ObjectLockMode" not in head for head in heads.values())
    with pytest.raises(StorageError, match="object lock"):
        store.delete("evidence")
    assert store.get("evidence/ledger/1") == b"x"
    assert store.delete("models") == 1, "what is not locked goes, with every version"
    left_over = client().list_object_versions(Bucket=locking, Prefix="p/models/")
    assert "Versions" not in left_over
    assert "DeleteMarkers" not in left_over


def test_without_days_nothing_is_locked(locking: str) -> None:
    store = open_store(f"s3://{locking}")
    assert store.create("evidence/1", b"x")
    assert store.delete("evidence") == 1


def test_a_bucket_that_cannot_lock_says_what_to_do(s3: str) -> None:
    store = open_store(f"s3://{s3}", lock_days=1)
    with pytest.raises(StorageError, match=r"cannot lock objects.*UNLEARN_EVIDENCE_LOCK_DAYS"):
        store.create("evidence/1", b"x")
    assert store.create("models/1", b"x")


def test_the_days_come_from_the_environment(locking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from unlearning_components.surroundings import store

    monkeypatch.setenv("UNLEARN_STORE", f"s3://{locking}")
    monkeypatch.setenv("UNLEARN_EVIDENCE_LOCK_DAYS", "7")
    assert Settings().evidence_lock_days == 7
    assert store().create("evidence/1", b"x")
    assert client().head_object(Bucket=locking, Key="evidence/1")["ObjectLockMode"] == "GOVERNANCE"


# Certificates


@contextmanager
def over_tls(folder: Path) -> Iterator[tuple[str, Path]]:
    """The address of an S3 server with a certificate of its own, and the file to trust."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    file, context = certificate(folder)
    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("localhost", 0, application, threaded=True, ssl_context=context)
    server.log = lambda *_, **__: None  # type: ignore[method-assign]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"https://localhost:{server.server_port}", file
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def test_everything_works_over_tls_with_a_certificate_of_ones_own(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with over_tls(tmp_path) as (address, file):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        with pytest.raises(StorageError, match="certificate is not trusted: set AWS_CA_BUNDLE"):
            open_store(f"s3://{s3}/p").check()
        monkeypatch.setenv("AWS_CA_BUNDLE", str(file))
        client().create_bucket(Bucket=s3)
        store: Any = open_store(f"s3://{s3}/p")
        store.check()
        content = hashlib.shake_256(b"seed").digest(9 << 20)
        (tmp_path / "weights").write_bytes(content)
        store.upload("m/weights", tmp_path / "weights")
        store.download("m/weights", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == content
        assert client().head_object(Bucket=s3, Key="p/m/weights")["ETag"].endswith('-2"'), "it went in two parts"
        assert store.create("ledger/1", b"x") is True
        assert store.create("ledger/1", b"x") is False
        assert store.delete("m") == 1
        assert list(store.keys()) == ["ledger/1"]


# The shape of requests


def test_other_servers_get_plain_requests_by_path_and_no_checksum_that_they_may_not_know(
    s3: str, tmp_path: Path
) -> None:
    store: Any = open_store(f"s3://{s3}/p")
    puts, parts = sent(store, "PutObject"), sent(store, "UploadPart")
    store.put("a", b"x")
    store.create("b", b"x")
    (tmp_path / "large").write_bytes(bytes(9 << 20))
    store.upload("c", tmp_path / "large")
    assert len(puts) >= 2
    assert len(parts) == 2
    for request in [*puts, *parts]:
        assert f"/{s3}/p/" in request.url, "the bucket stands in the path, not in the host"
        names = {name.lower() for name in request.headers}
        assert not {name for name in names if name.startswith("x-amz-checksum") or name == "x-amz-trailer"}
        assert b"aws-chunked" not in bytes(str(request.headers.get("Content-Encoding", "")), "ascii")


def test_amazon_gets_checksums(s3: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is stopped before it leaves."""
    from botocore.awsrequest import AWSResponse

    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    store: Any = open_store(f"s3://{s3}/p")
    seen: list[Any] = []

    def stop(request: Any, **_: Any) -> Any:
        seen.append(request)
        answer = AWSResponse(request.url, 200, {}, None)
        answer._content = b""
        return answer

    store._client().meta.events.register("before-send.s3.PutObject", stop)
    store.put("a", b"x")
    (request,) = seen
    assert request.url.startswith(f"https://{s3}.s3.")
    assert "checksum" in str(request.headers.get("X-Amz-Trailer")) or "x-amz-checksum" in str(request.headers).lower()


def test_a_listing_comes_page_by_page(s3: str) -> None:
    """1,100 keys in test_stores.py; here the pages themselves, three keys at a time."""
    store: Any = open_store(f"s3://{s3}/p")
    for number in range(7):
        store.put(f"many/{number}", b"x")
    asked = sent(store, "ListObjectsV2")

    def small(params: Any, **_: Any) -> None:
        params["MaxKeys"] = 3

    store._client().meta.events.register("before-parameter-build.s3.ListObjectsV2", small)
    assert list(store.keys()) == [f"many/{number}" for number in range(7)]
    assert len(asked) == 3


# Credentials


def test_keys_that_end_are_replaced_while_the_store_is_in_use(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with roles and secrets that a cluster renews: a run outlives the keys that it began with."""
    if os.environ.get("UNLEARN_TEST_S3"):
        pytest.skip("another server knows only its own keys")
    issuer = tmp_path / "issuer.py"
    issuer.write_text(
        "import datetime, json, pathlib\n"
        f"issued = pathlib.Path({str(tmp_path / 'issued')!r})\n"
        "number = int(issued.read_text()) + 1 if issued.exists() else 1\n"
        "issued.write_text(str(number))\n"
        "ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=5)\n"
        "keys = {'AccessKeyId': f'KEY{number}', 'SecretAccessKey': 's', 'SessionToken': f'token-{number}'}\n"
        "print(json.dumps({'Version': 1, **keys, 'Expiration': ends.isoformat()}))\n"
    )
    (tmp_path / "config").write_text(f"[default]\ncredential_process = {sys.executable} {issuer}\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    store: Any = open_store(f"s3://{s3}/p")
    requests = sent(store, "PutObject", ("usual",))
    for number in range(3):
        store.put(f"models/{number}", b"x")
    signed = [re.search(r"Credential=(KEY\d+)/", str(request.headers["Authorization"])) for request in requests]
    keys = [found[1] for found in signed if found]
    assert len(keys) == 3
    assert len(set(keys)) == 3, "keys that end within minutes are renewed before each use"


def test_an_object_whose_connection_breaks_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, asked = b"a picture" * 1000, []

    class Breaking(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers["If-Match"])
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.send_header("ETag", '"tag"')
            self.end_headers()
            self.wfile.write(whole if len(asked) > broken else whole[:100])
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Breaking) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, "us-east-1")
        broken = 2
        assert S3Store("bucket").read(Listed("one", len(whole), '"tag"')) == whole
        assert asked == ['"tag"'] * 3
        broken, asked[:] = 10, []
        with pytest.raises(StorageError, match=r"cannot read s3://bucket/one .*no answer"):
            S3Store("bucket").read(Listed("one", len(whole), '"tag"'))
        assert len(asked) == 3
        server.shutdown()
