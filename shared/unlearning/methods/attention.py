"""Attention maps: where in an input a network's activations are large, for one network to copy from another.

Source: Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv:1612.03928, in the form that
arXiv:2201.05629 and arXiv:2210.08196 use. Departs from their code: activations without a spatial or time axis keep
their features (there they collapse to the constant 1, and the loss to 0).
"""

from __future__ import annotations

import math
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
    """What the named modules put out in the model's latest call, filled anew by every forward pass in here.

    Of a module that returns several things, a recurrent layer, the first is kept, batch first. A module that is called
    again within one pass adds "name (2)", "name (3)", ...

    Raises:
        ValueError: For a name that the model has no module for.
    """
    modules = dict(model.named_modules())
    if unknown := [name for name in names if name not in modules]:
        raise ValueError(f"the model has no module {', '.join(unknown)}")
    outputs: dict[str, Tensor] = {}
    calls: dict[str, int] = {}

    def forget(module: nn.Module, inputs: object) -> None:
        outputs.clear()
        calls.clear()

    def keep(name: str) -> object:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            calls[name] = calls.get(name, 0) + 1
            if (tensor := _batch_first(module, output)) is not None:
                outputs[name if calls[name] == 1 else f"{name} ({calls[name]})"] = tensor

        return modules[name].register_forward_hook(hook)

    handles = [model.register_forward_pre_hook(forget), *(keep(name) for name in names)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]


def attended_modules(
    model: nn.Module, input_shape: Sequence[int], *, hidden: bool = False, dtype: torch.dtype = torch.float32
) -> tuple[str, ...]:
    """Names of the modules whose outputs are a network's attention maps: those of its convolution blocks, in order.

    A block is a module of its own class (not a mere sequence) that maps images to images and holds a convolution:
    a residual block; elsewhere a convolution with the normalisation and activation that follow it, up to the next
    other module. A network that is one such block as a whole is looked into. Left out: convolutions that cut patches
    (stride = kernel > 1) and maps of a single position, whose attention is constant.

    Args:
        model: Left unchanged.
        input_shape: Of one input, without the batch.
        hidden: Whether a network without convolutions has attention too: by the same rule, of its recurrent and linear
            layers with the activation that follows, and of blocks that hold such. The network's own output is none.
        dtype: Of an input: int64 for a network that reads token ids.

    Returns:
        Empty for a network without such blocks: a perceptron, a vision transformer, unless `hidden`.
    """
    shown: dict[nn.Module, Tensor] = {}  # kept, so that no two share memory by chance

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if (tensor := _batch_first(module, output)) is not None:
            shown[module] = tensor

    handles = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with evaluating(model), torch.no_grad():
            outputs = model(torch.zeros((2, *input_shape), dtype=dtype, device=device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    names = {module: name for name, module in model.named_modules()}
    shapes = {module: tuple(tensor.shape) for module, tensor in shown.items()}
    found = _blocks(model, {module: shape for module, shape in shapes.items() if _is_map(shape)}, _CONVOLUTIONS)
    if not found and hidden:
        last = {module for module, tensor in shown.items() if tensor.data_ptr() == outputs.data_ptr()}
        inner = {module: shape for module, shape in shapes.items() if module not in last and _is_vector(shape)}
        found = _blocks(model, inner, _LAYERS)
    return tuple(names[module] for module in found)


_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d)
_LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.RNNBase)


def _batch_first(module: nn.Module, output: object) -> Tensor | None:
    """The tensor that a module put out, the first of several; None for anything else."""
    first = output[0] if isinstance(output, tuple) and output else output
    if not isinstance(first, Tensor):
        return None
    turned = isinstance(module, nn.RNNBase) and not module.batch_first and first.dim() == 3
    return first.transpose(0, 1) if turned else first


def _blocks(
    root: nn.Module, shapes: Mapping[nn.Module, tuple[int, ...]], kinds: tuple[type[nn.Module], ...]
) -> list[nn.Module]:
    """The blocks of layers of these kinds beneath a module that is itself none; `shapes` has what can be a map."""
    found: list[nn.Module] = []
    children = list(root.children())
    for place, child in enumerate(children):
        if isinstance(child, kinds):
            end: nn.Module = child
            for follower in children[place + 1 :]:
                if not (_is_elementwise(follower) and shapes.get(follower, ()) == shapes.get(child)):
                    break
                end = follower
            if end in shapes and not _cuts_patches(child):
                found.append(end)
        elif not isinstance(child, nn.Sequential | nn.ModuleList | nn.ModuleDict) and child in shapes:
            if any(isinstance(part, kinds) for part in child.modules()):
                found.append(child)
        else:
            found += _blocks(child, shapes, kinds)
    if len(found) == 1 and len(inner := _blocks(found[0], shapes, kinds)) > 1:
        return inner
    return found


def _is_map(shape: tuple[int, ...]) -> bool:
    return len(shape) > 2 and math.prod(shape[2:]) > 1


def _is_vector(shape: tuple[int, ...]) -> bool:
    return len(shape) in (2, 3) and shape[0] == 2 and shape[-1] > 1


def _is_elementwise(module: nn.Module) -> bool:
    kind = type(module).__module__
    return kind in ("torch.nn.modules.activation", "torch.nn.modules.batchnorm", "torch.nn.modules.normalization")


def _cuts_patches(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return False
    return tuple(layer.stride) == tuple(layer.kernel_size) and max(layer.kernel_size) > 1
