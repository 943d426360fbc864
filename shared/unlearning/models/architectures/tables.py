"""The network for tables."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from unlearning.models.architectures.arguments import MAX_FEATURES, Dropout, Hidden, Shape, checked


@checked
def mlp(*, input_shape: Shape, outputs: int, hidden: Hidden = (128,), dropout: Dropout = 0.0) -> nn.Module:
    """Linear layers with ReLU, perhaps dropout, between them; images are flattened."""
    sizes = [torch.Size(input_shape).numel(), *hidden]
    if sizes[0] > MAX_FEATURES:
        raise ValueError(f"{sizes[0]} features, at most {MAX_FEATURES} are supported")
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, size in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, size), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))
