"""Rows that are there twice: among what is forgotten, what is retained and what is measured with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from unlearning.data.duplicates import Array, fingerprints, near_twins
from unlearning.data.samples import Samples
from unlearning.errors import DataError

RowNumbers = NDArray[np.int64]
MOST_FORGET, MOST_OTHERS = 2000, 20_000
"""Rows of a set that are looked at for near twins; more are drawn down. Exact copies are sought among all."""


def overlap(
    samples: Samples, forget: RowNumbers, retain: RowNumbers, test: RowNumbers, *, seed: int = 0
) -> dict[str, float]:
    """Counts of rows that repeat others, by name.

    - "overlap.test_in_train.exact": held-out rows whose inputs are also a training row's, byte for byte;
    - "overlap.forget_in_retain.exact", "overlap.forget_in_test.exact": forget rows with such a copy; ".near": with one
      that is nearly the same (`duplicates.near_twins`) among the rows looked at; none for rows of tokens;
    - "overlap.forget_in_retain.share": of the forget rows, those with an exact copy among the retained ones;
    - "overlap.looked.forget", "overlap.looked.retain", "overlap.looked.test": rows that near twins were sought among.

    Args:
        samples: All of the data set.
        forget: Row numbers of training rows to forget, shape (F,), F >= 1.
        retain: Of all other training rows, shape (R,).
        test: Of held-out rows, shape (T,).
        seed: Of draws.

    Raises:
        DataError: When a row is in two of the sets.
    """
    if len(np.unique(np.concatenate([forget, retain, test]))) < len(forget) + len(retain) + len(test):
        raise DataError("a row is both forgotten and retained, or both trained on and held out: select again")

    def take(rows: Array) -> Array:
        inputs: Array = samples.batch(torch.from_numpy(np.ascontiguousarray(rows)))[0].cpu().numpy()
        return inputs

    every = fingerprints(take, np.concatenate([forget, retain, test]))
    gone, kept, unseen = np.split(every, [len(forget), len(forget) + len(retain)])
    copied = np.isin(gone, kept)
    found = {
        "overlap.test_in_train.exact": np.isin(unseen, np.concatenate([gone, kept])).sum(),
        "overlap.forget_in_retain.exact": copied.sum(),
        "overlap.forget_in_retain.share": copied.mean(),
        "overlap.forget_in_test.exact": np.isin(gone, unseen).sum(),
    }
    tokens = not samples.batch(torch.tensor([int(forget[0])]))[0].is_floating_point()
    if not tokens:
        for name, others, theirs in (("retain", retain, kept), ("test", test, unseen)):
            twins = near_twins(
                take, forget, others, prints=(gone, theirs), most_a=MOST_FORGET, most_b=MOST_OTHERS, seed=seed
            )
            found[f"overlap.forget_in_{name}.near"] = twins.rows
            found[f"overlap.looked.{name}"] = twins.among
            found["overlap.looked.forget"] = twins.looked
    return {name: float(value) for name, value in found.items()}
