"""The one training loop, the recipes it follows, and predictions in one pass.

The loop runs as `unlearning.speed` has it, and shares each batch among the processes of `unlearning.processes`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.config import About
from unlearning.data.samples import Samples
from unlearning.losses import Loss, Name, loss_of, wrong_loss
from unlearning.passes import ordered, prepared, rows_at_once
from unlearning.processes import add_up, copies, put_together, share, team
from unlearning.progress import Progress, silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a model is trained from scratch; kept in its card, and followed again to retrain it."""

    epochs: Annotated[int, About("passes over the training rows", "rule")] = 10
    optimiser: Annotated[Literal["adam", "sgd"], About("sgd: with Nesterov momentum 0.9", "rule")] = "adam"
    learning_rate: Annotated[float, About("of the optimiser; the peak, when there is a schedule", "rule")] = 1e-3
    schedule: Annotated[Literal["constant", "one_cycle"], About("one_cycle: up to the rate, then to zero", "rule")] = (
        "one_cycle"
    )
    weight_decay: Annotated[float, About("of the optimiser", "rule")] = 1e-4
    batch_size: Annotated[int, About("rows in an update", "rule")] = 128
    clip_value: Annotated[float, About("bound of each gradient entry; 0: none", "rule")] = 0.0
    augmentation: Annotated[
        Literal["none", "shift", "shift_flip"], About("shift: by up to an eighth of each side; flip: mirror", "rule")
    ] = "none"
    loss: Annotated[Name, About("cross_entropy for classes; l1, mse or quantile (pinball) for values", "rule")] = (
        "cross_entropy"
    )
    quantiles: Annotated[tuple[float, ...], About("of the quantile loss, rising, in (0, 1)", "rule")] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be trained with."""
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")
        for name in ("weight_decay", "clip_value"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        if wrong := wrong_loss(self.loss, self.quantiles):
            raise ValueError("; ".join(wrong))


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter is: data goes there, nothing else chooses a device."""
    return next(model.parameters()).device


def fitting(rows: int, device: torch.device) -> int:
    """Rows for one pass, at most `rows`: fewer on a CPU, where more at once are no faster and their memory costs.

    The activations of many rows leave the caches, and the allocator returns their memory after every pass and has it
    faulted in again at the next: with 1024 rows of 32 x 32 pixels a forward pass takes up to three times as long.
    """
    return min(rows, ROWS_ON_CPU) if device.type == "cpu" else rows


ROWS_ON_CPU = 128


def best_device() -> torch.device:
    """The first GPU, or the CPU when there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def permuted(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows 0 .. count - 1 in one random order, in batches; a last batch of a single row joins the one before it.

    BatchNorm cannot train on one row, and a tiny last batch only adds noise.
    """
    batches = list(torch.randperm(count, generator=generator).split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1 < batch_size:
        last = batches.pop()
        batches[-1] = torch.cat([batches[-1], last])
    yield from batches


def steps_per_epoch(count: int, batch_size: int) -> int:
    """How many batches `permuted` gives."""
    full, rest = divmod(count, batch_size)
    return full + (1 if rest > 1 or full == 0 else 0)


def augmented(inputs: Tensor, how: str, generator: torch.Generator) -> Tensor:
    """Images shifted (zeros in the gap) and perhaps mirrored at random, one choice for each image.

    Args:
        inputs: Shape (B, C, H, W).
        how: "none", "shift" (by up to an eighth of each side) or "shift_flip".
        generator: Of the random choices, on the CPU.
    """
    if how == "none":
        return inputs
    return moved(inputs, *moves(len(inputs), inputs.shape[2:], how, generator))


def moves(count: int, sides: Sequence[int], how: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which rows, shape (count, H), and columns, shape (count, W), each image is made of; drawn as `augmented` says.

    Args:
        count: Images.
        sides: H and W.
        how: "shift" or "shift_flip".
        generator: Of the random choices, on the CPU.
    """
    H, W = sides
    pad_h, pad_w = max(1, H // 8), max(1, W // 8)
    top = torch.randint(0, 2 * pad_h + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * pad_w + 1, (count, 1), generator=generator)
    rows = top + torch.arange(H)
    columns = left + torch.arange(W)
    if how == "shift_flip":
        flip = torch.rand((count, 1), generator=generator) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    return rows, columns


def moved(inputs: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Images, shape (B, C, H, W), put together of their rows and columns as `moves` numbers them."""
    H, W = inputs.shape[2:]
    pad_h, pad_w = max(1, H // 8), max(1, W // 8)
    padded = F.pad(inputs, (pad_w, pad_w, pad_h, pad_h))
    rows, columns = rows.to(inputs.device), columns.to(inputs.device)
    images = torch.arange(len(inputs), device=inputs.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """What draws from the global generators (initial weights, dropout) follows the seed alone in here.

    The global generators of the CPU and of the device are put back afterwards.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def optimise(
    model: nn.Module,
    samples: Samples,
    *,
    optimiser: torch.optim.Optimizer,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    loss: Loss = F.cross_entropy,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    clip_value: float = 0.0,
    augmentation: str = "none",
    phase: str = "train",
    progress: Progress = silent,
) -> list[float]:
    """Train the model in place, in train mode; the loss of every step comes back.

    Args:
        model: Maps inputs (B, ...) to outputs (B, O).
        samples: What to train on, in a new random order every epoch.
        optimiser: Over the model's parameters.
        epochs: Passes over the samples; >= 1.
        batch_size: Rows a step.
        generator: Of the order and the augmentation; dropout draws by its seed.
        loss: Of outputs and targets, a scalar: a mean over the rows, so that it can be taken in parts.
        scheduler: Stepped after every step.
        clip_value: Bound of each gradient entry; 0: none.
        augmentation: As in `augmented`.
        phase: Named to `progress`.
        progress: Called after every step.

    Raises:
        FloatingPointError: When a loss is not finite; the weights are then of no use.
    """
    device = device_of(model)
    model.train()
    total = epochs * steps_per_epoch(len(samples), batch_size)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses: list[float] = []
    at_once = 0
    with seeded(generator.initial_seed() + team().rank, device), prepared(model) as run:
        for _ in range(epochs):
            for rows in permuted(len(samples), batch_size, generator):
                optimiser.zero_grad(set_to_none=True)
                total_loss = torch.zeros(1, dtype=torch.float64)
                order: tuple[Tensor, Tensor] | None = None
                parts = _parts(len(rows), at_once or len(rows))
                fetched: tuple[Tensor, Tensor] | None = None
                if not at_once:  # found out from the first batch
                    fetched = samples.batch(rows[parts[0]])
                    one = fetched[0][: max(1, len(fetched[0]) // max(1, len(parts[0])))]
                    at_once = rows_at_once(model, run, one.to(device), batch_size)
                    if at_once * team().size < len(rows):
                        parts, fetched = _parts(len(rows), at_once), None
                for part in parts:
                    inputs, targets = samples.batch(rows[part]) if fetched is None else fetched
                    inputs, targets = inputs.to(device), targets.to(device)
                    if augmentation != "none":
                        order = order or moves(len(rows), inputs.shape[2:], augmentation, generator)
                        inputs = moved(inputs, order[0][part], order[1][part])
                    value = loss(run(inputs), targets)
                    weight = len(part) / max(len(rows), 1) / copies(len(rows))
                    (value if weight == 1 else value * weight).backward()
                    total_loss += weight * value.item()
                if team().size > 1:
                    add_up([_gradient(parameter) for parameter in parameters])
                    add_up([total_loss])
                if clip_value:
                    nn.utils.clip_grad_value_(model.parameters(), clip_value)
                optimiser.step()
                if scheduler is not None:
                    scheduler.step()
                losses.append(total_loss.item())
                if not math.isfinite(losses[-1]):
                    raise FloatingPointError(
                        f"{phase}: the loss became {losses[-1]} at step {len(losses)}; lower the learning rate"
                    )
                progress(phase, len(losses), total, losses[-1])
    return losses


def _parts(count: int, at_once: int) -> list[Tensor]:
    """This process's share of a batch's rows 0 .. count - 1, in parts of at most `at_once`."""
    return share(torch.arange(count), -(-count // (max(at_once, 1) * team().size)))


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Its gradient; zeros where this process's rows had none, so that all processes add up as many."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def train(
    model: nn.Module,
    samples: Samples,
    recipe: Recipe,
    *,
    generator: torch.Generator,
    phase: str = "train",
    progress: Progress = silent,
) -> list[float]:
    """Train a freshly built model in place by its recipe and the recipe's loss; the loss of every step comes back."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser: torch.optim.Optimizer
    if recipe.optimiser == "adam":
        optimiser = torch.optim.Adam(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    else:
        optimiser = torch.optim.SGD(
            parameters, lr=recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
        )
    scheduler = None
    if recipe.schedule == "one_cycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            max_lr=recipe.learning_rate,
            total_steps=recipe.epochs * steps_per_epoch(len(samples), recipe.batch_size) + 1,
        )
    losses = optimise(
        model,
        samples,
        optimiser=optimiser,
        epochs=recipe.epochs,
        batch_size=recipe.batch_size,
        generator=generator,
        loss=loss_of(recipe.loss, recipe.quantiles),
        scheduler=scheduler,
        clip_value=recipe.clip_value,
        augmentation=recipe.augmentation,
        phase=phase,
        progress=progress,
    )
    model.eval()
    return losses


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; the mode of each of its modules is put back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:
            module.training = training


def predict(model: nn.Module, samples: Samples, *, batch_size: int = 1024) -> Tensor:
    """Outputs for every sample in order, one pass, eval mode, no gradients: shape (N, O), float32, on the CPU."""
    device, count = device_of(model), len(samples)
    own = share(torch.arange(count))[0]
    outputs: list[Tensor] = []
    with evaluating(model), ordered(model) as order, torch.inference_mode():
        for rows in own.split(fitting(batch_size, device)):
            inputs, _ = samples.batch(rows)
            outputs.append(model(order(inputs.to(device))).float().cpu())
        predicted = torch.cat(outputs) if count else torch.empty((0, 0))
        if copies(count) == 1:
            predicted = put_together(predicted, own, count)
    return predicted.clone()


def build_seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A freshly built network whose initial weights depend on the seed alone; the global generator is put back."""
    with seeded(seed, torch.device("cpu")):
        return build()


def generator(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator for one purpose of one run; different purposes draw independently of each other.

    Args:
        seed: Of the run; any integer.
        purpose: "train", "synthesize", ...
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
