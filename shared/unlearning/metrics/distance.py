"""How far two models' weights lie apart, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDistance:
    """One layer's.

    Attributes:
        layer: Its name; "" for parameters of the whole network.
        distance: L2 norm of the difference, >= 0.
        relative: Over the reference's norm; infinite when that is 0 and the distance is not.
        values: How many numbers the layer has.
    """

    layer: str
    distance: float
    relative: float
    values: int


def layer_distances(reference: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> list[LayerDistance]:
    """The distance of each layer, in the network's order; give parameters or buffers, not both at once.

    Args:
        reference: Tensors by their full names: "conv.weight", ...
        other: The same names and shapes.

    Raises:
        ValueError: When they differ in names or shapes, or hold values that are not finite.
    """
    if reference.keys() != other.keys():
        raise ValueError("the models have different parameters")
    if wrong := [name for name, tensor in reference.items() if tensor.shape != other[name].shape]:
        raise ValueError(f"the models differ in the shape of {', '.join(wrong[:8])}")
    layers: dict[str, list[str]] = {}
    for name in reference:
        layers.setdefault(name.rpartition(".")[0], []).append(name)
    found = []
    for layer, names in layers.items():
        moved = math.fsum(_square(other[name].double() - reference[name].double()) for name in names)
        size = math.fsum(_square(reference[name].double()) for name in names)
        if not math.isfinite(moved) or not math.isfinite(size):
            raise ValueError(f"the weights of {layer or 'the network'} are not finite: the model is broken")
        relative = math.sqrt(moved / size) if size else (0.0 if not moved else math.inf)
        values = sum(reference[name].numel() for name in names)
        found.append(LayerDistance(layer=layer, distance=math.sqrt(moved), relative=relative, values=values))
    return found


def _square(values: Tensor) -> float:
    return values.square().sum().item()
