"""What a distilling stage is given besides the model."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass, replace
from typing import Literal

from torch import nn

from unlearning.data.samples import Samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The rows that a method may read, and how to make a network like the original; what it may not read is None.

    Attributes:
        input_shape: Of one input, without the batch.
        outputs: Width of the network's output: logits, or values.
        forget_classes: Class indices of a class request; empty when rows are forgotten.
        blank: A freshly initialised network of the original's architecture, by seed.
        forget: The training rows to forget, with their targets.
        retain: The retain rows at hand, with their targets.
        calibration: Rows that were never trained on and that the verdict does not use.
        targets: What the rows' targets are: indices of classes, or values to be regressed on.
    """

    input_shape: tuple[int, ...]
    outputs: int
    forget_classes: tuple[int, ...]
    blank: Callable[[int], nn.Module]
    forget: Samples | None = None
    retain: Samples | None = None
    calibration: Samples | None = None
    targets: Literal["classes", "values"] = "classes"

    def restricted(self, reads: Container[str]) -> Task:
        """The task with those rows only: "forget", "retain", "calibration"."""
        return replace(
            self,
            forget=self.forget if "forget" in reads else None,
            retain=self.retain if "retain" in reads else None,
            calibration=self.calibration if "calibration" in reads else None,
        )
