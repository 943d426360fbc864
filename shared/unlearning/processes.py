"""The same loop in several processes: whose rows are whose, sums over all of them, and BatchNorm over all their rows.

Every process runs the whole program on the same seed, so that all draw the same orders and take the same decisions.
Each computes its share of every batch; the gradients are added up before each step. Started by torchrun, with gloo
between CPUs and NCCL between GPUs. Outside of `joined`, everything here is for one process and does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

WAIT = timedelta(minutes=30)
"""How long a process waits for the others before it gives up."""


@dataclass(frozen=True, slots=True)
class Team:
    """Who works together.

    Attributes:
        rank: This process's number, from 0; 0 writes what is written.
        size: How many there are.
    """

    rank: int
    size: int


_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


def team() -> Team:
    """The processes that share this work; a team of one outside of `joined`, and within `alone`."""
    if _ALONE.get() or not (dist.is_available() and dist.is_initialized()):
        return Team(0, 1)
    return Team(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined() -> Iterator[Team]:
    """The processes that torchrun started, connected; a team of one where it started none."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Team(0, 1)
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=WAIT)
    else:
        dist.init_process_group("gloo", timeout=WAIT)
    try:
        yield team()
    finally:
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """What each process does by itself in here, such as a shadow model of its own."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def share(rows: Tensor, parts: int = 1) -> list[Tensor]:
    """This process's share of some rows, in so many parts; all of them where there are fewer rows than processes.

    All processes get equally many parts, none of them empty, so that they meet equally often.

    Args:
        rows: Shape (N,).
        parts: Wanted; >= 1. There are never more than rows in the smallest share.
    """
    here = team()
    if len(rows) < here.size:
        return [rows]
    own = rows.tensor_split(here.size)[here.rank]
    return list(own.tensor_split(max(1, min(parts, len(rows) // here.size))))


def copies(rows: int) -> int:
    """How many processes compute each row of a batch: 1, or all where there are fewer rows than processes."""
    here = team()
    return here.size if rows < here.size else 1


def add_up(tensors: Sequence[Tensor]) -> None:
    """Each tensor becomes its sum over all processes, in place and in one message."""
    if team().size == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(part.view(tensor.shape))


def put_together(own: Tensor, rows: Tensor, count: int) -> Tensor:
    """The rows of all processes in one tensor, the same on each.

    Args:
        own: This process's, shape (M, ...).
        rows: Their numbers, shape (M,); no other process has one of them.
        count: How many there are in all.
    """
    if team().size == 1 and len(own) == count:
        return own
    whole = own.new_zeros((count, *own.shape[1:]))
    whole[rows.to(own.device)] = own
    if team().size > 1:
        dist.all_reduce(whole)
    return whole


def by_each(jobs: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
    """What `work` makes of each job, in their order; every process takes some of them and works alone.

    Args:
        jobs: As many as there are; each is done once.
        work: Gives something that can be pickled.
    """
    here = team()
    if here.size == 1:
        return [work(job) for job in jobs]
    with alone():
        own = {number: work(jobs[number]) for number in range(here.rank, len(jobs), here.size)}
    found: list[dict[int, Any]] = [{} for _ in range(here.size)]
    dist.all_gather_object(found, own)
    every = {number: result for one in found for number, result in one.items()}
    return [every[number] for number in range(len(jobs))]


@contextmanager
def batchnorm_over_all(model: nn.Module) -> Iterator[None]:
    """In here, each BatchNorm of the model takes its statistics from the rows of all processes.

    torch's SyncBatchNorm does so on GPUs only; this one does wherever the processes can add up.
    """
    changed = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if team().size == 1:
        changed = []
    for module in changed:
        module.forward = partial(_normalised, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in changed:
            del module.forward


class _Total(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum over all processes, too."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _normalised(norm: nn.modules.batchnorm._BatchNorm, inputs: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, inputs)
    x = inputs.float()
    others = [dim for dim in range(x.dim()) if dim != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    own = x.new_tensor([float(x.numel() // x.shape[1])])
    sums = _total(torch.cat([x.sum(others), own]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = x - mean.view(shape)
    variance = _total(centred.square().sum(others)) / count
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        share = 1 / float(norm.num_batches_tracked or 1) if norm.momentum is None else norm.momentum
        with torch.no_grad():
            norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
            norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var.dtype), share)
    scaled = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        scaled = scaled * norm.weight.view(shape) + norm.bias.view(shape)
    return scaled.to(inputs.dtype)


def _total(own: Tensor) -> Tensor:
    total: Tensor = _Total.apply(own)
    return total
