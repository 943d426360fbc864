"""Attention maps: where in an input a network's activations are large, for one network to copy from another.

Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv:1612.03928, in the form that
arXiv:2201.05629 and arXiv:2210.08196 use. Departs from their code: activations without a spatial or time axis keep
their features (there they collapse to the constant 1, and the loss to 0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.training import device_of, evaluating


def attention_map(activation: Tensor) -> Tensor:
    r"""A = normalise(flatten(mean over the second axis of A^2)), each sample's map with unit L2 norm.

    Args:
        activation: A: (B, C, H, W), (B, C, L) or (B, T, D), averaged over its second axis; (B, D), taken as it is.

    Returns:
        Shape (B, J): H * W, L or D values >= 0; zeros where the activation is zero.

    Raises:
        ValueError: For an activation without a batch and at least one more axis.
    """
    if activation.dim() < 2:
        raise ValueError(f"an activation needs a batch axis and another, got shape {tuple(activation.shape)}")
    energy = activation.square()
    if activation.dim() > 2:
        energy = energy.mean(1)
    return F.normalize(energy.flatten(1), dim=1)


def attention_loss(maps: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    r"""Sum over layers of the mean over samples and positions of (a_l - b_l)^2.

    Args:
        maps: a_l of the learning network, from `attention_map`, one (B, J_l) per layer.
        targets: b_l of the network to copy, of the same shapes.

    Returns:
        Scalar >= 0; 0 where the maps agree, and for no layers at all.

    Raises:
        ValueError: When layers or shapes differ.
    """
    if [a.shape for a in maps] != [b.shape for b in targets]:
        ours, theirs = ([tuple(one.shape) for one in group] for group in (maps, targets))
        raise ValueError(f"attention maps of both networks must have the same shapes, got {ours} and {theirs}")
    return sum(((a - b).square().mean() for a, b in zip(maps, targets, strict=True)), torch.zeros(()))


@contextmanager
def recorded(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the named modules put out in their latest call, filled anew by every forward pass in here.

    Raises:
        ValueError: For a name that the model has no module for.
    """
    modules = dict(model.named_modules())
    if unknown := [name for name in names if name not in modules]:
        raise ValueError(f"the model has no module {', '.join(unknown)}")
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            outputs[name] = output

        return modules[name].register_forward_hook(hook)

    handles = [keep(name) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]


def attended_modules(model: nn.Module, input_shape: Sequence[int]) -> tuple[str, ...]:
    """Names of the modules whose outputs are a CNN's attention maps: those of its convolution blocks, in order.

    A block is a module of its own class (not a mere sequence) that maps images to images and holds a convolution:
    a residual block; elsewhere a convolution with the normalisation and activation that follow it, up to the next
    other module. A network that is one such block as a whole is looked into. Left out: convolutions that cut patches
    (stride = kernel > 1) and maps of a single position, whose attention is constant.

    Args:
        model: Left unchanged.
        input_shape: Of one input, without the batch.

    Returns:
        Empty for a network without such blocks: a perceptron, a vision transformer.
    """
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            shapes[module] = tuple(output.shape)

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with evaluating(model), torch.no_grad():
            model(torch.zeros((1, *input_shape), device=device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    names = {module: name for name, module in model.named_modules()}
    return tuple(names[module] for module in _blocks(model, shapes))


def _blocks(root: nn.Module, shapes: Mapping[nn.Module, tuple[int, ...]]) -> list[nn.Module]:
    """The blocks beneath a module that is itself none."""
    found: list[nn.Module] = []
    children = list(root.children())
    for place, child in enumerate(children):
        if isinstance(child, nn.Conv2d):
            end: nn.Module = child
            for follower in children[place + 1 :]:
                if not (_is_elementwise(follower) and shapes.get(follower) == shapes.get(child)):
                    break
                end = follower
            if not _cuts_patches(child) and _is_map(end, shapes):
                found.append(end)
        elif not isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict) and _is_map(child, shapes):
            if any(isinstance(part, nn.Conv2d) for part in child.modules()):
                found.append(child)
        else:
            found += _blocks(child, shapes)
    if len(found) == 1 and len(inner := _blocks(found[0], shapes)) > 1:
        return inner
    return found


def _is_map(module: nn.Module, shapes: Mapping[nn.Module, tuple[int, ...]]) -> bool:
    shape = shapes.get(module, ())
    return len(shape) == 4 and shape[2] * shape[3] > 1


def _is_elementwise(module: nn.Module) -> bool:
    kind = type(module).__module__
    return kind in ("torch.nn.modules.activation", "torch.nn.modules.batchnorm", "torch.nn.modules.normalization")


def _cuts_patches(conv: nn.Conv2d) -> bool:
    return tuple(conv.stride) == tuple(conv.kernel_size) and max(conv.kernel_size) > 1
