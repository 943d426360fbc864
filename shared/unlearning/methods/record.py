"""What a distilling stage says of its own course, besides the model that it returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillRecord:
    """The course of one distillation.

    Attributes:
        histories: Named series, one value for each step or each look: "loss", "auc", ...
        notes: What was decided, and from which figures: "stopped", "teacher.entropy", ...
        samples: Pseudo-samples worth showing, shape (N, ...), in normalised input space; None where there are none.
    """

    histories: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, str | float | int] = field(default_factory=dict)
    samples: Tensor | None = None
