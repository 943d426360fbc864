import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from support.digits import GONE, blank, case
from torch import Tensor, nn

from unlearning.attacks.prototype import PrototypeAttack, prototype_attack, prototypes
from unlearning.attacks.relearning import few_shots
from unlearning.data.samples import Joined
from unlearning.metrics.features import features
from unlearning.training import generator


def test_prototypes_and_accuracies_by_hand() -> None:
    shots, labels = torch.tensor([[2.0, 0.0], [0.0, 5.0], [1.0, 0.0]]), torch.tensor([0, 1, 0])
    means = prototypes(shots, labels, classes=3)
    assert means[:2].tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert bool(means[2].isnan().all())
    # angles: the first two are nearer to class 0, the last to class 1; class 2 has no prototype and is never said
    asked, truth = torch.tensor([[3.0, 1.0], [0.2, 0.1], [0.0, 1.0]]), torch.tensor([0, 1, 2])
    found = prototype_attack(shots, labels, asked, truth, classes=3, forget_classes=(0,))
    assert found == PrototypeAttack(forget_accuracy=1.0, retain_accuracy=0.0, per_class=(1.0, 0.0, 0.0))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_it_is_scikit_learns_nearest_neighbour_by_angle_and_blind_to_length(seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    shots, asked = torch.randn((30, 4), generator=source), torch.randn((40, 4), generator=source)
    labels, truth = torch.arange(30) % 3, torch.arange(40) % 3
    means = prototypes(shots, labels, classes=3)
    oracle = KNeighborsClassifier(1, metric="cosine").fit(means.numpy(), [0, 1, 2])
    said = oracle.predict(asked.double().numpy())
    found = prototype_attack(shots, labels, asked, truth, classes=3, forget_classes=(1, 2))
    right = torch.from_numpy(said) == truth
    assert found.forget_accuracy == pytest.approx(right[truth > 0].double().mean().item())
    assert found.retain_accuracy == pytest.approx(right[truth == 0].double().mean().item())
    scaled = prototype_attack(
        shots * torch.rand((30, 1), generator=source).add(0.1), labels, asked * 7, truth, classes=3, forget_classes=(1,)
    )
    assert scaled.per_class == pytest.approx(found.per_class)


def test_without_other_rows_there_is_no_retain_accuracy() -> None:
    one, label = torch.ones((1, 2)), torch.zeros(1, dtype=torch.int64)
    found = prototype_attack(one, label, one, label, classes=2, forget_classes=(0,))
    assert (found.forget_accuracy, found.retain_accuracy, found.per_class) == (1.0, None, (1.0, None))


def test_on_digits_a_silenced_class_is_recognised_as_by_the_original_and_better_than_by_a_retrained_model() -> None:
    digits = case("class")
    assert digits.task.forget is not None
    assert digits.task.retain is not None
    silenced = copy.deepcopy(digits.original)
    with torch.no_grad():
        silenced.get_submodule("classifier.4").bias[GONE] = -30  # type: ignore[operator]
    rows = Joined(digits.task.retain, digits.task.forget)
    shots = few_shots(rows, 5, generator(0, "shots"))
    held_out = Joined(digits.retain_test, digits.forget_test)

    def attacked(model: nn.Module) -> PrototypeAttack:
        return prototype_attack(
            features(model, shots),
            shots.targets,
            features(model, held_out),
            held_out.targets,
            classes=10,
            forget_classes=(GONE,),
        )

    original, retrained = attacked(digits.original), attacked(digits.retrained)
    assert attacked(silenced) == original
    assert original.forget_accuracy > retrained.forget_accuracy + 0.1
    assert retrained.forget_accuracy > 0.3, "features tell an unknown class apart to a degree"
    assert (attacked(blank(5)).retain_accuracy or 0) < 0.8 < (retrained.retain_accuracy or 0)


@pytest.mark.parametrize(
    ("asked", "truth", "gone", "words"),
    [
        (torch.zeros((1, 3)), [0], (0,), "features of one model"),
        (torch.zeros((1, 2)), [0], (1,), r"every forgotten class, got none of \[1\]"),
        (torch.zeros((1, 2)), [0], (2,), r"got none of \[2\]"),
        (torch.zeros((1, 2)), [0], (), "at least one forgotten class"),
        (torch.zeros((0, 2)), [], (0,), "wanted features"),
        (torch.zeros((2, 2)), [0], (0,), "wanted features"),
        (torch.tensor([[math.nan, 0.0]]), [0], (0,), "NaN"),
    ],
)
def test_what_cannot_be_attacked_is_refused(asked: Tensor, truth: list[int], gone: tuple[int, ...], words: str) -> None:
    shots, labels = torch.eye(2), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=words):
        prototype_attack(shots, labels, asked, torch.tensor(truth, dtype=torch.int64), classes=3, forget_classes=gone)
