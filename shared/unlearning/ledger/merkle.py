"""Merkle trees as RFC 6962 draws them: one root for a list, and a short proof that an entry is in it.

Leaves and nodes are hashed with different first bytes, so that no node passes for a leaf.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence


def leaf(entry: bytes) -> bytes:
    """The digest of one entry."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node(left: bytes, right: bytes) -> bytes:
    """The digest of two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """The digests of a list of entries, level by level.

    Args:
        entries: In their order.
    """

    def __init__(self, entries: Iterable[bytes]) -> None:
        self._levels = [[leaf(entry) for entry in entries]]
        while len(self._levels[-1]) > 1:
            self._levels.append(_above(self._levels[-1]))

    @property
    def root(self) -> bytes:
        """The digest of the whole list; that of nothing is the digest of no bytes."""
        return self._levels[-1][0] if self._levels[-1] else hashlib.sha256().digest()

    def proof(self, index: int) -> list[bytes]:
        """The digests beside the way from one entry to the root, from below.

        Args:
            index: Which entry, from 0.

        Raises:
            IndexError: When there is no such entry.
        """
        if not 0 <= index < len(self._levels[0]):
            raise IndexError(f"entry {index} of {len(self._levels[0])}")
        places = ((level, (index >> height) ^ 1) for height, level in enumerate(self._levels[:-1]))
        return [level[place] for level, place in places if place < len(level)]


def root(entries: Iterable[bytes]) -> bytes:
    """The digest of a list of entries, in their order; that of nothing is the digest of no bytes."""
    level = [leaf(entry) for entry in entries]
    if not level:
        return hashlib.sha256().digest()
    while len(level) > 1:
        level = _above(level)
    return level[0]


def is_included(entry: bytes, index: int, size: int, beside: Sequence[bytes], expected: bytes) -> bool:
    """Whether an entry is in the list that has this root.

    Args:
        entry: Its bytes.
        index: Its place, from 0.
        size: Length of the list.
        beside: What `proof` gave.
        expected: The root.
    """
    if not 0 <= index < size:
        return False
    digest, left, last = leaf(entry), list(beside), size - 1
    while last:
        if index & 1 or index < last:
            if not left:
                return False
            other = left.pop(0)
            digest = node(other, digest) if index & 1 else node(digest, other)
        index, last = index // 2, last // 2
    return not left and digest == expected


def root_of_refs(refs: Iterable[str]) -> str:
    """The root of requests' digests as 64 hexadecimal digits; their order does not count, nor do repeats."""
    return root(map(bytes.fromhex, sorted(set(refs)))).hex()


def _above(level: list[bytes]) -> list[bytes]:
    pairs = [node(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return pairs + level[-1:] if len(level) % 2 else pairs
