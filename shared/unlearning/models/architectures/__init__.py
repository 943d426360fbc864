"""The networks that a model card may name, and how each is built.

A card never carries code: it names one of `ARCHITECTURES`, or a builder that the user installed and registered through
the entry-point group `unlearning.architectures`. Every network takes a batch `(N, *input_shape)` and returns
`(N, outputs)`: logits, or numbers to predict. No activation works in place, so that hooks may keep what they read.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from pydantic import ValidationError
from torch import nn

from unlearning.config import nearest
from unlearning.errors import ModelError
from unlearning.models.architectures import images, sequences, tables, tft
from unlearning.models.architectures.arguments import MAX_CHANNELS, MAX_FEATURES, MAX_OUTPUTS, MAX_SIDE, Shape

ENTRY_POINTS = "unlearning.architectures"
"""The entry-point group of users' own builders: `name = "package.module:builder"`."""


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
        input_shape: Shape of one sample: (channels, height, width), (features,) for tables, (steps, values) for
            sequences, (2, tokens) for pairs of texts.
        outputs: Number of logits; or of numbers to predict, 1 or horizon x quantiles (quantiles are the fastest).

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


ARCHITECTURES: dict[str, Architecture] = {
    "lenet5": Architecture(
        images.lenet5, "LeNet-5 with ReLU and max pooling, images from 8x8", "LeCun and others, 1998"
    ),
    "allcnn": Architecture(
        images.allcnn,
        "All-CNN with batch normalisation and global mean pooling (width)",
        "Springenberg and others, 2015",
    ),
    "resnet9": Architecture(
        images.resnet9, "nine-layer residual network for small images (width)", "He and others, 2016"
    ),
    "resnet20": Architecture(
        images.resnet20, "CIFAR ResNet with parameter-free shortcuts (depth)", "He and others, 2016"
    ),
    "mlp": Architecture(
        tables.mlp, "linear layers with ReLU for tables (hidden, dropout)", "Rumelhart and others, 1986"
    ),
    "lstm": Architecture(
        sequences.lstm,
        "LSTM over (steps, values), read at its last step (hidden, layers, dropout)",
        "Hochreiter and Schmidhuber, 1997",
    ),
    "cnn1d": Architecture(
        sequences.cnn1d, "convolutions over (steps, values) or (features,) (width, dropout)", "Wang and others, 2017"
    ),
    "pair_lstm": Architecture(
        sequences.pair_lstm, "one LSTM for two texts, linear layers for both (vocabulary, ...)", "arXiv:2210.08196"
    ),
    "tft": Architecture(
        tft.tft, "Temporal Fusion Transformer for windows of time (encoder, observed, ...)", "arXiv:1912.09363"
    ),
    "resnet18": Architecture(images.resnet("resnet18"), "ResNet-18 (stem: imagenet or small)", "torchvision"),
    "resnet34": Architecture(images.resnet("resnet34"), "ResNet-34 (stem: imagenet or small)", "torchvision"),
    "resnet50": Architecture(images.resnet("resnet50"), "ResNet-50 (stem: imagenet or small)", "torchvision"),
    "mobilenet_v2": Architecture(images.mobilenet("mobilenet_v2"), "MobileNetV2", "torchvision"),
    "mobilenet_v3_large": Architecture(images.mobilenet("mobilenet_v3_large"), "MobileNetV3 large", "torchvision"),
    "mobilenet_v3_small": Architecture(images.mobilenet("mobilenet_v3_small"), "MobileNetV3 small", "torchvision"),
    "vgg11_bn": Architecture(images.vgg("vgg11_bn"), "VGG-11 with batch normalisation, from 32x32", "torchvision"),
    "vgg16_bn": Architecture(images.vgg("vgg16_bn"), "VGG-16 with batch normalisation, from 32x32", "torchvision"),
    "vit_b_16": Architecture(images.vit_b_16, "Vision Transformer, square images of n x 16 pixels", "torchvision"),
    "vit_small": Architecture(
        images.vit_small, "small Vision Transformer, square images (layers, hidden)", "arXiv:2010.11929"
    ),
}
"""Every architecture that this package knows, by the name that a card carries."""
