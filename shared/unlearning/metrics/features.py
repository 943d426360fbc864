"""What a network's output layer reads: the features that are left when only that layer was edited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from unlearning.data.samples import Samples
from unlearning.training import device_of, evaluating, fitting


def output_layer(model: nn.Module, example: Tensor) -> str:
    """The name of the last module with weights of its own that a forward pass calls.

    Args:
        model: Asked in eval mode; left unchanged.
        example: A batch of inputs, shape (B, ...).

    Raises:
        ValueError: For a model without such modules.
    """
    called: list[str] = []

    def note(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda *_: called.append(name)

    owners = [(name, module) for name, module in model.named_modules() if any(True for _ in module.parameters(False))]
    if not owners:
        raise ValueError("the model has no layer with weights, so it has no output layer and no features")
    handles = [module.register_forward_pre_hook(note(name)) for name, module in owners]
    try:
        with evaluating(model), torch.inference_mode():
            model(example.to(device_of(model)))
    finally:
        for handle in handles:
            handle.remove()
    return called[-1]


def features(model: nn.Module, samples: Samples, *, batch_size: int = 1024) -> Tensor:
    """What the output layer reads for every sample in order, shape (N, D), float32, on the CPU.

    Maps with positions (a convolution as the output layer) are averaged over them.

    Args:
        model: Asked in eval mode, in one pass; left unchanged.
        samples: At least one.
        batch_size: Rows in a forward pass.

    Raises:
        ValueError: For no samples, or a model without an output layer.
    """
    if len(samples) == 0:
        raise ValueError("wanted features of at least one sample, got none")
    device = device_of(model)
    layer = model.get_submodule(output_layer(model, samples.batch(torch.arange(1))[0]))
    read: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        read.append(_flat(inputs[0]).float().cpu())

    handle = layer.register_forward_pre_hook(keep)
    try:
        with evaluating(model), torch.inference_mode():
            for rows in torch.arange(len(samples)).split(fitting(batch_size, device)):
                model(samples.batch(rows)[0].to(device))
    finally:
        handle.remove()
    return torch.cat(read).clone()


def _flat(activation: Tensor) -> Tensor:
    """(B, D) of (B, D) or (B, D, ...)."""
    return activation if activation.dim() == 2 else activation.flatten(2).mean(2)
