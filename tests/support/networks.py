"""One small network of every architecture: its arguments, the shape of a sample, and samples."""

from typing import Any

import torch
from torch import Tensor, nn

from unlearning.models.architectures import ARCHITECTURES, build

SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "lstm": ({"hidden": 6, "layers": 2, "dropout": 0.1}, (9, 3)),
    "cnn1d": ({"width": 0.1, "dropout": 0.1}, (24, 3)),
    "pair_lstm": ({"vocabulary": 11, "embedding": 5, "hidden": 4, "joined": "compared"}, (2, 7)),
    "tft": ({"encoder": 6, "observed": 2, "series": 4, "hidden": 8, "heads": 2}, (9, 6)),
    "resnet18": ({"stem": "small"}, (3, 32, 32)),
    "resnet34": ({"stem": "small"}, (3, 32, 32)),
}
"""Where the defaults and a small image will not do."""
IMAGES = sorted(ARCHITECTURES.keys() - {"lstm", "cnn1d", "pair_lstm", "tft"})
"""The architectures that take images; the one for tables among them flattens them."""
OUTPUTS = 6


def small(name: str, *, outputs: int = OUTPUTS, seed: int = 0) -> nn.Module:
    """A freshly built network whose weights come from the seed."""
    arguments, shape = of(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(name, arguments, input_shape=shape, outputs=outputs)


def of(name: str) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Its arguments, and the shape of a sample."""
    return SMALL.get(name, ({}, (3, 32, 32)))


def inputs_for(name: str, count: int = 4, seed: int = 0) -> Tensor:
    """Random samples that the small network takes."""
    arguments, shape = of(name)
    generator = torch.Generator().manual_seed(seed)
    if name == "pair_lstm":
        return torch.randint(arguments["vocabulary"], (count, *shape), generator=generator)
    samples = torch.randn(count, *shape, generator=generator)
    if name == "tft":
        samples[..., -1] = torch.randint(arguments["series"], (count, 1), generator=generator).float()
    return samples
