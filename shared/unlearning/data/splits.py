"""Test splits, drawn where a source has none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def drawn_splits(
    targets: Array, test_share: float, seed: int, *, subjects: Sequence[str | None] | None = None
) -> list[str]:
    """For every row "train" or "test": of each class of two or more, the share (at least one, never all) is tested.

    With subjects, whole subjects are drawn, so that nobody is on both sides; a subject counts to the class that most
    of its rows have, and a row about nobody stands for itself.

    Args:
        targets: Class of each row, shape (N,), int64; all 0 where there are no classes.
        test_share: In (0, 1); of the rows, or of the subjects.
        seed: >= 0.
        subjects: Whom each row is about, N of them.
    """
    if subjects is None or all(subject is None for subject in subjects):
        members = np.arange(len(targets))
        classes = targets
    else:
        names = [f"row {row}" if subject is None else f"id {subject}" for row, subject in enumerate(subjects)]
        _, members = np.unique(np.array(names, dtype=object), return_inverse=True)
        classes = _most_frequent(members, targets)
    tested = np.zeros(int(members.max()) + 1 if len(members) else 0, dtype=bool)
    for index in np.unique(classes):
        rows = np.flatnonzero(classes == index)
        if len(rows) > 1:
            size = min(max(round(test_share * len(rows)), 1), len(rows) - 1)
            tested[np.random.default_rng([seed, int(index)]).permutation(rows)[:size]] = True
    result: list[str] = np.where(tested[members], "test", "train").tolist()
    return result


def _most_frequent(members: Array, targets: Array) -> Array:
    """Per member number, the smallest of its most frequent classes."""
    pairs, counts = np.unique(np.stack([members, targets]), axis=1, return_counts=True)
    best = np.zeros(int(members.max()) + 1, dtype=np.int64)
    for place in np.lexsort((-pairs[1], counts)):  # the largest count, and of these the smallest class, writes last
        best[pairs[0, place]] = pairs[1, place]
    return best
