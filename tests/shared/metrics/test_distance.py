import math

import pytest
import torch
from torch import nn

from unlearning.metrics.distance import layer_distances


def test_distances_by_hand_in_the_networks_order() -> None:
    reference = {"b.weight": torch.tensor([3.0, 4.0]), "b.bias": torch.zeros(1), "a.weight": torch.tensor([1.0])}
    other = {"b.weight": torch.tensor([3.0, 0.0]), "b.bias": torch.tensor([3.0]), "a.weight": torch.tensor([1.0])}
    first, second = layer_distances(reference, other)
    assert (first.layer, first.distance, first.relative, first.values) == ("b", 5.0, 1.0, 3)
    assert (second.layer, second.distance, second.relative, second.values) == ("a", 0.0, 0.0, 1)


def test_a_layer_of_zeros_has_no_relative_distance_once_it_moves() -> None:
    zeros = {"w": torch.zeros(2)}
    assert layer_distances(zeros, zeros)[0].relative == 0
    (moved,) = layer_distances(zeros, {"w": torch.tensor([3.0, 4.0])})
    assert (moved.layer, moved.distance, moved.relative) == ("", 5.0, math.inf)


def test_a_network_and_its_copy_are_at_no_distance_and_neither_changes() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    state = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    found = layer_distances(dict(network.named_parameters()), state)
    assert [one.layer for one in found] == ["0", "1"]
    assert all(one.distance == 0 for one in found)
    assert all(torch.equal(weight, state[name]) for name, weight in network.named_parameters())


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"v": torch.zeros(2)}, "different parameters"),
        ({"w": torch.zeros(3)}, "shape of w"),
        ({"w": torch.tensor([math.nan, 0.0])}, "not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(other: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        layer_distances({"w": torch.zeros(2)}, other)
