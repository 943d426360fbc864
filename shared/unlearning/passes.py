"""How a network is run over a batch: in which order of memory, in which precision, and how much of it at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unlearning.processes import batchnorm_over_all
from unlearning.speed import GIB, Speed, in_force

Pass = Callable[[Tensor], Tensor]

SMALL = 3 * 64 * 64
"""Values of an input up to which a whole batch fits, so that nothing is measured."""


@contextmanager
def prepared(model: nn.Module) -> Iterator[Pass]:
    """A forward pass of the model as the switches in force want it; the model itself is put back afterwards.

    Outputs are float32 in any precision.
    """
    speed = in_force()
    device = next(model.parameters()).device
    with ExitStack() as stack:
        order = stack.enter_context(ordered(model))
        if speed.checkpointing:
            stack.enter_context(checkpointed(model))
        if speed.sync_batchnorm:
            stack.enter_context(batchnorm_over_all(model))
        network: Any = torch.compile(model) if speed.compile else model

        def run(inputs: Tensor) -> Tensor:
            with lowered(speed, device):
                outputs: Tensor = network(order(inputs))
            return outputs.float()

        yield run


@contextmanager
def ordered(model: nn.Module) -> Iterator[Pass]:
    """What puts inputs into the order of memory that the weights have in here: channels last, for convolutions."""
    if not (in_force().channels_last and any(isinstance(module, nn.Conv2d) for module in model.modules())):
        yield lambda inputs: inputs
        return
    model.to(memory_format=torch.channels_last)
    try:
        yield lambda inputs: inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs
    finally:
        model.to(memory_format=torch.contiguous_format)


def lowered(speed: Speed, device: torch.device) -> Any:
    """The precision of forward passes: autocast, or nothing for fp32."""
    if speed.precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """In here, the model's blocks forget their activations, and compute them again in the backward pass.

    A block is a part of a sequence that has parts itself, the innermost such: a residual block, a layer of a
    transformer. BatchNorm statistics are counted once, and dropout drops the same units the second time.
    """
    candidates = {
        id(block): block
        for sequence in model.modules()
        if isinstance(sequence, nn.Sequential)
        for block in sequence
        if any(True for _ in block.children())
    }
    blocks = [
        block
        for key, block in candidates.items()
        if not any(id(part) in candidates for part in block.modules() if id(part) != key)
    ]
    for block in blocks:
        block.forward = partial(_again, block, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _again(block: nn.Module, forward: Callable[..., Any], *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), _uncounted(block)))


@contextmanager
def _uncounted(block: nn.Module) -> Iterator[None]:
    """BatchNorm leaves its running statistics as they are."""
    norms = [module for module in block.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if norm.num_batches_tracked is None else norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, counted) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counted


def rows_at_once(model: nn.Module, run: Pass, inputs: Tensor, wanted: int) -> int:
    """Rows that one pass may take: `micro_batch`, or as many as `memory_gib` holds of what backward passes need.

    Measured on one row, in eval mode; small inputs go unmeasured, all at once.

    Args:
        model: Left as it is.
        run: Its forward pass.
        inputs: Of one row, shape (1, ...) or as many as a row gives, where the model is.
        wanted: Rows of the whole batch; >= 1.
    """
    speed = in_force()
    if speed.micro_batch:
        return min(wanted, speed.micro_batch)
    if not speed.memory_gib or not inputs.is_floating_point() or inputs[0].numel() <= SMALL:
        return wanted
    kept = kept_bytes(model, run, inputs) * (2 if speed.checkpointing else 1)  # and one block's, once more
    return max(1, min(wanted, int(speed.memory_gib * GIB / max(kept, 1))))


def kept_bytes(model: nn.Module, run: Pass, inputs: Tensor) -> int:
    """Bytes that a forward pass in eval mode keeps for its backward pass, without the weights.

    Args:
        model: Left as it is.
        run: Its forward pass.
        inputs: Shape (B, ...).
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            run(inputs)
    finally:
        for module, training in modes:
            module.training = training
    return sum(seen.values())
