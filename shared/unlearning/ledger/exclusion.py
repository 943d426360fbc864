"""What no model may be trained on again: keyed digests of the ids that were served, and a check of others' manifests.

The ids themselves are removed some time after closing; the digests stay, and tell with the installation's key alone
whether a row belongs to them. Ranges of values and periods name nobody and match no single id: they stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from unlearning.errors import DataError
from unlearning.ledger.events import digest_of
from unlearning.ledger.pseudonyms import Pseudonyms
from unlearning.ledger.vault import Kept
from unlearning.storage import ObjectStore

PREFIX = "evidence/exclusion"
EVERYWHERE = "*"
RANGES = ("target", "period")
"""Kinds of request whose ids are ranges, kept as "kind dataset range"."""
_LINE = re.compile(rf"[0-9a-f]{{64}}|(?:{'|'.join(RANGES)}) [!-~]{{1,128}} [ -~]{{1,64}}")


@dataclass(frozen=True)
class Found:
    """Rows of a manifest that must not be trained on.

    Attributes:
        rows: Their numbers, sorted.
        by_kind: How many of them are there for their class, subject, and so on; one row can count twice.
        looked_at: Rows that were compared.
        excluded: Digests that they were compared with.
    """

    rows: tuple[int, ...]
    by_kind: dict[str, int]
    looked_at: int
    excluded: int


def exclude(store: ObjectStore, names: Pseudonyms, batch: str, dataset: str, kept: Iterable[Kept]) -> str:
    """sha256 of the batch's list of digests, in the store from now on; repeating it changes nothing.

    Args:
        store: Where evidence is kept.
        names: Digests under the installation's key.
        batch: Digest of the batch.
        dataset: The batch's data set, or "*".
        kept: The ids of its requests.

    Raises:
        DataError: When the store holds another list for this batch.
    """
    digests = sorted({_of(names, one.kind, dataset, value) for one in kept for value in one.ids})
    data = "".join(f"{digest}\n" for digest in digests).encode("ascii")
    key = f"{PREFIX}/{batch}.txt"
    if not store.create(key, data) and store.get(key) != data:
        raise DataError(f"{key} holds other digests than the batch's requests: find out who wrote it")
    return digest_of(digests)


def excluded(store: ObjectStore) -> set[str]:
    """The digests of all that must not be trained on.

    Raises:
        DataError: When a list is damaged.
    """
    found: set[str] = set()
    for key in store.keys(PREFIX):
        lines = store.get(key).decode("ascii", errors="replace").splitlines()
        if not all(map(_LINE.fullmatch, lines)):
            raise DataError(f"the exclusion list {key} is damaged: restore it from a copy")
        found.update(lines)
    return found


def check(
    names: Pseudonyms,
    barred: set[str],
    columns: Mapping[str, Sequence[str | None]],
    *,
    dataset: str = EVERYWHERE,
    rows_in: Callable[[str, str], Iterable[int]] = lambda kind, text: (),
) -> Found:
    """The rows that must not be trained on.

    Args:
        names: Digests under the installation's key.
        barred: From `excluded`.
        columns: Values of each row by kind: "sample", "subject", "class"; equally long, None where a row has none.
        dataset: Name of the data set: requests about any data set count, and those about this one.
        rows_in: The numbers of the rows in a range of the "target" or in a "period".
    """
    rows: set[int] = set()
    by_kind = dict.fromkeys(columns, 0)
    for kind, values in columns.items():
        known: dict[str, bool] = {}
        for place, value in enumerate(values):
            if value is None or not value:
                continue
            if value not in known:
                known[value] = any(
                    _of(names, kind, where, value) in barred for where in dict.fromkeys((EVERYWHERE, dataset))
                )
            if known[value]:
                rows.add(place)
                by_kind[kind] += 1
    for line in sorted(one for one in barred if " " in one):
        kind, where, text = line.split(" ", 2)
        if where in (EVERYWHERE, dataset):
            meant = set(rows_in(kind, text))
            rows |= meant
            by_kind[kind] = by_kind.get(kind, 0) + len(meant)
    return Found(tuple(sorted(rows)), by_kind, max(map(len, columns.values()), default=0), len(barred))


def _of(names: Pseudonyms, kind: str, dataset: str, value: str) -> str:
    return f"{kind} {dataset} {value}" if kind in RANGES else names.of("excluded", kind, dataset, value)
