"""Objects as plain files beneath one folder."""

import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from unlearning.errors import StorageError
from unlearning.storage.keys import WRITING, Listed, checked_key, checked_prefix, join


class FolderStore:
    """A store whose objects are the plain files beneath a folder; symbolic links in it are never followed.

    Args:
        folder: Made at the first write.
    """

    def __init__(self, folder: Path) -> None:
        self._root = folder.expanduser().resolve()
        self.uri = self._root.as_uri()

    def get(self, key: str) -> bytes:
        """The object's content."""
        with self._failures("read", key):
            return self._file(key).read_bytes()

    def put(self, key: str, data: bytes) -> None:
        """Writes the object whole, over an older one if there is one."""
        with self._failures("write", key):
            path = self._path(key)
            self._write(path, lambda file: file.write(data), os.replace)

    def create(self, key: str, data: bytes) -> bool:
        """True when this call made the object, False when one exists already, whatever its content."""
        with self._failures("create", key):
            path = self._path(key)
            if path.is_file():
                return False
            try:
                self._write(path, lambda file: file.write(data), os.link)
            except FileExistsError:
                if not path.is_file():
                    raise
                return False
            return True

    def exists(self, key: str) -> bool:
        """Whether there is an object under this very key."""
        with self._failures("look for", key):
            return self._path(key).is_file()

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every key at or beneath the prefix, sorted by code point."""
        return (found.key for found in self.listed(prefix))

    def listed(self, prefix: str = "") -> Iterator[Listed]:
        """Every object at or beneath the prefix, in the order of `keys`; the tag is its size and time."""
        prefix = checked_prefix(prefix)
        with self._failures("list", prefix):
            found = []
            for path in self._entries(prefix):
                if path.name.startswith(WRITING):
                    continue
                try:
                    status = path.lstat()
                except FileNotFoundError:  # deleted since
                    continue
                if stat.S_ISREG(status.st_mode):
                    found.append(_listed(path.relative_to(self._root).as_posix(), status))
        yield from sorted(found)

    def read(self, found: Listed) -> bytes:
        """The content of a listed object.

        Raises:
            StorageError: Also when it was changed since.
        """
        with self._failures("read", found.key), self._file(found.key).open("rb") as file:
            if _listed(found.key, os.fstat(file.fileno())) != found:
                raise StorageError(f"{join(self.uri, found.key)} was changed since it was listed: list it again")
            return file.read()

    def upload(self, key: str, path: Path) -> None:
        """Writes a local file as an object, whole, over an older one if there is one."""
        with self._failures("upload to", key), path.open("rb") as source:
            self._write(self._path(key), lambda file: shutil.copyfileobj(source, file, 1 << 20), os.replace)

    def download(self, key: str, path: Path) -> None:
        """Writes an object to a local file, which appears only when it is complete."""
        with self._failures("download", key), self._file(key).open("rb") as source:
            self._write(path, lambda file: shutil.copyfileobj(source, file, 1 << 20), os.replace)

    def delete(self, prefix: str) -> int:
        """The number of objects removed at or beneath the prefix; what a crashed write left goes too.

        Raises:
            StorageError: Also for the empty prefix: a whole store is not deleted by one call.
        """
        prefix = checked_prefix(prefix)
        if not prefix:
            raise StorageError(f"refused to delete all of {self.uri}: name a prefix")
        removed = 0
        with self._failures("delete", prefix):
            path = self._path(prefix)
            entries = self._entries(prefix)
            if path.parent.is_dir():
                entries += path.parent.glob(f"{_mark(path)}*")
            for entry in entries:
                removed += not entry.is_symlink() and not entry.name.startswith(WRITING)
                entry.unlink(missing_ok=True)
            for folder in sorted((p for p in path.rglob("*") if p.is_dir() and not p.is_symlink()), reverse=True):
                _remove_if_empty(folder)
            for folder in [path, *path.parents] if path.is_dir() else path.parents:
                if folder == self._root or not _remove_if_empty(folder):
                    break
        return removed

    def remains(self, prefix: str) -> list[str]:
        """What is at or beneath the prefix, links and unfinished files included, sorted."""
        prefix = checked_prefix(prefix)
        with self._failures("list", prefix):
            path = self._path(prefix) if prefix else self._root
            unfinished = path.parent.glob(f"{_mark(path)}*") if prefix and path.parent.is_dir() else []
            found = {*self._entries(prefix), *unfinished}
            return sorted(entry.relative_to(self._root).as_posix() for entry in found)

    def check(self) -> None:
        """Returns when the folder can be used or made; writes nothing."""
        nearest = next(folder for folder in [self._root, *self._root.parents] if folder.exists())
        if not nearest.is_dir() or not os.access(nearest, os.R_OK | os.W_OK | os.X_OK):
            raise StorageError(
                f"the object store {self._root} cannot be used: {nearest} is no folder that this user may write to: "
                "mend its permissions or set UNLEARN_STORE to another folder"
            )

    def _path(self, key: str) -> Path:
        """Where the key's file is or would be: inside the root, with no symbolic link on the way."""
        path = self._root / checked_key(key)
        if path.resolve() != path:
            raise StorageError(
                f"the key {key!r} of {self.uri} passes a symbolic link: put the files themselves in its place"
            )
        return path

    def _file(self, key: str) -> Path:
        path = self._path(key)
        if not path.is_file():
            raise StorageError(f"there is no object {key!r} in {self.uri}: check the key, or UNLEARN_STORE")
        return path

    def _entries(self, prefix: str) -> list[Path]:
        """Everything that is not a folder at or beneath the prefix, links and unfinished files included."""
        start = self._path(prefix) if prefix else self._root
        if start.is_dir():
            return [
                Path(folder) / name
                for folder, folders, names in os.walk(start, onerror=_raise)
                for name in [*names, *(name for name in folders if (Path(folder) / name).is_symlink())]
            ]
        return [start] if start.exists() else []

    def _write(self, path: Path, fill: Callable[[BinaryIO], object], publish: Callable[[Path, Path], object]) -> None:
        """Fills a file beside `path` and publishes it in one step, so that nobody ever sees a part of it."""
        unfinished = path.with_name(f"{_mark(path)}{secrets.token_hex(8)}")
        try:
            with _opened(unfinished) as file:
                fill(file)
                file.flush()
                os.fsync(file.fileno())
            publish(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextmanager
    def _failures(self, wanted: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            advice = {
                errno.ENOSPC: "free some space",
                errno.EDQUOT: "free some space",
                errno.EACCES: "mend the permissions",
                errno.EROFS: "set UNLEARN_STORE to a folder that can be written",
                errno.EPERM: "use a file system with hard links, or mend the permissions",
                errno.ENOTSUP: "use a file system with hard links",
                errno.ENOENT: "check the path",
                errno.ENOTDIR: "an object cannot lie beneath another one: choose another key",
                errno.EEXIST: "an object cannot lie beneath another one: choose another key",
                errno.EISDIR: "objects lie beneath this key: choose another one",
            }.get(error.errno or 0, "check the folder, or set UNLEARN_STORE")
            where = f" ({error.filename})" if error.filename else ""
            raise StorageError(
                f"cannot {wanted} {join(self.uri, key)}: {error.strerror or type(error).__name__}{where}: {advice}"
            ) from error


def _listed(key: str, status: os.stat_result) -> Listed:
    return Listed(key, status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def _mark(path: Path) -> str:
    """How unfinished files for this path begin, so that deleting the object finds them."""
    return f"{WRITING}{hashlib.sha256(path.name.encode()).hexdigest()[:16]}-"


def _opened(path: Path) -> BinaryIO:
    """A new file; its folder is made again when a concurrent deletion takes it away in between."""
    for _ in range(20):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return path.open("xb")
        except FileNotFoundError:
            continue
    return path.open("xb")


def _remove_if_empty(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            return False
        raise
    return True


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
