"""Model inversion: what does a network think a forgotten class looks like?

Inputs are optimised until the network is sure of the class, kept smooth by a penalty on total variation; they are shown
for the original, the unlearned and a retrained model, and scored by the original, which knows the class. A low score
does not prove that nothing can be reconstructed: this attack is a simple one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.config import About
from unlearning.metrics.accuracy import checked
from unlearning.progress import Progress, silent
from unlearning.training import device_of, evaluating


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionConfig:
    """Settings of the attack."""

    steps: Annotated[int, About("of Adam")] = 500
    learning_rate: Annotated[float, About("of Adam, in normalised input space")] = 0.05
    total_variation: Annotated[float, About("weight of the mean absolute difference of neighbouring pixels")] = 0.5
    square: Annotated[float, About("weight of the mean squared pixel, in normalised input space")] = 0.01
    start: Annotated[float, About("standard deviation of the noise that the images start from; 0: grey")] = 0.1

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")
        for name in ("total_variation", "square", "start"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionScore:
    """How much of a class is in the images, one value for each.

    Attributes:
        confidence: The original's probability of the class, in [0, 1]; compare with a retrained model's images.
        similarity: Correlation of the pixels with the class's mean image, in [-1, 1]; 0 for an image of one colour.
    """

    confidence: tuple[float, ...]
    similarity: tuple[float, ...]


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of vertical and of horizontal neighbours, added; of each image, shape (K,), >= 0.

    Args:
        images: Shape (K, C, H, W); a direction of a single pixel adds nothing.
    """
    down, across = images.diff(dim=2).abs(), images.diff(dim=3).abs()
    return sum((part.flatten(1).mean(1) for part in (down, across) if part.numel()), images.new_zeros(len(images)))


def invert(
    model: nn.Module,
    classes: Sequence[int],
    input_shape: Sequence[int],
    config: InversionConfig,
    *,
    generator: torch.Generator,
    progress: Progress = silent,
) -> Tensor:
    """Images for which the model is sure of the classes, shape (K, C, H, W), float32, normalised, on the CPU.

    All are optimised at once; in eval mode no image depends on another. The model is left as it is.

    Args:
        model: Attacked, in eval mode.
        classes: One for each image; name a class several times for several tries.
        input_shape: (C, H, W) of one image.
        config: Settings.
        generator: Of the noise to start from, on the CPU.
        progress: Called after every step.

    Raises:
        ValueError: For no classes, or inputs that are no images.
        FloatingPointError: When the loss is not finite.
    """
    if not classes or len(input_shape) != 3:
        raise ValueError(f"wanted classes and an image shape (C, H, W), got {len(classes)} and {tuple(input_shape)}")
    device = device_of(model)
    targets = torch.tensor(list(classes), device=device)
    images = config.start * torch.randn((len(classes), *input_shape), generator=generator)
    images = images.to(device).requires_grad_(True)
    optimiser = torch.optim.Adam([images], lr=config.learning_rate)
    with evaluating(model):
        for step in range(1, config.steps + 1):
            losses = F.cross_entropy(model(images), targets, reduction="none")
            penalty = config.total_variation * total_variation(images) + config.square * images.square().mean((1, 2, 3))
            loss = (losses + penalty).sum()
            (images.grad,) = torch.autograd.grad(loss, [images])
            optimiser.step()
            value = loss.item() / len(classes)
            if not math.isfinite(value):
                raise FloatingPointError(f"inversion: the loss became {value} at step {step}: the model is broken")
            progress("inversion", step, config.steps, value)
    return images.detach().float().cpu()


def inversion_score(images: Tensor, classes: Sequence[int], logits: Tensor, class_means: Tensor) -> InversionScore:
    """How the original sees the images, and how like the class they are.

    Args:
        images: From `invert`, shape (K, C, H, W).
        classes: The same as there.
        logits: The original's for the images, shape (K, outputs).
        class_means: Mean training image of each image's class, in the same normalised space, shape (K, C, H, W).

    Raises:
        ValueError: For shapes that do not fit, or NaN.
    """
    if images.shape != class_means.shape or len(images) != len(classes):
        raise ValueError(
            f"wanted one class and one mean image for each of {len(images)} images, got {len(classes)} and "
            f"{list(class_means.shape)}"
        )
    targets = torch.tensor(list(classes))
    checked(logits, targets)
    for values in (images, class_means):
        if not bool(values.isfinite().all()):
            raise ValueError("the images hold NaN or infinity")
    confidence = logits.double().softmax(1)[torch.arange(len(targets)), targets]
    one, other = (values.double().flatten(1) for values in (images, class_means))
    one, other = (F.normalize(values - values.mean(1, keepdim=True), dim=1) for values in (one, other))
    return InversionScore(
        confidence=tuple(confidence.tolist()), similarity=tuple((one * other).sum(1).clamp(-1, 1).tolist())
    )
