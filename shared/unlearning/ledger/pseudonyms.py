"""Keyed digests that stand for ids wherever the ids themselves must not be.

A bare hash of an id can be guessed by hashing every id there is; with a key only its holder can.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path

from unlearning.errors import UsageError

_KEY_BYTES = 32


class Pseudonyms:
    """Digests under one key; the same input gives the same digest, and nobody without the key can make it.

    Args:
        key: At least 32 secret bytes. With another key every request looks new, so it is kept as long as the ledger.

    Raises:
        UsageError: For a shorter key.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < _KEY_BYTES:
            raise UsageError(
                f"the ledger's key needs {_KEY_BYTES} bytes or more, got {len(key)}: make one with new_key"
            )
        self._key = key

    def __repr__(self) -> str:
        return "Pseudonyms(key=...)"

    def of(self, what: str, *parts: str) -> str:
        """64 hexadecimal digits for a list of texts; `what` keeps digests of different things apart.

        Example:
            >>> names = Pseudonyms(bytes(32))
            >>> names.of("request", "a", "bc") == names.of("request", "ab", "c")
            False
        """
        message = "".join(f"{len(part)}:{part}" for part in (what, *parts))
        return hmac.digest(self._key, message.encode(), "sha256").hex()

    def request(self, controller: str, key: str) -> str:
        """The name of a request everywhere outside the restricted prefix."""
        return self.of("request", controller, key)

    def target(self, kind: str, model: str, dataset: str, ids: Iterable[str]) -> str:
        """What is to be forgotten, whoever asks and in whatever order the ids come."""
        return self.of("target", kind, model, dataset, *sorted(set(ids)))

    def check(self) -> str:
        """A digest of nothing: it tells, without telling the key, whether two keys are the same."""
        return self.of("key")


def new_key() -> str:
    """A fresh key as 64 hexadecimal digits."""
    return secrets.token_hex(_KEY_BYTES)


def key_from(text: str) -> bytes:
    """The key that `new_key` wrote.

    Raises:
        UsageError: When it is no such text; the text is not shown.
    """
    if not re.fullmatch(r"(?:[0-9a-fA-F]{2}){32,}", text.strip()):
        raise UsageError("the ledger's key must be 64 or more hexadecimal digits: make one with new_key and keep it")
    return bytes.fromhex(text.strip())


def key_of_file(path: Path) -> bytes:
    """The key in a file, which is made with a fresh one, for its owner alone, when it is not there.

    Raises:
        UsageError: When the file cannot be read or written, or holds no key.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        if not path.exists():
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(new_key() + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                os.link(unfinished, path)
            except FileExistsError:
                pass  # another process made it first: read theirs
            finally:
                unfinished.unlink(missing_ok=True)
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(f"the ledger's key file {path} cannot be used ({reason}): mend it, or restore it") from error
    return key_from(text)
