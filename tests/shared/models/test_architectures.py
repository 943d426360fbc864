import math
import sys
from importlib import metadata
from typing import Any

import pytest
import torch
from support.networks import IMAGES, inputs_for, of, small
from torch import nn

from unlearning.data.samples import TensorSamples, TokenSamples
from unlearning.errors import ModelError
from unlearning.losses import loss_of
from unlearning.methods.attention import attended_modules
from unlearning.models.architectures import ARCHITECTURES, ENTRY_POINTS, build
from unlearning.training import Recipe, generator, train

SMALL = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]
OWN = {"lenet5", "allcnn", "resnet9", "resnet20", "mlp"}


def parameters(name: str, arguments: dict[str, Any], shape: tuple[int, ...], outputs: int = 10) -> int:
    with torch.device("meta"):
        return sum(each.numel() for each in build(name, arguments, input_shape=shape, outputs=outputs).parameters())


@pytest.mark.parametrize(
    ("name", "arguments", "shape", "expected"),
    [
        # conv 6*(25+1), conv 16*(150+1), 400*120+120, 120*84+84, 84*10+10
        ("lenet5", {}, (1, 28, 28), 156 + 2416 + 48120 + 10164 + 850),
        ("lenet5", {}, (3, 32, 32), 456 + 2416 + 48120 + 10164 + 850),
        # two padded convolutions leave 16 maps of 2x2
        ("lenet5", {}, (1, 8, 8), 156 + 2416 + 64 * 120 + 120 + 10164 + 850),
        # 3->96, 96->96, 96->192, four 192->192, one 1x1; two numbers for each of 2*96 + 6*192 channels; linear
        ("allcnn", {}, (3, 32, 32), 2592 + 82944 + 165888 + 4 * 331776 + 36864 + 2 * 1344 + 1930),
        # the same with 6 and 12 channels, and 1 input channel
        ("allcnn", {"width": 0.0625}, (1, 8, 8), 54 + 324 + 648 + 4 * 1296 + 144 + 2 * 84 + 130),
        # 3->64, 64->128, 2 x 128->128, 128->256, 3 x 256->256; batch normalisation of 1472 channels; 1024 -> 10
        ("resnet9", {}, (3, 32, 32), 1728 + 73728 + 2 * 147456 + 294912 + 3 * 589824 + 2944 + 10250),
        ("resnet20", {}, (3, 32, 32), 269_722),
        # three more blocks in each stage of 16, 32, 64 for every 18 layers: 3 * sum(2 * (9 c^2 + 2 c))
        ("resnet20", {"depth": 56}, (3, 32, 32), 269_722 + 6 * 2 * sum(9 * c * c + 2 * c for c in (16, 32, 64))),
        ("mlp", {"hidden": [5, 4]}, (7,), 7 * 5 + 5 + 5 * 4 + 4 + 4 * 10 + 10),
        ("mlp", {"hidden": []}, (2, 3), 6 * 10 + 10),
        # torchvision publishes 11,689,512 with 1000 classes; 990 fewer rows of 512 weights and a bias
        ("resnet18", {}, (3, 224, 224), 11_689_512 - 990 * 513),
        # the stem goes from 7x7 to 3x3: 64 * 3 * (49 - 9) fewer
        ("resnet18", {"stem": "small"}, (3, 32, 32), 11_689_512 - 990 * 513 - 64 * 3 * 40),
        ("resnet34", {}, (3, 224, 224), 21_797_672 - 990 * 513),
        ("resnet50", {}, (3, 224, 224), 25_557_032 - 990 * 2049),
        ("mobilenet_v2", {}, (3, 224, 224), 3_504_872 - 990 * 1281),
        ("mobilenet_v3_large", {}, (3, 224, 224), 5_483_032 - 990 * 1281),
        ("mobilenet_v3_small", {}, (3, 224, 224), 2_542_856 - 990 * 1025),
        ("vgg11_bn", {}, (3, 224, 224), 132_868_840 - 990 * 4097),
        ("vgg16_bn", {}, (3, 224, 224), 138_365_992 - 990 * 4097),
        ("vit_b_16", {}, (3, 224, 224), 86_567_656 - 990 * 769),
        # 4x4 patches, 64 positions and a class token; six layers of 192: attention, two norms, 192 -> 768 -> 192
        (
            "vit_small",
            {},
            (3, 32, 32),
            (48 + 1) * 192 + 66 * 192 + 6 * (4 * 193 * 192 + 4 * 192 + 193 * 768 + 769 * 192) + 384 + 1930,
        ),
        # 196 - 4 fewer positions of 768, and patches of one channel in place of three
        ("vit_b_16", {}, (1, 32, 32), 86_567_656 - 990 * 769 - 192 * 768 - 768 * 2 * 256),
    ],
)
def test_the_number_of_parameters_is_the_derived_or_published_one(
    name: str, arguments: dict[str, Any], shape: tuple[int, ...], expected: int
) -> None:
    assert parameters(name, arguments, shape) == expected


@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize(
    "name",
    [name for name in IMAGES if name not in ("resnet34", "resnet50", "vgg11_bn", "vgg16_bn", "vit_b_16", "vit_small")],
)
def test_small_images_give_finite_logits_and_reach_every_weight(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    arguments = {"stem": "small"} if name == "resnet18" else {}
    network = build(name, arguments, input_shape=shape, outputs=7)
    logits = network(torch.randn(4, *shape))
    assert logits.shape == (4, 7)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert [key for key, weight in network.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize(
    ("name", "shape"), [("vgg11_bn", (1, 32, 32)), ("vit_b_16", (1, 32, 32)), ("resnet50", (2, 64, 48))]
)
def test_larger_networks_take_other_channels_too(name: str, shape: tuple[int, ...]) -> None:
    with torch.inference_mode():
        network = build(name, {}, input_shape=shape, outputs=3).eval()
        assert network(torch.zeros(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_no_network_works_in_place_or_holds_what_no_state_dict_has(name: str) -> None:
    arguments, shape = of(name)
    with torch.device("meta"):
        network = build(name, arguments, input_shape=shape, outputs=6)
    assert network.training
    assert [key for key, module in network.named_modules() if getattr(module, "inplace", False)] == []
    named = {key for key, _ in (*network.named_parameters(), *network.named_buffers())}
    assert named == network.state_dict().keys()


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - {*IMAGES} | {"mlp"}))
def test_networks_for_other_data_give_finite_outputs_and_reach_every_weight(name: str) -> None:
    network = small(name)
    outputs = network(inputs_for(name))
    assert outputs.shape == (4, 6)
    assert outputs.isfinite().all()
    outputs.square().sum().backward()
    assert [key for key, weight in network.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - {*IMAGES} | {"allcnn", "mlp"}))
def test_the_seed_decides_the_trained_weights_to_the_byte(name: str) -> None:
    samples = (TokenSamples if name == "pair_lstm" else floats)(inputs_for(name, 12), torch.arange(12.0))
    if name == "tft":
        samples = floats(inputs_for(name, 12), torch.arange(36.0).view(12, 3))
    recipe = Recipe(epochs=2, batch_size=4, loss="quantile", quantiles=(0.3, 0.6)) if name == "tft" else FEW

    def trained(seed: int) -> dict[str, torch.Tensor]:
        network = small(name, outputs=6 if name == "tft" else 1, seed=seed)
        train(network, samples, recipe, generator=generator(seed, "train"))
        return network.state_dict()

    first, again, other = trained(0), trained(0), trained(1)
    assert all(torch.equal(weight, again[key]) for key, weight in first.items())
    assert not all(torch.equal(weight, other[key]) for key, weight in first.items())


FEW = Recipe(epochs=2, batch_size=4, loss="l1")


def floats(inputs: torch.Tensor, targets: torch.Tensor) -> TensorSamples:
    return TensorSamples(inputs, targets, mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("allcnn", {"width": 0.1}),
        ("resnet20", {}),
        ("resnet18", {"stem": "small"}),
        ("mobilenet_v2", {}),
        ("mobilenet_v3_large", {}),
    ],
)
def test_a_network_for_images_can_predict_a_number_and_has_blocks_to_imitate(
    name: str, arguments: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    network = build(name, arguments, input_shape=(3, 32, 32), outputs=1)
    loss = loss_of("l1")(network(torch.randn(4, 3, 32, 32)), torch.tensor([21.0, 4.0, 80.0, 55.0]))
    loss.backward()
    assert [key for key, weight in network.named_parameters() if weight.grad is None] == []
    assert len(attended_modules(network, (3, 32, 32), hidden=True)) > 3


def test_resnet9_adds_the_input_after_the_last_relu() -> None:
    network = build("resnet9", {"width": 0.1}, input_shape=(3, 32, 32), outputs=2).eval()
    block = network.get_submodule("features.3")
    maps = -torch.ones(1, 13, 4, 4)
    with torch.no_grad():
        for weight in block.parameters():
            weight.zero_()
        # zero weights make the residual 0, so a ReLU after the sum would show as 0
        assert torch.equal(block(maps), maps)


def test_resnet20_shortcut_takes_every_second_pixel_and_puts_zero_channels_on_both_sides() -> None:
    network = build("resnet20", {}, input_shape=(3, 32, 32), outputs=2).eval()
    block = network.get_submodule("layer2.0")
    maps = torch.rand(1, 16, 6, 6)
    with torch.no_grad():
        for weight in block.parameters():
            weight.zero_()
        out = block(maps)
    assert torch.equal(out[:, 8:24], maps[:, :, ::2, ::2])
    assert out[:, :8].count_nonzero() == out[:, 24:].count_nonzero() == 0


def test_the_seed_decides_the_weights() -> None:
    def first(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return next(build("allcnn", {"width": 0.1}, input_shape=(1, 8, 8), outputs=2).parameters()).detach()

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("lenet", {}, 'unknown architecture "lenet"; did you mean "lenet5"?'),
        ("os.system", {}, 'unknown architecture "os.system"'),
        ("../../evil", {}, "known: allcnn, cnn1d, lenet5"),
        ("allcnn", {"widht": 1.0}, '"widht"; did you mean "width"?'),
        ("lenet5", {"width": 1.0}, "it takes: none"),
        ("allcnn", {"width": "1"}, "width: Input should be a valid number"),
        ("allcnn", {"width": 9.0}, "less than or equal to 8"),
        ("allcnn", {"width": 0}, "greater than 0"),
        ("allcnn", {"width": math.nan}, "width"),
        ("allcnn", {"outputs": 2}, "outputs cannot be among its arguments"),
        ("resnet20", {"depth": 21}, "20, 32, 44 or 56"),
        ("resnet18", {"stem": "large"}, "'imagenet' or 'small'"),
        ("mlp", {"hidden": 3}, "hidden"),
        ("mlp", {"hidden": [3, -1]}, "hidden.1"),
        ("mlp", {"hidden": [8] * 17}, "at most 16"),
    ],
)
def test_unknown_names_and_wrong_arguments_are_refused(name: str, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError) as caught:
        build(name, arguments, input_shape=(3, 32, 32), outputs=10)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "outputs"),
    [
        ("mlp", (), 2),
        ("mlp", (4, 0), 2),
        ("mlp", (4.0,), 2),
        ("mlp", (4,), 0),
        ("mlp", (4,), True),
        ("mlp", (4,), 100_001),
        ("mlp", (2_000_000,), 2),
        ("mlp", (2_000, 2_000), 2),
        ("lenet5", (12,), 2),
        ("lenet5", (1, 7, 8), 2),
        ("lenet5", (1, 8, 4096), 2),
        ("allcnn", (65, 8, 8), 2),
        ("resnet18", (3, 28, 28), 2),
        ("vgg11_bn", (3, 28, 28), 2),
        ("vit_b_16", (3, 32, 48), 2),
        ("vit_b_16", (3, 40, 40), 2),
        ("vit_small", (3, 32, 40), 2),
    ],
)
def test_shapes_that_a_network_cannot_take_are_refused(name: str, shape: Any, outputs: int) -> None:
    with pytest.raises(ModelError, match=name):
        build(name, {}, input_shape=shape, outputs=outputs)


def tiny(*, input_shape: tuple[int, ...], outputs: int, bias: bool = True) -> nn.Module:
    """A builder as a user's package would have it."""
    if len(input_shape) != 1:
        raise ValueError("tables only")
    return nn.Linear(input_shape[0], outputs, bias=bias)


def no_module(*, input_shape: tuple[int, ...], outputs: int) -> str:
    return "a network"


def register(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    monkeypatch.setitem(sys.modules, "users_package", sys.modules[__name__])
    listed = [metadata.EntryPoint(name, value, ENTRY_POINTS) for name, value in points]
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: listed if group == ENTRY_POINTS else [])


def test_a_users_builder_is_found_through_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, ("tiny", "users_package:tiny"))
    network = build("tiny", {"bias": False}, input_shape=(4,), outputs=2)
    assert [tuple(weight.shape) for weight in network.parameters()] == [(2, 4)]
    with pytest.raises(ModelError, match=r'"bais"; did you mean "bias"'):
        build("tiny", {"bais": False}, input_shape=(4,), outputs=2)
    with pytest.raises(ModelError, match="tables only"):
        build("tiny", {}, input_shape=(1, 8, 8), outputs=2)


@pytest.mark.parametrize(
    ("points", "name", "says"),
    [
        ([("lenet5", "users_package:tiny")], "lenet5", "architecture lenet5 is registered more than once"),
        ([("tiny", "users_package:tiny"), ("tiny", "users_package:no_module")], "tiny", "more than once"),
        ([("tiny", "users_package:gone")], "tiny", "users_package:gone"),
        ([("tiny", "no_such_package:tiny")], "tiny", "no_such_package"),
        ([("tiny", "users_package:OWN")], "tiny", "not callable"),
        ([("tiny", "users_package:no_module")], "tiny", "returned str, wanted a torch.nn.Module"),
        ([("tiny", "users_package:tiny")], "tyni", 'did you mean "tiny"'),
    ],
)
def test_a_users_registration_that_cannot_serve_is_refused(
    monkeypatch: pytest.MonkeyPatch, points: list[tuple[str, str]], name: str, says: str
) -> None:
    register(monkeypatch, *points)
    with pytest.raises(ModelError) as caught:
        build(name, {}, input_shape=(4,), outputs=2)
    assert says in str(caught.value)


def test_torchvision_is_not_imported_for_our_own_networks() -> None:
    import subprocess

    code = "import sys; from unlearning.models.architectures import build, ARCHITECTURES\n"
    code += f"for name in {sorted(OWN)}: build(name, {{}}, input_shape=(1, 28, 28), outputs=2)\n"
    code += "sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
