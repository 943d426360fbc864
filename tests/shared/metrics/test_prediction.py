import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor

from unlearning.metrics.accuracy import balanced_accuracy, confusion
from unlearning.metrics.prediction import neighbour_shift

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


def predicting(*classes: int, of: int) -> Tensor:
    return F.one_hot(torch.tensor(classes), of).float()


def test_where_rows_moved_by_hand() -> None:
    found = neighbour_shift(predicting(1, 1, 1, 2, of=4), predicting(1, 1, 2, 3, of=4))
    assert found.unlearned == (0.0, 0.75, 0.25, 0.0)
    assert found.reference == (0.0, 0.5, 0.25, 0.25)
    assert found.total_variation == 0.25
    assert found.disagreement == 0.5
    assert (found.top_class, found.top_share) == (1, 0.75)
    assert found.entropy == pytest.approx(0.75 * math.log2(4 / 3) + 0.25 * 2)


def test_the_same_predictions_are_at_no_distance_and_disjoint_ones_at_the_largest() -> None:
    same, other = predicting(0, 1, of=3), predicting(2, 2, of=3)
    alike = neighbour_shift(same, same)
    assert (alike.total_variation, alike.divergence, alike.disagreement) == (0.0, 0.0, 0.0)
    apart = neighbour_shift(same, other)
    assert (apart.total_variation, apart.divergence, apart.disagreement) == (1.0, pytest.approx(1.0), 1.0)


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_distances_are_scipys_symmetric_and_blind_to_the_order_of_rows_and_classes(
    rows: list[tuple[int, int]],
) -> None:
    one, other = (predicting(*side, of=5) for side in zip(*rows, strict=True))
    found, back = neighbour_shift(one, other), neighbour_shift(other, one)
    p, q = np.array(found.unlearned), np.array(found.reference)
    assert found.divergence == pytest.approx(float(jensenshannon(p, q, base=2)) ** 2, abs=1e-7)
    assert found.entropy == pytest.approx(float(entropy(p, base=2)))
    assert found.total_variation == pytest.approx(back.total_variation)
    assert found.divergence == pytest.approx(back.divergence)
    assert found.total_variation <= found.disagreement + 1e-12
    turned = neighbour_shift(one.flip(0).roll(2, 1), other.flip(0).roll(2, 1))
    for name in ("total_variation", "divergence", "disagreement", "top_share", "entropy"):
        assert getattr(turned, name) == pytest.approx(getattr(found, name))


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (torch.zeros((0, 2)), torch.zeros((0, 2)), "at least one sample"),
        (torch.zeros((2, 2)), torch.zeros((2, 3)), "same rows and classes"),
        (torch.zeros((1, 2)), torch.tensor([[0.0, math.nan]]), "NaN"),
    ],
)
def test_what_cannot_be_compared_is_refused(one: Tensor, other: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        neighbour_shift(one, other)


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_balanced_accuracy_is_scikit_learns(rows: list[tuple[int, int]]) -> None:
    truth, said = (list(side) for side in zip(*rows, strict=True))
    # scikit-learn warns of predicted classes that never occur: the row at hand makes them occur
    truth, said = [*truth, *range(5)], [*said, *range(5)]
    counts = confusion(predicting(*said, of=5), torch.tensor(truth), classes=5)
    assert balanced_accuracy(counts) == pytest.approx(balanced_accuracy_score(truth, said))


def test_balanced_accuracy_leaves_out_absent_classes_and_needs_one() -> None:
    assert balanced_accuracy(torch.tensor([[3, 1, 0], [0, 0, 0], [1, 0, 1]])) == pytest.approx((0.75 + 0.5) / 2)
    with pytest.raises(ValueError, match="at least one sample"):
        balanced_accuracy(torch.zeros((2, 2), dtype=torch.int64))
