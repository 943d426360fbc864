"""The networks that a model card may name, and how each is built.

A card never carries code: it names one of `ARCHITECTURES`, or a builder that the user installed and registered through
the entry-point group `unlearning.architectures`. Every network takes a batch `(N, *input_shape)` and returns logits
`(N, outputs)`; no activation works in place, so that hooks may keep what they read.
"""

from __future__ import annotations

import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, ValidationError, validate_call
from torch import Tensor, nn
from torch.nn import functional as F

from unlearning.config import nearest
from unlearning.errors import ModelError

ENTRY_POINTS = "unlearning.architectures"
"""The entry-point group of users' own builders: `name = "package.module:builder"`."""

MAX_CHANNELS = 64
MAX_SIDE = 1024
MAX_FEATURES = 1_000_000
MAX_OUTPUTS = 100_000

Shape = tuple[int, ...]
Width = Annotated[float, Field(gt=0, le=8, allow_inf_nan=False)]
Hidden = Annotated[Sequence[Annotated[int, Field(ge=1, le=16_384)]], Field(max_length=16)]
Stem = Literal["imagenet", "small"]

_checked = validate_call(config=ConfigDict(strict=True))


@dataclass(frozen=True)
class Architecture:
    """One network that may be built by name.

    Attributes:
        build: `build(*, input_shape, outputs, **arguments) -> nn.Module`; raises `ValueError` for what does not fit.
        summary: What it is, in one line.
        source: Where it was described, or which package brings it.
    """

    build: Callable[..., nn.Module]
    summary: str
    source: str


def build(name: str, arguments: Mapping[str, Any], *, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A freshly initialised network, in training mode.

    The weights come from torch's global generator: seed it, or fork it, to choose them.

    Args:
        name: A key of `ARCHITECTURES`, or a name registered under `unlearning.architectures`.
        arguments: The builder's own settings, as JSON gives them; `{}` for its defaults.
        input_shape: Shape of one sample: (channels, height, width), or (features,) for tables.
        outputs: Number of logits, at least 1.

    Raises:
        ModelError: For an unknown name or argument, for values out of range, and for shapes the network cannot take.
    """
    architecture = find(name)
    shape = _check_shape(name, tuple(input_shape), outputs)
    if fixed := {"input_shape", "outputs"} & arguments.keys():
        raise ModelError(
            f"{name}: {' and '.join(sorted(fixed))} cannot be among its arguments; they have their own place"
        )
    parameters = inspect.signature(architecture.build).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        known = [key for key in parameters if key not in ("input_shape", "outputs")]
        if unknown := [f'"{key}"{nearest(key, known)}' for key in arguments if key not in known]:
            raise ModelError(f"{name}: unknown argument {'; '.join(unknown)} (it takes: {', '.join(known) or 'none'})")
    try:
        network = architecture.build(input_shape=shape, outputs=outputs, **arguments)
    except ValidationError as error:
        mistakes = (f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg']}" for mistake in error.errors())
        raise ModelError(f"{name}: {'; '.join(mistakes)}") from error
    except (TypeError, ValueError) as error:
        raise ModelError(f"{name} cannot be built for inputs {list(shape)} and {outputs} outputs: {error}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"the builder of {name} returned {type(network).__name__}, wanted a torch.nn.Module")
    return network


def find(name: str) -> Architecture:
    """The architecture of that name: ours, or one that an installed package registers.

    Raises:
        ModelError: For a name that nobody provides, or that two provide.
    """
    registered = list(metadata.entry_points(group=ENTRY_POINTS))
    counts = Counter([*ARCHITECTURES, *(point.name for point in registered)])
    if twice := sorted(key for key, count in counts.items() if count > 1):
        raise ModelError(
            f"architecture {', '.join(twice)} is registered more than once under {ENTRY_POINTS} or belongs to "
            "this package: rename it in the package that registers it"
        )
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    for point in registered:
        if point.name == name:
            try:
                builder = point.load()
            except (ImportError, AttributeError) as error:
                raise ModelError(f'the architecture "{name}" is registered as {point.value}: {error}') from error
            if not callable(builder):
                raise ModelError(f'the architecture "{name}" is registered as {point.value}, which is not callable')
            return Architecture(builder, f"registered as {point.value}", point.value)
    raise ModelError(f'unknown architecture "{name}"{nearest(name, counts)} (known: {", ".join(sorted(counts))})')


def _check_shape(name: str, shape: Shape, outputs: int) -> Shape:
    fits = all(type(size) is int and size >= 1 for size in (*shape, outputs)) and 1 <= len(shape) <= 3
    if fits:
        most = (MAX_CHANNELS, MAX_SIDE, MAX_SIDE) if len(shape) == 3 else (MAX_FEATURES,) * len(shape)
        fits = outputs <= MAX_OUTPUTS and all(size <= limit for size, limit in zip(shape, most, strict=True))
    if not fits:
        raise ModelError(
            f"{name}: inputs {list(shape)} and {outputs} outputs are out of range; wanted (channels, height, width) up "
            f"to ({MAX_CHANNELS}, {MAX_SIDE}, {MAX_SIDE}), (steps, values) or (features,) up to {MAX_FEATURES}, and 1 "
            f"to {MAX_OUTPUTS} outputs"
        )
    return shape


def _image(shape: Shape, least: int = 8) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape[1:]) < least:
        raise ValueError(f"it takes (channels, height, width) with sides of at least {least}")
    return shape[0], shape[1], shape[2]


def _conv_bn(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch normalisation, ReLU; the side is kept, or halved by stride 2."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


@_checked
def _lenet5(*, input_shape: Shape, outputs: int) -> nn.Module:
    """Two 5x5 convolutions (6, 16), each with ReLU and 2x2 max pooling, then 120, 84 and the outputs.

    The padding keeps the classic maps where the image allows: 32 pixels and more go unpadded as in 1998, 28 to 31 get
    two pixels around the first convolution, smaller ones around both.
    """
    channels, height, width = _image(input_shape)
    side = min(height, width)
    first, second = (2 if side < 32 else 0), (2 if side < 28 else 0)
    rows, columns = (((n + 2 * first - 4) // 2 + 2 * second - 4) // 2 for n in (height, width))
    features = nn.Sequential(
        nn.Conv2d(channels, 6, 5, padding=first),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5, padding=second),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    classifier = nn.Sequential(
        nn.Linear(16 * rows * columns, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, outputs)
    )
    return _Classifier(features, nn.Flatten(), classifier)


class _Classifier(nn.Module):
    """Features, pooled or flattened to (N, F), then the classifier."""

    def __init__(self, features: nn.Module, pool: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.features, self.pool, self.classifier = features, pool, classifier

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, outputs)."""
        logits: Tensor = self.classifier(self.pool(self.features(inputs)))
        return logits


class _GlobalMean(nn.Module):
    """(N, C, H, W) to (N, C): the mean over the map."""

    def forward(self, maps: Tensor) -> Tensor:
        """The mean of every channel."""
        return maps.mean((2, 3))


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


@_checked
def _allcnn(*, input_shape: Shape, outputs: int, width: Width = 1.0) -> nn.Module:
    """Eight convolutions, two of them with stride 2 in place of pooling; `width` multiplies the channels."""
    channels, _, _ = _image(input_shape)
    narrow, wide = _scaled(96, width), _scaled(192, width)
    features = nn.Sequential(
        _conv_bn(channels, narrow),
        _conv_bn(narrow, narrow),
        _conv_bn(narrow, wide, stride=2),
        _conv_bn(wide, wide),
        _conv_bn(wide, wide),
        _conv_bn(wide, wide, stride=2),
        _conv_bn(wide, wide),
        _conv_bn(wide, wide, size=1),
    )
    return _Classifier(features, _GlobalMean(), nn.Linear(wide, outputs))


class _Residual(nn.Module):
    """The input plus two convolution blocks; the last ReLU comes before the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _conv_bn(channels, channels), _conv_bn(channels, channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Same shape as the input."""
        residual: Tensor = self.second(self.first(inputs))
        return inputs + residual


@_checked
def _resnet9(*, input_shape: Shape, outputs: int, width: Width = 1.0) -> nn.Module:
    """Six convolutions and two residual blocks; four 2x2 max pools, the last one left out below 16 pixels.

    Order: 64, 128, pool, residual 128, 256, pool, 256, pool, residual 256, pool, linear. Each convolution is followed
    by batch normalisation (momentum 0.1) and ReLU; in a residual block the ReLU comes before the sum.
    """
    channels, height, columns = _image(input_shape)
    a, b, c = (_scaled(n, width) for n in (64, 128, 256))
    rows, columns = height // 8, columns // 8
    layers: list[nn.Module] = [
        _conv_bn(channels, a),
        _conv_bn(a, b),
        nn.MaxPool2d(2),
        _Residual(b),
        _conv_bn(b, c),
        nn.MaxPool2d(2),
        _conv_bn(c, c),
        nn.MaxPool2d(2),
        _Residual(c),
    ]
    if min(rows, columns) >= 2:
        layers.append(nn.MaxPool2d(2))
        rows, columns = rows // 2, columns // 2
    return _Classifier(nn.Sequential(*layers), nn.Flatten(), nn.Linear(c * rows * columns, outputs))


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut without parameters (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, inputs: Tensor) -> Tensor:
        """Maps of the output channels; the side is divided by the stride, rounded up."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(inputs)))))
        shortcut = inputs[:, :, :: self.stride, :: self.stride]
        if self.extra:
            before = self.extra // 2
            shortcut = F.pad(shortcut, (0, 0, 0, 0, before, self.extra - before))
        return F.relu(residual + shortcut)


class _CifarResNet(nn.Module):
    """A 3x3 convolution of 16, three stages of `blocks` blocks (16, 32, 64), mean pooling, one linear layer."""

    def __init__(self, channels: int, blocks: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = _BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(_BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (N, outputs)."""
        maps = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(inputs))))))
        logits: Tensor = self.linear(maps.mean((2, 3)))
        return logits


@_checked
def _resnet20(*, input_shape: Shape, outputs: int, depth: Literal[20, 32, 44, 56] = 20) -> nn.Module:
    """The CIFAR family of `depth` = 6n + 2 layers."""
    channels, _, _ = _image(input_shape)
    return _CifarResNet(channels, (depth - 2) // 6, outputs)


@_checked
def _mlp(*, input_shape: Shape, outputs: int, hidden: Hidden = (128,)) -> nn.Module:
    """Linear layers with ReLU between them; images are flattened."""
    sizes = [torch.Size(input_shape).numel(), *hidden]
    if sizes[0] > MAX_FEATURES:
        raise ValueError(f"{sizes[0]} features, at most {MAX_FEATURES} are supported")
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, size in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, size), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def _torchvision(name: str, outputs: int, **arguments: Any) -> nn.Module:
    """A network of torchvision, never with downloaded weights, with no activation working in place."""
    from torchvision import models

    network: nn.Module = models.get_model(name, weights=None, num_classes=outputs, **arguments)
    for module in network.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return network


def _stem(conv: nn.Module, channels: int) -> nn.Conv2d:
    """A convolution like `conv` for that many input channels."""
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"the first layer is {type(conv).__name__}, wanted Conv2d")
    if conv.in_channels == channels:
        return conv
    fresh = nn.Conv2d(
        channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
    if fresh.bias is not None:
        nn.init.zeros_(fresh.bias)
    return fresh


def _resnet(name: str) -> Callable[..., nn.Module]:
    @_checked
    def builder(*, input_shape: Shape, outputs: int, stem: Stem = "imagenet") -> nn.Module:
        channels, _, _ = _image(input_shape, 32 if stem == "imagenet" else 8)
        network: Any = _torchvision(name, outputs)
        if stem == "small":
            network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        network.conv1 = _stem(network.conv1, channels)
        return network  # type: ignore[no-any-return]

    return builder


def _mobilenet(name: str) -> Callable[..., nn.Module]:
    @_checked
    def builder(*, input_shape: Shape, outputs: int) -> nn.Module:
        channels, _, _ = _image(input_shape)
        network: Any = _torchvision(name, outputs)
        network.features[0][0] = _stem(network.features[0][0], channels)
        return network  # type: ignore[no-any-return]

    return builder


def _vgg(name: str) -> Callable[..., nn.Module]:
    @_checked
    def builder(*, input_shape: Shape, outputs: int) -> nn.Module:
        channels, _, _ = _image(input_shape, 32)
        network: Any = _torchvision(name, outputs)
        network.features[0] = _stem(network.features[0], channels)
        return network  # type: ignore[no-any-return]

    return builder


@_checked
def _vit_b_16(*, input_shape: Shape, outputs: int) -> nn.Module:
    """Patches of 16x16; the position embedding has the size of the input, 224x224 as published."""
    channels, height, width = _image(input_shape, 16)
    if height != width or height % 16:
        raise ValueError("it takes square images with a side that 16 divides")
    network: Any = _torchvision("vit_b_16", outputs, image_size=height)
    if channels != 3:
        network.conv_proj = _stem(network.conv_proj, channels)
        nn.init.trunc_normal_(network.conv_proj.weight, std=(channels * 16 * 16) ** -0.5)
    return network  # type: ignore[no-any-return]


ARCHITECTURES: dict[str, Architecture] = {
    "lenet5": Architecture(_lenet5, "LeNet-5 with ReLU and max pooling, images from 8x8", "LeCun and others, 1998"),
    "allcnn": Architecture(
        _allcnn, "All-CNN with batch normalisation and global mean pooling (width)", "Springenberg and others, 2015"
    ),
    "resnet9": Architecture(_resnet9, "nine-layer residual network for small images (width)", "He and others, 2016"),
    "resnet20": Architecture(_resnet20, "CIFAR ResNet with parameter-free shortcuts (depth)", "He and others, 2016"),
    "mlp": Architecture(_mlp, "linear layers with ReLU for tables (hidden)", "Rumelhart and others, 1986"),
    "resnet18": Architecture(_resnet("resnet18"), "ResNet-18 (stem: imagenet or small)", "torchvision"),
    "resnet34": Architecture(_resnet("resnet34"), "ResNet-34 (stem: imagenet or small)", "torchvision"),
    "resnet50": Architecture(_resnet("resnet50"), "ResNet-50 (stem: imagenet or small)", "torchvision"),
    "mobilenet_v2": Architecture(_mobilenet("mobilenet_v2"), "MobileNetV2", "torchvision"),
    "mobilenet_v3_large": Architecture(_mobilenet("mobilenet_v3_large"), "MobileNetV3 large", "torchvision"),
    "mobilenet_v3_small": Architecture(_mobilenet("mobilenet_v3_small"), "MobileNetV3 small", "torchvision"),
    "vgg11_bn": Architecture(_vgg("vgg11_bn"), "VGG-11 with batch normalisation, from 32x32", "torchvision"),
    "vgg16_bn": Architecture(_vgg("vgg16_bn"), "VGG-16 with batch normalisation, from 32x32", "torchvision"),
    "vit_b_16": Architecture(_vit_b_16, "Vision Transformer, square images of n x 16 pixels", "torchvision"),
}
"""Every architecture that this package knows, by the name that a card carries."""
