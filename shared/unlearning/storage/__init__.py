"""Objects under keys, in a folder or in S3, with one contract: whole objects, create-if-absent, thorough deletion."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote

from unlearning.errors import StorageError
from unlearning.storage.folder import FolderStore
from unlearning.storage.keys import Listed, checked_key, checked_prefix, join, relative

__all__ = ["FolderStore", "Listed", "ObjectStore", "download_folder", "open_store", "split", "upload_folder"]


class ObjectStore(Protocol):
    """A flat space of objects. Keys are relative and "/"-separated; every failure is a `StorageError`.

    A prefix means the key of that name and everything beneath "prefix/", never "prefixed"; "" means the whole store.
    """

    uri: str

    def get(self, key: str) -> bytes:
        """The object's content."""

    def put(self, key: str, data: bytes) -> None:
        """Writes the object whole, over an older one if there is one."""

    def create(self, key: str, data: bytes) -> bool:
        """True when this call made the object, False when one exists already, whatever its content."""

    def exists(self, key: str) -> bool:
        """Whether there is an object under this very key."""

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every key at or beneath the prefix, sorted by code point."""

    def listed(self, prefix: str = "") -> Iterator[Listed]:
        """Every object at or beneath the prefix, in the order of `keys`."""

    def read(self, found: Listed) -> bytes:
        """The content of a listed object, as long as it still is what was listed."""

    def upload(self, key: str, path: Path) -> None:
        """Writes a local file as an object, whole, over an older one if there is one."""

    def download(self, key: str, path: Path) -> None:
        """Writes an object to a local file, which appears only when it is complete."""

    def delete(self, prefix: str) -> int:
        """The number of objects removed at or beneath the prefix: all versions, markers and unfinished writes."""

    def remains(self, prefix: str) -> list[str]:
        """The names of what is at or beneath the prefix: every version, marker and unfinished write."""

    def check(self) -> None:
        """Returns within 15 seconds when the store can be used; writes nothing."""


def open_store(uri: str, lock_days: int = 0) -> ObjectStore:
    """The store at an address; nothing is contacted or written yet.

    Args:
        uri: "s3://bucket/prefix", "file:///folder" or a plain path.
        lock_days: For how long a bucket keeps what is created beneath "evidence/" from everybody; 0: not at all.
            Folders have no such lock.

    Raises:
        StorageError: For any other scheme, or a malformed address.
    """
    scheme, separator, rest = uri.partition("://")
    if not uri:
        raise StorageError("the object store has no address: set UNLEARN_STORE to a folder or s3://bucket/prefix")
    if not separator:
        return FolderStore(Path(uri))
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise StorageError('a file address of the object store needs an absolute path: write "file:///folder"')
        return FolderStore(Path("/" + unquote(path)))
    if scheme == "s3":
        from unlearning.storage.s3 import S3Store

        bucket, _, prefix = rest.partition("/")
        return S3Store(bucket, prefix, lock_days)
    shown = scheme if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]{0,20}", scheme) else "this"
    raise StorageError(f'"{shown}://" is no object store: use s3://bucket/prefix, file:///folder or a plain path')


def split(uri: str) -> tuple[str, str]:
    """The address of the store around an object or folder, and its key there.

    Example:
        >>> split("s3://bucket/models/3f")
        ('s3://bucket/models', '3f')

    Raises:
        StorageError: For an address that names a whole bucket or disk.
    """
    parent, _, name = uri.rstrip("/").rpartition("/")
    if not parent or parent.endswith("/") or parent.endswith(":"):
        raise StorageError("an address of a whole store was given where one of an object in it is needed: add its key")
    return parent, unquote(name) if uri.startswith("file://") else name


def upload_folder(store: ObjectStore, prefix: str, folder: Path, last: str = "card.json") -> str:
    """The address of the folder's copy in the store, which counts as there once `last` is.

    A second upload of the same folder changes nothing, so an interrupted upload is repeated as it is.

    Args:
        store: Where to.
        prefix: The folder's key in the store.
        folder: A local folder of plain files; symbolic links are refused.
        last: The file that closes it, relative to `folder`; small, and different whenever the others are.

    Raises:
        StorageError: When `last` is missing, or the prefix holds a folder closed by other content.
    """
    prefix = checked_prefix(prefix)
    files = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    for path in files:
        if path.is_symlink() or not path.is_file():
            raise StorageError(f"cannot upload {path}: it is not a plain file: put a copy of the file in its place")
    names = {path.relative_to(folder).as_posix(): path for path in files}
    if last not in names:
        raise StorageError(f'cannot upload {folder}: it has no "{last}", which is written last: complete the folder')
    uri, key, closing = f"{store.uri}/{prefix}".rstrip("/"), join(prefix, last), names.pop(last).read_bytes()
    if not store.exists(key):
        for name, path in names.items():
            store.upload(join(prefix, name), path)
        if store.create(key, closing):
            return uri
    if store.get(key) != closing:
        raise StorageError(f"cannot upload {folder}: {uri} already holds another {last}: choose another prefix")
    return uri


def download_folder(store: ObjectStore, prefix: str, into: Path) -> Path:
    """`into`, with a copy of every object beneath the prefix.

    Raises:
        StorageError: When there is nothing beneath the prefix, or a key would lead out of the folder.
    """
    prefix = checked_prefix(prefix)
    found = list(store.keys(prefix))
    if not found:
        raise StorageError(f"there is nothing at {store.uri}/{prefix}: check the address")
    for key in found:
        store.download(key, into / checked_key(relative(key, prefix)))
    return into
