import math

import pytest
import torch
from torch import Tensor, nn

from unlearning.methods.attention import attended_modules, attention_loss, attention_map, recorded
from unlearning.models.architectures import build
from unlearning.training import build_seeded, generator

torch.set_num_threads(1)


def random(*shape: int, purpose: str = "activations") -> Tensor:
    return torch.randn(shape, generator=generator(0, purpose))


def test_a_map_averages_squares_over_channels_and_has_unit_length() -> None:
    # two channels over 1 x 2 positions: squares 1, 9 and 49, 25; their means 25 and 17
    activation = torch.tensor([[[[1.0, -3.0]], [[7.0, 5.0]]]])
    length = math.hypot(25, 17)
    assert attention_map(activation)[0].tolist() == pytest.approx([25 / length, 17 / length])


def test_a_sequence_is_averaged_over_its_second_axis_and_features_are_kept() -> None:
    # (1, 2, 2), squares [[1, 0], [9, 4]], means 5 and 2
    assert attention_map(torch.tensor([[[1.0, 0.0], [3.0, 2.0]]]))[0].tolist() == pytest.approx(
        [5 / math.sqrt(29), 2 / math.sqrt(29)]
    )
    # (1, 2): squares 9 and 16
    assert attention_map(torch.tensor([[3.0, -4.0]]))[0].tolist() == pytest.approx(
        [9 / math.hypot(9, 16), 16 / math.hypot(9, 16)]
    )


def test_a_silent_activation_has_a_zero_map_and_a_finite_gradient() -> None:
    activation = torch.zeros((2, 3, 4, 4), requires_grad=True)
    attention_map(activation).sum().backward()
    assert activation.grad is not None
    assert bool(activation.grad.isfinite().all())
    assert not attention_map(activation).any()


def test_an_activation_without_a_second_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs a batch axis and another, got shape \(3,\)"):
        attention_map(torch.ones(3))


@pytest.mark.parametrize("shape", [(5, 7), (5, 6, 7), (5, 3, 4, 4)])
def test_the_loss_is_positive_for_different_activations_of_any_dimension_and_zero_for_equal_ones(
    shape: tuple[int, ...],
) -> None:
    ours, theirs = attention_map(random(*shape)), attention_map(random(*shape, purpose="others"))
    assert attention_loss([ours], [theirs]).item() > 1e-4
    assert attention_loss([ours], [ours.clone()]).item() == 0.0


def test_the_loss_sums_over_layers_the_mean_over_samples_and_positions() -> None:
    ours, theirs = [random(2, 3), random(2, 5)], [random(2, 3, purpose="o"), random(2, 5, purpose="o")]
    slow = 0.0
    for a, b in zip(ours, theirs, strict=True):
        squares = [(a[i, j] - b[i, j]).item() ** 2 for i in range(len(a)) for j in range(a.shape[1])]
        slow += sum(squares) / len(squares)
    assert attention_loss(ours, theirs).item() == pytest.approx(slow)
    assert attention_loss([], []).item() == 0.0


def test_maps_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same shapes, got \[\(2, 3\)\] and \[\(2, 4\)\]"):
        attention_loss([random(2, 3)], [random(2, 4)])


def network(architecture: str, shape: tuple[int, ...], **arguments: object) -> nn.Module:
    return build_seeded(lambda: build(architecture, arguments, input_shape=shape, outputs=4), 0)


@pytest.mark.parametrize(
    ("architecture", "shape", "arguments", "count"),
    [
        ("allcnn", (1, 8, 8), {"width": 0.1}, 8),  # every convolution
        ("lenet5", (1, 28, 28), {}, 2),
        ("resnet9", (3, 32, 32), {"width": 0.1}, 6),  # four convolutions, two residual blocks
        ("resnet20", (3, 32, 32), {}, 10),  # the stem and nine blocks
        ("resnet18", (3, 64, 64), {"stem": "small"}, 9),  # the stem and eight blocks
        ("mobilenet_v3_small", (3, 64, 64), {}, 13),  # the stem, eleven blocks, the last convolution
        ("mlp", (1, 8, 8), {}, 0),
        ("vit_b_16", (3, 32, 32), {}, 0),
    ],
)
def test_convolution_blocks_are_found_in_every_kind_of_network(
    architecture: str, shape: tuple[int, ...], arguments: dict[str, object], count: int
) -> None:
    model = network(architecture, shape, **arguments)
    names = attended_modules(model, shape)
    assert len(names) == count
    with recorded(model.eval(), names) as outputs, torch.no_grad():
        model(random(2, *shape))
    maps = [attention_map(outputs[name]) for name in names]
    assert all(one.shape[0] == 2 and one.shape[1] > 1 for one in maps)


def test_a_lenet_is_read_after_its_activations_and_before_pooling() -> None:
    model = network("lenet5", (1, 28, 28))
    assert attended_modules(model, (1, 28, 28)) == ("features.1", "features.4")


def test_a_network_that_is_one_block_as_a_whole_is_looked_into() -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU())

        def forward(self, inputs: Tensor) -> Tensor:
            maps: Tensor = self.layers(inputs)
            return maps

    model = nn.Sequential(Backbone(), nn.Flatten(), nn.Linear(32, 3))
    assert attended_modules(model, (1, 8, 8)) == ("0.layers.1", "0.layers.3")


def test_looking_for_blocks_leaves_mode_statistics_and_hooks_as_they_were() -> None:
    model = network("allcnn", (1, 8, 8), width=0.1).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attended_modules(model, (1, 8, 8))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_recording_ends_with_its_block_and_refuses_unknown_names() -> None:
    model = network("lenet5", (1, 28, 28))
    with recorded(model, ["features.1"]) as outputs:
        model(random(1, 1, 28, 28))
    assert outputs["features.1"].shape == (1, 6, 28, 28)
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(ValueError, match=r"no module features\.9"), recorded(model, ["features.9"]):
        pass


class Siamese(nn.Module):
    """Two sequences through one recurrent layer, then two hidden layers."""

    def __init__(self, batch_first: bool = True) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.memory = nn.LSTM(5, 8, batch_first=batch_first)
        self.hidden = nn.Sequential(nn.Linear(16, 6), nn.ReLU(), nn.Dropout(0.1), nn.Linear(6, 4), nn.ReLU())
        self.last = nn.Linear(4, 1)

    def forward(self, pairs: Tensor) -> Tensor:  # (B, 2, T, 5)
        ends = []
        for place in range(2):
            sequence = pairs[:, place] if self.batch_first else pairs[:, place].transpose(0, 1)
            states, _ = self.memory(sequence)
            ends.append(states[:, -1] if self.batch_first else states[-1])
        score: Tensor = self.last(self.hidden(torch.cat(ends, 1)))
        return score


@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_and_hidden_layers_are_found_where_there_are_no_convolutions(batch_first: bool) -> None:
    model = build_seeded(lambda: Siamese(batch_first), 0).eval()
    assert attended_modules(model, (2, 3, 5)) == ()
    names = attended_modules(model, (2, 3, 5), hidden=True)
    assert names == ("memory", "hidden.1", "hidden.4")
    with recorded(model, names) as outputs, torch.no_grad():
        model(random(7, 2, 3, 5))
        assert list(outputs) == ["memory", "memory (2)", "hidden.1", "hidden.4"]
        assert outputs["memory"].shape == (7, 3, 8)
        model(random(4, 2, 3, 5))  # filled anew
        assert [tuple(one.shape) for one in outputs.values()] == [(4, 3, 8), (4, 3, 8), (4, 6), (4, 4)]
    assert [tuple(attention_map(one).shape) for one in outputs.values()] == [(4, 8), (4, 8), (4, 6), (4, 4)]


def test_each_sequence_of_a_pair_has_its_own_map() -> None:
    model, pairs = build_seeded(Siamese, 0).eval(), random(3, 2, 4, 5)
    with recorded(model, ("memory",)) as outputs, torch.no_grad():
        model(pairs)
    for place, name in enumerate(("memory", "memory (2)")):
        assert torch.allclose(outputs[name], model.memory(pairs[:, place])[0])


@pytest.mark.parametrize(
    ("architecture", "shape", "arguments", "names"),
    [
        ("mlp", (4,), {"hidden": (8, 6)}, ("2", "4")),  # after their activations, without the output
        ("mlp", (4,), {"hidden": (8, 1)}, ("2",)),  # a single value has a constant map
        ("lenet5", (1, 28, 28), {}, ("features.1", "features.4")),  # convolutions come first
    ],
)
def test_a_perceptron_has_the_maps_of_its_hidden_layers(
    architecture: str, shape: tuple[int, ...], arguments: dict[str, object], names: tuple[str, ...]
) -> None:
    assert attended_modules(network(architecture, shape, **arguments), shape, hidden=True) == names


def test_blocks_of_linear_layers_are_one_map_each() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.value, self.gate = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs + self.value(inputs) * self.gate(inputs).sigmoid()

    model = nn.Sequential(nn.Linear(3, 6), Gated(), Gated(), nn.Linear(6, 1))
    assert attended_modules(model, (4, 3), hidden=True) == ("0", "1", "2")


def test_convolutions_over_time_have_maps_over_time() -> None:
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3), nn.Flatten(), nn.Linear(12, 1))
    names = attended_modules(model, (1, 10))
    assert names == ("1", "2")
    with recorded(model, names) as outputs, torch.no_grad():
        model(random(3, 1, 10))
    assert [tuple(attention_map(one).shape) for one in outputs.values()] == [(3, 8), (3, 6)]


def test_a_network_that_reads_token_ids_is_asked_with_token_ids() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.memory, self.last = nn.Embedding(9, 4), nn.GRU(4, 6, batch_first=True), nn.Linear(6, 1)

        def forward(self, ids: Tensor) -> Tensor:
            score: Tensor = self.last(self.memory(self.words(ids))[0][:, -1])
            return score

    assert attended_modules(Reader(), (5,), hidden=True, dtype=torch.int64) == ("memory",)
