"""Networks for images: ours, written out, and torchvision's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from unlearning.models.architectures.arguments import Count, Shape, Size, Width, checked

Stem = Literal["imagenet", "small"]


def _image(shape: Shape, least: int = 8) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape[1:]) < least:
        raise ValueError(f"it takes (channels, height, width) with sides of at least {least}")
    return shape[0], shape[1], shape[2]


def _conv_bn(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, batch normalisation, ReLU; the side is kept, or halved by stride 2."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


@checked
def lenet5(*, input_shape: Shape, outputs: int) -> nn.Module:
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


@checked
def allcnn(*, input_shape: Shape, outputs: int, width: Width = 1.0) -> nn.Module:
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


@checked
def resnet9(*, input_shape: Shape, outputs: int, width: Width = 1.0) -> nn.Module:
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


@checked
def resnet20(*, input_shape: Shape, outputs: int, depth: Literal[20, 32, 44, 56] = 20) -> nn.Module:
    """The CIFAR family of `depth` = 6n + 2 layers."""
    channels, _, _ = _image(input_shape)
    return _CifarResNet(channels, (depth - 2) // 6, outputs)


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


def resnet(name: str) -> Callable[..., nn.Module]:
    """The builder of one of torchvision's residual networks."""

    @checked
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


def mobilenet(name: str) -> Callable[..., nn.Module]:
    """The builder of one of torchvision's MobileNets."""

    @checked
    def builder(*, input_shape: Shape, outputs: int) -> nn.Module:
        channels, _, _ = _image(input_shape)
        network: Any = _torchvision(name, outputs)
        network.features[0][0] = _stem(network.features[0][0], channels)
        return network  # type: ignore[no-any-return]

    return builder


def vgg(name: str) -> Callable[..., nn.Module]:
    """The builder of one of torchvision's VGG networks."""

    @checked
    def builder(*, input_shape: Shape, outputs: int) -> nn.Module:
        channels, _, _ = _image(input_shape, 32)
        network: Any = _torchvision(name, outputs)
        network.features[0] = _stem(network.features[0], channels)
        return network  # type: ignore[no-any-return]

    return builder


@checked
def vit_b_16(*, input_shape: Shape, outputs: int) -> nn.Module:
    """Patches of 16x16; the position embedding has the size of the input, 224x224 as published."""
    channels, height, width = _image(input_shape, 16)
    if height != width or height % 16:
        raise ValueError("it takes square images with a side that 16 divides")
    network: Any = _torchvision("vit_b_16", outputs, image_size=height)
    if channels != 3:
        network.conv_proj = _stem(network.conv_proj, channels)
        nn.init.trunc_normal_(network.conv_proj.weight, std=(channels * 16 * 16) ** -0.5)
    return network  # type: ignore[no-any-return]


@checked
def vit_small(*, input_shape: Shape, outputs: int, layers: Count = 6, hidden: Size = 192) -> nn.Module:
    """A transformer over seven patches a side, or as few more as divide it evenly; heads of 64 values."""
    channels, height, width = _image(input_shape, 8)
    if height != width:
        raise ValueError("it takes square images")
    if hidden % 64:
        raise ValueError("hidden must be a multiple of 64, the width of a head")
    from torchvision.models import VisionTransformer

    network: Any = VisionTransformer(
        image_size=height,
        patch_size=max(side for side in range(1, height // 7 + 1) if height % side == 0),
        num_layers=layers,
        num_heads=hidden // 64,
        hidden_dim=hidden,
        mlp_dim=4 * hidden,
        num_classes=outputs,
    )
    if channels != 3:
        network.conv_proj = _stem(network.conv_proj, channels)
    return network  # type: ignore[no-any-return]
