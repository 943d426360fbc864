"""What makes the loops faster or smaller without changing what they compute: one switch each, in force for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from unlearning.config import About, build

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The switches. The defaults are those that were measured to pay; see `benchmarks/README.md`."""

    channels_last: Annotated[bool, About("images and convolutions in the order that processors read them in")] = True
    precision: Annotated[
        Literal["fp32", "bf16"], About("of forward and backward passes; losses and weights stay fp32")
    ] = "fp32"
    compile: Annotated[bool, About("torch.compile of trained networks; needs a C++ compiler on a CPU")] = False
    micro_batch: Annotated[
        int, About("most rows in one pass, gradients are summed; 0: as many as memory_gib holds")
    ] = 0
    memory_gib: Annotated[float, About("GiB that what one pass keeps for its backward pass may take; 0: no bound")] = (
        4.0
    )
    checkpointing: Annotated[bool, About("compute each block's activations again instead of keeping them")] = False
    sync_batchnorm: Annotated[bool, About("BatchNorm over the rows of all processes, not of each")] = True

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if self.micro_batch < 0 or not self.memory_gib >= 0:
            raise ValueError(
                f"micro_batch and memory_gib must be at least 0, got {self.micro_batch} and {self.memory_gib}"
            )


_DEFAULT = Speed()
_IN_FORCE: ContextVar[Speed] = ContextVar("speed", default=_DEFAULT)


def in_force() -> Speed:
    """The switches as they stand."""
    return _IN_FORCE.get()


@contextmanager
def using(speed: Speed) -> Iterator[None]:
    """These switches are in force in here."""
    token = _IN_FORCE.set(speed)
    try:
        yield
    finally:
        _IN_FORCE.reset(token)


def speed_from(text: str) -> Speed:
    """The switches that a text sets, the others as they are by default.

    Args:
        text: Such as "precision=bf16,micro_batch=32"; empty: the defaults.

    Raises:
        UsageError: For a switch that there is not, and for a value that it cannot have.

    Example:
        >>> speed_from("precision=bf16,checkpointing=true").checkpointing
        True
    """
    given: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        given[name.strip()] = value.strip()
    return build(Speed, given, what="UNLEARN_SPEED")
