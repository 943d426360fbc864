"""Fisher forgetting: add noise to every weight, the more the less the retain rows depend on it; nothing is trained.

Source: Golatkar et al., "Eternal Sunshine of the Spotless Net", CVPR 2020, arXiv:1911.04933, with the rules of noise
that the authors' code and a public benchmark of it use.

The Fisher information is that of the model's own predictions: an expectation over its class probabilities, not over the
rows' labels. The published loop runs backward once for each row and class; here the rows of a batch go together, and
`labels="sampled"` draws one class for each row instead (C times cheaper, without bias). The rules for the last layer
apply to the last linear map to the outputs; the authors' code applies them to any tensor of that length.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from unlearning.config import About, build
from unlearning.data.samples import Rows, Samples
from unlearning.methods import Facts
from unlearning.methods.record import DistillRecord
from unlearning.methods.rows import needed, wrong_numbers
from unlearning.methods.task import Task
from unlearning.progress import Progress, silent
from unlearning.training import device_of, evaluating

MOST_VARIANCE = 1e3
MOST_VARIANCE_OF_LAST_LAYER = 1e2
FORGOTTEN_CLASS_VARIANCE = 1e-4
MORE_NOISE = 10.0
"""The bounds of 1 / F, before alpha; the variance that replaces a forgotten class's weights; the factor of the last
layer and of vectors (biases, normalisation)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FisherConfig:
    """Settings of Fisher forgetting."""

    alpha: Annotated[float, About("scale of the noise's variance", "code")] = 1e-6
    labels: Annotated[
        Literal["all", "sampled"], About("expectation over every class, or one drawn for each row", "code")
    ] = "all"
    rows: Annotated[int, About("most retain rows that the information is estimated from")] = 1000
    batch_size: Annotated[int, About("rows whose gradients are held at once; bounds memory")] = 64

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all named at once."""
        wrong = wrong_numbers(self, least={"rows": 1, "batch_size": 1}, positive=("alpha",))
        if wrong:
            raise ValueError("; ".join(wrong))


def configure(settings: Mapping[str, Any], facts: Facts) -> FisherConfig:
    """The configuration: the defaults whatever the facts.

    Raises:
        UsageError: For unknown settings or values out of range, all at once.
    """
    return build(FisherConfig, settings, what="fisher settings")


def fisher_information(
    model: nn.Module,
    samples: Samples,
    *,
    labels: Literal["all", "sampled"] = "all",
    batch_size: int = 64,
    generator: torch.Generator,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    r"""F: for each parameter the mean over rows of E_{c ~ p(x)} (d log p_c(x) / d w)^2, by name, >= 0.

    Args:
        model: Asked in eval mode; left unchanged.
        samples: N rows; their targets are not read.
        labels: "all": the exact expectation over classes; "sampled": one class drawn for each row.
        batch_size: Rows whose gradients are held at once, each as large as the model.
        generator: Of the drawn classes.
        progress: Called after every batch.
    """
    device = device_of(model)
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers = dict(model.named_buffers())
    total = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def squares(weights: dict[str, Tensor], x: Tensor, drawn: Tensor) -> dict[str, Tensor]:
        """Of one row: sum_c p_c (d log p_c / d w)^2; or that of the drawn class alone, without p."""
        log_p, pull_back, *_ = vjp(
            lambda w: F.log_softmax(functional_call(model, (w, buffers), (x.unsqueeze(0),)).squeeze(0), dim=0), weights
        )
        one_hot = torch.eye(len(log_p), device=device)
        if labels == "all":
            cases = list(zip(one_hot, log_p.detach().exp(), strict=True))
        else:
            cases = [((drawn == torch.arange(len(log_p), device=device)).float(), torch.ones((), device=device))]
        found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for chosen, weight in cases:
            for name, g in pull_back(chosen)[0].items():
                found[name] = found[name] + weight * g.square()
        return found

    of_rows: Callable[..., dict[str, Tensor]] = vmap(squares, in_dims=(None, 0, 0))
    with evaluating(model):
        for rows in torch.arange(len(samples)).split(batch_size):
            x = samples.batch(rows)[0].to(device)
            drawn = torch.zeros(len(x), dtype=torch.int64)
            if labels == "sampled":
                with torch.no_grad():
                    drawn = torch.multinomial(F.softmax(model(x), dim=1).cpu(), 1, generator=generator).squeeze(1)
            for name, value in of_rows(weights, x, drawn.to(device)).items():
                total[name] += value.sum(0)
            progress("fisher", int(rows[-1]) + 1, len(samples), 0.0)
    return {name: value / len(samples) for name, value in total.items()}


def last_layer(model: nn.Module, outputs: int) -> frozenset[str]:
    """Names of the weight and bias that make the outputs: the last matrix with that many rows, and its neighbour."""
    matrices = [name for name, p in model.named_parameters() if p.dim() > 1 and len(p) == outputs]
    if not matrices:
        return frozenset()
    layer = matrices[-1].rpartition(".")[0]
    return frozenset(name for name, _ in model.named_parameters() if name.rpartition(".")[0] == layer)


def noise_of(
    name: str,
    weight: Tensor,
    information: Tensor,
    *,
    alpha: float,
    last: frozenset[str] = frozenset(),
    forget_classes: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor]:
    """Mean and variance of the Gaussian that a parameter is drawn from, both of its shape.

    The mean is the weight. The variance is alpha * min(1 / (F + 1e-8), bound), averaged over the second dimension of
    matrices and filters, and ten times as large in the last layer and in vectors. The rows of forgotten classes in the
    last layer start anew: mean 0, a small variance.

    Args:
        name: Of the parameter.
        weight: Its value.
        information: F, of the same shape.
        alpha: Scale; > 0.
        last: Names of the last layer's parameters.
        forget_classes: Class indices of a class request.
    """
    bound = MOST_VARIANCE_OF_LAST_LAYER if name in last else MOST_VARIANCE
    variance = alpha * (1 / (information + 1e-8)).clamp(max=bound)
    if weight.dim() > 1:
        variance = variance.mean(dim=1, keepdim=True).expand_as(weight).clone()
    mean = weight.clone()
    if name in last:
        for c in forget_classes:
            mean[c], variance[c] = 0.0, FORGOTTEN_CLASS_VARIANCE
    if name in last or weight.dim() == 1:
        variance = variance * MORE_NOISE
    return mean, variance


def distill(
    original: nn.Module,
    task: Task,
    *,
    config: FisherConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> tuple[nn.Module, DistillRecord]:
    """A copy of the original with noise on every weight; and how much.

    Args:
        original: Left unchanged.
        task: With retain rows; their targets are not read.
        config: From `configure`.
        generator: Of the rows, the drawn classes and the noise.
        progress: Called after every batch of the estimate.

    Raises:
        UsageError: Without retain rows.
        FloatingPointError: When the information is not finite.
    """
    retain = needed(task, "retain", method="fisher")
    rows = Rows(retain, torch.randperm(len(retain), generator=generator)[: config.rows])
    information = fisher_information(
        original, rows, labels=config.labels, batch_size=config.batch_size, generator=generator, progress=progress
    )
    student = copy.deepcopy(original)
    last = last_layer(student, task.outputs)
    moved, size = 0.0, 0.0
    for name, weight in student.named_parameters():
        if not bool(torch.isfinite(information[name]).all()):
            raise FloatingPointError(f"fisher: the information of {name} is not finite; the model's outputs are broken")
        mean, variance = noise_of(
            name,
            weight.detach(),
            information[name],
            alpha=config.alpha,
            last=last,
            forget_classes=task.forget_classes,
        )
        noisy = mean + variance.sqrt() * torch.randn(weight.shape, generator=generator).to(weight.device)
        moved += (noisy - weight.detach()).square().sum().item()
        size += weight.detach().square().sum().item()
        weight.data.copy_(noisy)
    notes: dict[str, str | float | int] = {"rows": len(rows), "relative_change": math.sqrt(moved / max(size, 1e-30))}
    return student.eval(), DistillRecord(notes=notes)
