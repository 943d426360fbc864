"""What a key may look like, and the one mark of an unfinished file; the same rules for every store."""

import re
from pathlib import PurePosixPath
from typing import NamedTuple

from unlearning.errors import StorageError

WRITING = ".writing-"
"""Names that begin so are unfinished files of a folder store; no key has such a segment."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class Listed(NamedTuple):
    """An object as a listing shows it.

    Attributes:
        key: Relative to the store.
        size: In bytes.
        tag: Another one whenever the content is another.
    """

    key: str
    size: int
    tag: str


def checked_key(key: str) -> str:
    """The key itself, when it is safe in every store.

    Args:
        key: Relative, "/"-separated: "models/3f/card.json".

    Raises:
        StorageError: For anything that a folder, a URL or S3 could read as another place.
    """
    segments = key.split("/")
    if key.startswith("/"):
        wrong = "is absolute"
    elif "\\" in key or _CONTROL.search(key):
        wrong = "has a backslash or a control character"
    elif any(segment in ("", ".", "..") for segment in segments):
        wrong = 'has an empty, "." or ".." segment'
    elif any(segment.startswith(WRITING) for segment in segments):
        wrong = f'has a segment that begins with "{WRITING}", which marks unfinished files'
    elif len(key.encode()) > 900 or any(len(segment.encode()) > 250 for segment in segments):
        wrong = "is too long (at most 900 bytes, 250 in one segment)"
    else:
        return key
    raise StorageError(f'the key {key[:120]!r} {wrong}: use a relative key such as "models/3f/card.json"')


def checked_prefix(prefix: str) -> str:
    """A prefix without its closing "/"; "" means the whole store.

    Raises:
        StorageError: As for `checked_key`.
    """
    return checked_key(prefix.removesuffix("/")) if prefix else ""


def is_beneath(key: str, prefix: str) -> bool:
    """Whether `key` is `prefix` itself or lies beneath it: "a/b" does for "a", "ab" does not."""
    return not prefix or key == prefix or key.startswith(f"{prefix}/")


def join(prefix: str, key: str) -> str:
    """`key` beneath `prefix`, either of which may be empty."""
    return f"{prefix}/{key}" if prefix and key else prefix or key


def relative(key: str, prefix: str) -> str:
    """What is left of a key below a prefix; its own last segment when the key is the prefix itself."""
    return key if not prefix else PurePosixPath(key).name if key == prefix else key[len(prefix) + 1 :]
