"""Objects in a bucket of any S3 server that honours conditional writes."""

import base64
import hashlib
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from unlearning.errors import StorageError
from unlearning.storage.keys import Listed, checked_key, checked_prefix, is_beneath, join

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_WRITER = "unlearning-writer"
_MULTIPART_BYTES = 8 << 20
_CREATE_ATTEMPTS = 5
_READ_ATTEMPTS = 3
_DELETE_PASSES = 5
_LOCKED = "evidence"
"""The one prefix whose objects may be locked; what lies elsewhere must be erasable."""
_honest: set[tuple[str, str]] = set()
"""Endpoints and buckets that were seen to refuse a second creation."""


class S3Store:
    """A store whose objects are those of a bucket beneath a prefix; keys and endpoint come from the AWS environment.

    Args:
        bucket: An existing bucket.
        prefix: Where in the bucket; "" for all of it.
        lock_days: For how long objects that are created beneath "evidence/" can be neither changed nor removed; 0: no
            lock. The bucket must have object lock.

    Raises:
        StorageError: For a malformed bucket name or prefix.
    """

    def __init__(self, bucket: str, prefix: str = "", lock_days: int = 0) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}", bucket):
            raise StorageError("the object store's bucket name is malformed: write UNLEARN_STORE as s3://bucket/prefix")
        self._bucket = bucket
        self._prefix = checked_prefix(prefix)
        self._lock_days = lock_days
        self._clients: dict[str, S3Client] = {}
        self._lock = threading.Lock()
        self._endpoint = ""
        self.uri = f"s3://{join(bucket, self._prefix)}"

    def get(self, key: str) -> bytes:
        """The object's content."""
        name = self._name(key)
        with self._failures("read", key):
            return self._client().get_object(Bucket=self._bucket, Key=name)["Body"].read()

    def put(self, key: str, data: bytes) -> None:
        """Writes the object whole, over an older one if there is one."""
        name = self._name(key)
        with self._failures("write", key):
            self._client().put_object(Bucket=self._bucket, Key=name, Body=data)

    def create(self, key: str, data: bytes) -> bool:
        """True when this call made the object, False when one exists already, whatever its content.

        One attempt at a time; an answer that was lost or is unclear is settled by reading back who wrote what is there.

        Raises:
            StorageError: Also when the server does not heed the condition, which the first creation in a bucket finds
                out by asking twice: with such a server two could both believe that they were first.
        """
        from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

        name, writer = self._name(key), secrets.token_hex(16)
        object_: dict[str, Any] = {"Bucket": self._bucket, "Key": name, "Body": data, "IfNoneMatch": "*"}
        object_ |= {"Metadata": {_WRITER: writer}, **self._retention(key, data)}
        with self._failures("create", key):
            for attempt in range(_CREATE_ATTEMPTS):
                if attempt:
                    time.sleep(0.05 * 2**attempt * (1 + secrets.randbelow(100) / 100))
                try:
                    self._client("once").put_object(**object_)
                except ClientError as error:
                    status = _status(error)
                    if status == 409:
                        continue
                    if status in (304, 412):
                        _honest.add((self._endpoint, self._bucket))
                    elif status == 400 and "ObjectLockMode" in object_:
                        raise StorageError(
                            f"cannot lock {join(self.uri, key)}: the bucket cannot lock objects: make one with object "
                            "lock, or unset UNLEARN_EVIDENCE_LOCK_DAYS"
                        ) from error
                    elif status < 500 or status == 501:
                        raise
                except (ConnectionError, HTTPClientError):
                    if attempt == _CREATE_ATTEMPTS - 1:
                        raise
                else:
                    self._expect_refusal(object_)
                    return True
                ours = self._written_by(name, data, writer)
                if ours is not None:
                    return ours
        raise StorageError(
            f"cannot create {join(self.uri, key)} at {self._endpoint}: "
            f"{_CREATE_ATTEMPTS} attempts met a conflict or an error of the server: try again"
        )

    def _retention(self, key: str, data: bytes) -> dict[str, Any]:
        if not self._lock_days or not is_beneath(key, _LOCKED):
            return {}
        until = datetime.now(UTC) + timedelta(days=self._lock_days)
        digest = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()  # locks ask for one
        return {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": until, "ContentMD5": digest}

    def _expect_refusal(self, object_: Mapping[str, Any]) -> None:
        """Nothing, when the server refuses to create again what was just created; once for each bucket."""
        from botocore.exceptions import ClientError, ConnectionError, HTTPClientError

        if (self._endpoint, self._bucket) in _honest:
            return
        try:
            self._client("once").put_object(**object_)
        except ClientError as error:
            if _status(error) in (304, 412):
                _honest.add((self._endpoint, self._bucket))
        except (ConnectionError, HTTPClientError):
            pass  # no answer says nothing about the server: the next creation asks again
        else:
            raise StorageError(
                f"{self.uri} at {self._endpoint} writes over objects that it was told to create only if absent "
                "(If-None-Match): use a server with conditional writes; some have them in buckets without versions only"
            )

    def exists(self, key: str) -> bool:
        """Whether there is an object under this very key."""
        name = self._name(key)
        with self._failures("look for", key):
            page = self._client().list_objects_v2(Bucket=self._bucket, Prefix=name, MaxKeys=1)
            return any(item["Key"] == name for item in page.get("Contents", []))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every key at or beneath the prefix, sorted by code point; a console's empty folder marks are left out."""
        return (found.key for found in self.listed(prefix))

    def listed(self, prefix: str = "") -> Iterator[Listed]:
        """Every object at or beneath the prefix, in the order of `keys`; the tag is the server's ETag."""
        prefix = checked_prefix(prefix)
        top = join(self._prefix, prefix)
        with self._failures("list", prefix):
            pages = self._client().get_paginator("list_objects_v2")
            if prefix:  # the object of that very name comes first, and alone before those that only begin like it
                page = self._client().list_objects_v2(Bucket=self._bucket, Prefix=top, MaxKeys=1)
                yield from (self._listed(item) for item in page.get("Contents", []) if item["Key"] == top)
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{top}/" if top else ""):
                yield from (self._listed(item) for item in page.get("Contents", []) if not item["Key"].endswith("/"))

    def _listed(self, item: Mapping[str, Any]) -> Listed:
        key = item["Key"][len(self._prefix) + 1 :] if self._prefix else item["Key"]
        return Listed(key, item["Size"], item["ETag"])

    def read(self, found: Listed) -> bytes:
        """The content of a listed object; asked for again when the connection breaks while it comes.

        Raises:
            StorageError: Also when it was changed since.
        """
        from botocore.exceptions import ClientError, ConnectionError, HTTPClientError, IncompleteReadError

        name = self._name(found.key)
        broken = 0
        with self._failures("read", found.key):
            while True:
                try:
                    answer = self._client().get_object(Bucket=self._bucket, Key=name, IfMatch=found.tag)
                    return answer["Body"].read()
                except ClientError as error:
                    if _status(error) != 412:
                        raise
                    where = join(self.uri, found.key)
                    raise StorageError(f"{where} was changed since it was listed: list it again") from error
                except (ConnectionError, HTTPClientError, IncompleteReadError):
                    broken += 1
                    if broken == _READ_ATTEMPTS:
                        raise

    def upload(self, key: str, path: Path) -> None:
        """Writes a local file as an object, whole, over an older one if there is one; in parts when it is large."""
        name = self._name(key)
        with self._failures("upload", key):
            self._client().upload_file(str(path), self._bucket, name, Config=_transfer())

    def download(self, key: str, path: Path) -> None:
        """Writes an object to a local file, which appears only when it is complete."""
        name = self._name(key)
        unfinished = path.with_name(f".{secrets.token_hex(8)}.part")
        with self._failures("download", key):
            size = self._client().head_object(Bucket=self._bucket, Key=name)["ContentLength"]
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._client().download_file(self._bucket, name, str(unfinished), Config=_transfer())
                came = unfinished.stat().st_size
                if came != size:
                    raise StorageError(
                        f"cannot download {join(self.uri, key)}: {came} of {size} bytes came: something rewrites it; "
                        "try again"
                    )
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)

    def delete(self, prefix: str) -> int:
        """The number of versions and markers removed at or beneath the prefix; open multipart uploads are aborted.

        Raises:
            StorageError: Also for the empty prefix, and when the server keeps an object or something keeps writing.
        """
        prefix = checked_prefix(prefix)
        if not prefix:
            raise StorageError(f"refused to delete all of {self.uri}: name a prefix")
        top, removed = join(self._prefix, prefix), 0
        with self._failures("delete", prefix):
            self._abort_uploads(top)
            for _ in range(_DELETE_PASSES):
                before = removed
                for batch in _batches(self._versions(top)):
                    answer = self._client().delete_objects(
                        Bucket=self._bucket,
                        Delete={"Objects": [{"Key": name, "VersionId": id_} for name, id_ in batch], "Quiet": True},
                    )
                    if errors := answer.get("Errors", []):
                        raise StorageError(
                            f"cannot delete {len(errors)} versions at {join(self.uri, prefix)} at {self._endpoint}, "
                            f"the first because of {errors[0].get('Code', 'an unknown error')}: "
                            "allow s3:DeleteObjectVersion, or lift the object lock"
                        )
                    removed += len(batch)
                if removed == before:
                    return removed
        raise StorageError(
            f"cannot delete {join(self.uri, prefix)}: new objects keep coming: stop what writes there and try again"
        )

    def remains(self, prefix: str) -> list[str]:
        """What is at or beneath the prefix: versions and markers as "key?versionId=...", unfinished uploads so too."""
        prefix = checked_prefix(prefix)
        top = join(self._prefix, prefix)
        with self._failures("list", prefix):
            found = [f"{name}?versionId={id_}" for name, id_ in self._versions(top)]
            return sorted([*found, *(f"{name}?uploadId={id_}" for name, id_ in self._uploads(top))])

    def check(self) -> None:
        """Returns when the bucket answers, after one attempt of at most about 8 seconds; writes nothing."""
        with self._failures("use", ""):
            self._client("probe").head_bucket(Bucket=self._bucket)

    def _name(self, key: str) -> str:
        return join(self._prefix, checked_key(key))

    def _client(self, kind: str = "usual") -> "S3Client":
        """The client for usual work, for one attempt ("once") or for a quick look ("probe"); made at first use."""
        with self._lock:
            if kind not in self._clients:
                self._clients[kind] = self._made(kind)
            return self._clients[kind]

    def _made(self, kind: str) -> "S3Client":
        import boto3
        from botocore.config import Config

        config = Config(
            connect_timeout=4 if kind == "probe" else 5,
            read_timeout=4 if kind == "probe" else 30,
            retries={"mode": "standard", "total_max_attempts": 5 if kind == "usual" else 1},
            max_pool_connections=16,
        )
        elsewhere = Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        session = boto3.session.Session()
        client = session.client("s3", config=config.merge(elsewhere))
        self._endpoint = _shown(client.meta.endpoint_url)
        if re.search(r"\.amazonaws\.com(\.cn)?$", urlsplit(client.meta.endpoint_url).hostname or ""):
            return session.client("s3", config=config)
        client.meta.events.register("before-sign.s3.DeleteObjects", _with_md5)
        return client

    def _written_by(self, name: str, data: bytes, writer: str) -> bool | None:
        """Whether what is there is our own write; None when there is nothing."""
        from botocore.exceptions import ClientError

        try:
            found = self._client().get_object(Bucket=self._bucket, Key=name)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") == "NoSuchKey":
                return None
            raise
        return found["Metadata"].get(_WRITER) == writer and found["Body"].read() == data

    def _versions(self, top: str) -> Iterator[tuple[str, str]]:
        for page in self._client().get_paginator("list_object_versions").paginate(Bucket=self._bucket, Prefix=top):
            for item in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
                if is_beneath(item["Key"], top):
                    yield item["Key"], item["VersionId"]

    def _uploads(self, top: str) -> Iterator[tuple[str, str]]:
        pages = self._client().get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=self._bucket, Prefix=top):
            for item in page.get("Uploads", []):
                if is_beneath(item["Key"], top):
                    yield item["Key"], item["UploadId"]

    def _abort_uploads(self, top: str) -> None:
        from botocore.exceptions import ClientError

        for name, id_ in self._uploads(top):
            try:
                self._client().abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=id_)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") != "NoSuchUpload":
                    raise

    @contextmanager
    def _failures(self, wanted: str, key: str) -> Iterator[None]:
        """Turns what boto3 raises into one line without credentials."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        where = join(self.uri, key)
        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError) as error:
            cause = error.__context__ if isinstance(error, Boto3Error) and error.__context__ else error
            at = f" at {self._endpoint}" if self._endpoint else ""
            raise StorageError(f"cannot {wanted} {where}{at}: {_advice(cause, self._bucket)}") from error
        except OSError as error:
            reason = error.strerror or type(error).__name__
            named = f" ({error.filename})" if error.filename else ""
            raise StorageError(f"cannot {wanted} {where}: {reason}{named}: check the local file") from error


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _advice(error: BaseException, bucket: str) -> str:
    """What went wrong and what to do about it."""
    from botocore import exceptions as botocore

    if isinstance(error, botocore.ClientError):
        status, code = _status(error), error.response.get("Error", {}).get("Code", "")
        bucket_is_meant = code == "NoSuchBucket" or (code == "404" and error.operation_name == "HeadBucket")
        if bucket_is_meant:
            return f'there is no bucket "{bucket}": create it or change UNLEARN_STORE'
        if status == 404:
            return "there is no such object: check the key, or UNLEARN_STORE"
        if status in (401, 403):
            return (
                f"access denied ({code}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they may do in the "
                "bucket"
            )
        if status in (301, 307, 400) and error.operation_name == "HeadBucket":
            return f"the bucket is not in this region ({code}): set AWS_DEFAULT_REGION or AWS_ENDPOINT_URL_S3"
        if status == 501:
            return "the server lacks this operation: use one with conditional writes and versions"
        return f"the server answered {status} {code}: try again, or look into its log"
    if isinstance(error, botocore.SSLError):
        return "its certificate is not trusted: set AWS_CA_BUNDLE, or mend AWS_ENDPOINT_URL_S3"
    if isinstance(error, (botocore.ConnectionError, botocore.HTTPClientError)):
        return f"no answer ({type(error).__name__}): check that it runs and that AWS_ENDPOINT_URL_S3 is its address"
    if isinstance(error, (botocore.NoCredentialsError, botocore.PartialCredentialsError)):
        return "there are no access keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    detail = re.sub(r"//[^/@\s]*@", "//", " ".join(str(error).split()))[:300]
    return f"{type(error).__name__}: {detail}: check the AWS settings"


def _shown(endpoint: str) -> str:
    """An endpoint without the user name and password that it may hold."""
    return re.sub(r"//[^/@]*@", "//", endpoint)


def _with_md5(request: Any, **_: Any) -> None:
    """Adds the digest that servers other than AWS still ask for when many objects are deleted at once."""
    if "Content-MD5" not in request.headers:
        digest = hashlib.md5(bytes(request.body), usedforsecurity=False).digest()
        request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def _transfer() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(multipart_threshold=_MULTIPART_BYTES, multipart_chunksize=_MULTIPART_BYTES, max_concurrency=4)


def _batches(items: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    iterator = iter(items)
    while batch := list(islice(iterator, 1000)):
        yield batch
