"""Gated knowledge transfer: a new network learns from the original on invented images that show no forgotten class.

Source: Chundawat et al., "Zero-Shot Machine Unlearning", arXiv:2201.05629; the scheme without the gate: Micaelli and
Storkey, arXiv:1905.09768. Reads the original and the list of forgotten classes, and no data at all. A generator invents
images on which student and original disagree; a gate drops those in which the original sees a forgotten class; the
student, of the same architecture with fresh weights, imitates the original on the rest.

Departs from the released code: the divergence is taken in log space on both sides (there its gradient is infinite
once a probability of the original underflows); all forgotten classes are gated (there class 0); what the original says
of a pseudo-batch is computed once and used for all student steps (there ten times, on identical images); a batch that
the gate thins out is topped up; nothing real is read to schedule, stop or choose (there the test set is). By default
two terms steer the generator that `variant="paper"` leaves out: a barrier keeps it off the forgotten classes, and a
balance makes it show all others, as in "Data-Free Learning of Student Networks", arXiv:1904.01186; without it the
barrier can cost whole classes that resemble a forgotten one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.config import build
from unlearning.errors import UsageError
from unlearning.methods import Facts
from unlearning.methods.attention import attended_modules, attention_loss, attention_map, recorded
from unlearning.methods.noise import learn_noise, resolved_penalty
from unlearning.methods.record import DistillRecord
from unlearning.methods.task import Task
from unlearning.progress import Progress, silent
from unlearning.training import device_of, evaluating, seeded

PAPER: dict[str, Any] = {
    "cycles": 4000,
    "monitor_every": 50,
    "generator_width": 128,
    "schedule": "plateau",
    "attention": 250.0,
}
"""What `variant="paper"` changes besides the barrier: the published length, generator, schedule and attention."""

MNIST_SIZE = 28 * 28
"""Values of the inputs that the paper's settings are for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedTransferConfig:
    """Settings of gated knowledge transfer. Those that `configure` chooses are marked; a given value always wins."""

    variant: Literal["barrier", "paper"] = "barrier"
    cycles: int = 400  # pseudo-batches: one generator step and `student_steps` student steps each; by the rule
    threshold: float = 0.01  # epsilon: a pseudo-image passes when no forgotten class is likelier than this
    barrier_weight: float = 0.05
    barrier_margin: float = 4.0  # the barrier begins at threshold / margin
    balance_weight: float = 0.3
    batch_size: int = 256
    student_steps: int = 10
    temperature: float = 1.0  # tau, of both softmaxes in the divergence; the gate has none
    attention: float = 250.0  # beta; 0: off; by the rule
    generator_learning_rate: float = 1e-3  # of Adam
    student_learning_rate: float = 1e-3  # of Adam
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"  # of both rates
    clip_norm: float = 5.0  # of each network's gradient
    latent: int = 128
    generator_width: int = 64
    generator_precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: where the processor is made for it
    student_batchnorm: Literal["train", "frozen_init"] = "train"  # frozen_init: mean 0, variance 1 throughout
    renorm_teacher: bool = False  # take the forgotten classes out of what the student imitates
    fill: float = 0.5  # share of a batch that resampling must reach
    empty_tries: int = 100  # pseudo-batches in a row of which too little passes, before the generator is restored
    restores: int = 10  # of the generator, before giving up
    monitor_every: int = 25  # cycles between looks at the student; a checkpoint each
    leak: float = 0.1  # mean forget probability on data-free probes above which the class counts as back
    patience: int = 3  # looks in a row that find a leak, before stopping

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all named at once."""
        wrong = [
            f"{name} must be at least {least}, got {getattr(self, name)}"
            for name, least in (
                ("cycles", 1),
                ("batch_size", 4),
                ("student_steps", 1),
                ("latent", 1),
                ("generator_width", 8),
                ("empty_tries", 1),
                ("restores", 0),
                ("monitor_every", 1),
                ("patience", 1),
            )
            if getattr(self, name) < least
        ]
        wrong += [
            f"{name} must be a positive number, got {getattr(self, name)}"
            for name in ("temperature", "generator_learning_rate", "student_learning_rate", "clip_norm")
            if not 0 < getattr(self, name) < math.inf
        ]
        wrong += [
            f"{name} must be >= 0, got {getattr(self, name)}"
            for name in ("attention", "barrier_weight", "balance_weight")
            if not 0 <= getattr(self, name) < math.inf
        ]
        wrong += [
            f"{name} must be above 0 and below 1, got {getattr(self, name)}"
            for name in ("threshold", "leak")
            if not 0 < getattr(self, name) < 1
        ]
        if not 0 < self.fill <= 1:
            wrong.append(f"fill must be above 0 and at most 1, got {self.fill}")
        if not 1 <= self.barrier_margin < math.inf:
            wrong.append(f"barrier_margin must be at least 1, got {self.barrier_margin}")
        if wrong:
            raise ValueError("; ".join(wrong))


def configure(settings: Mapping[str, Any], facts: Facts) -> GatedTransferConfig:
    """The configuration for this model: rule, then variant, then what was asked for; it looks at no data.

    The rule. Cycles: 400 for inputs of up to 28 x 28 values and in proportion beyond, at most the paper's 4,000.
    Attention: the paper's weight, in proportion below 28 x 28, because a map's mean square grows as its positions get
    fewer and would drown the divergence.

    Raises:
        UsageError: For unknown settings or values out of range, all at once.
    """
    asked = build(GatedTransferConfig, settings, what="gated_transfer settings")
    chosen: dict[str, Any] = {
        "cycles": min(4000, max(400, 400 * facts.input_size // MNIST_SIZE)),
        "attention": 250.0 * min(1.0, facts.input_size / MNIST_SIZE),
    }
    if asked.variant == "paper":
        chosen |= PAPER
    return build(GatedTransferConfig, {**chosen, **settings}, what="gated_transfer settings")


def kd_loss(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    r"""KL(T || S), averaged over samples and classes, with T, S = softmax(logits / tau), in log space on both sides.

    The attention term's weight and the clipping suit this average; over samples alone it is C times larger.

    Args:
        student: Logits, shape (B, C).
        teacher: Logits, shape (B, C).
        temperature: tau > 0.

    Returns:
        Scalar in nats, >= 0; its gradients are finite for every finite logit, with respect to both.
    """
    log_S, log_T = (F.log_softmax(logits.float() / temperature, dim=1) for logits in (student, teacher))
    return F.kl_div(log_S, log_T, reduction="none", log_target=True).mean()


def gate(logits: Tensor, forget_classes: Sequence[int], threshold: float) -> Tensor:
    """Which samples show no forgotten class: softmax(logits)_c <= threshold for every c; shape (B,), bool."""
    return (logits.float().softmax(1)[:, list(forget_classes)] <= threshold).all(1)


def barrier(logits: Tensor, forget_classes: Sequence[int], level: float) -> Tensor:
    r"""Mean over samples of sum_c relu(log p_c - log level) over the forgotten classes; 0 where all are below it."""
    log_p = F.log_softmax(logits.float(), dim=1)[:, list(forget_classes)]  # (B, K)
    return F.relu(log_p - math.log(level)).sum(1).mean()


def balance(logits: Tensor, forget_classes: Sequence[int]) -> Tensor:
    r"""Log R - H(q), with q the mean over samples of the R retain classes' probabilities, scaled to sum to 1.

    Returns:
        Scalar in [0, log R], nats: 0 when the samples show every retain class equally, log R when they show only one.
    """
    p = logits.float().softmax(1).mean(0)  # (C,)
    kept = torch.ones_like(p, dtype=torch.bool)
    kept[list(forget_classes)] = False
    q = p[kept] / p[kept].sum().clamp_min(1e-12)
    return math.log(len(q)) + torch.xlogy(q, q.clamp_min(1e-12)).sum()


def without_classes(logits: Tensor, forget_classes: Sequence[int]) -> Tensor:
    """Logits whose softmax is 0 for the forgotten classes and renormalised for the others; shape (B, C)."""
    masked = logits.clone()
    masked[:, list(forget_classes)] = logits.amax(1, keepdim=True) - 1e4
    return masked


class PseudoGenerator(nn.Module):
    """Images (or rows) from latent vectors, in normalised input space.

    Latent -> maps of at most 8 x 8 -> doublings with convolutions -> one convolution -> cropped to size; a last
    BatchNorm sets each channel's scale. At 32 x 32 and width 128 it is the paper's. Always normalises by batch, so
    that the same latents give the same images in any mode.

    Args:
        latent: Length of a latent vector.
        width: Channels of the first maps; every doubling halves them, down to 8.
        shape: Of one input: (channels, height, width), or any other for a perceptron.
    """

    def __init__(self, latent: int, width: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        size = math.prod(shape)
        if len(shape) != 3:
            self.start: nn.Module = nn.Sequential(
                nn.Linear(latent, 4 * width), _norm1(4 * width), nn.LeakyReLU(0.2), nn.Linear(4 * width, size)
            )
            self.grow: nn.Module = _norm1(size)
            return
        doublings = max(1, math.ceil(math.log2(max(shape[1:]) / 8)))
        rows, columns = (math.ceil(side / 2**doublings) for side in shape[1:])
        self.start = nn.Sequential(
            nn.Linear(latent, width * rows * columns), nn.Unflatten(1, (width, rows, columns)), _norm2(width)
        )
        layers: list[nn.Module] = []
        channels = width
        for step in range(doublings):
            fewer = max(8, width >> step)
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(channels, fewer, 3, padding=1)]
            layers += [_norm2(fewer), nn.LeakyReLU(0.2)]
            channels = fewer
        self.grow = nn.Sequential(*layers, nn.Conv2d(channels, shape[0], 3, padding=1), _norm2(shape[0]))

    def forward(self, latents: Tensor) -> Tensor:
        """Inputs (B, *shape) for latents (B, latent)."""
        images: Tensor = self.grow(self.start(latents))
        if len(self.shape) != 3:
            return images.view(-1, *self.shape)
        top, left = ((have - want) // 2 for have, want in zip(images.shape[2:], self.shape[1:], strict=True))
        return images[:, :, top : top + self.shape[1], left : left + self.shape[2]]


def _norm1(features: int) -> nn.Module:
    return nn.BatchNorm1d(features, track_running_stats=False)


def _norm2(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, track_running_stats=False)


@dataclass(frozen=True, slots=True)
class PseudoBatch:
    """Images that passed the gate, and all that the student is to copy of them.

    Attributes:
        images: Shape (B', ...).
        logits: The original's, shape (B', C).
        maps: The original's attention maps, (B', J_l) per layer.
    """

    images: Tensor
    logits: Tensor
    maps: tuple[Tensor, ...]

    def __len__(self) -> int:
        """B'."""
        return len(self.images)


def gated_batch(
    teacher: nn.Module,
    images: Tensor,
    forget_classes: Sequence[int],
    *,
    config: GatedTransferConfig,
    layers: Sequence[str],
) -> PseudoBatch:
    """The images that pass, with the original's logits and attention maps: one forward pass, no gradients."""
    with torch.no_grad(), recorded(teacher, layers) as outputs:
        logits = teacher(images)
        keep = gate(logits, forget_classes, config.threshold) & images.flatten(1).isfinite().all(1)
        maps = tuple(attention_map(outputs[name][keep]) for name in layers)
    logits = logits[keep]
    if config.renorm_teacher:
        logits = without_classes(logits, forget_classes)
    return PseudoBatch(images[keep], logits, maps)


def joined(batches: Sequence[PseudoBatch], most: int) -> PseudoBatch:
    """Batches one after the other, cut to at most that many images."""
    return PseudoBatch(
        torch.cat([batch.images for batch in batches])[:most],
        torch.cat([batch.logits for batch in batches])[:most],
        tuple(torch.cat(maps)[:most] for maps in zip(*(batch.maps for batch in batches), strict=True)),
    )


def student_steps(
    student: nn.Module,
    batch: PseudoBatch,
    *,
    optimiser: torch.optim.Optimizer,
    config: GatedTransferConfig,
    layers: Sequence[str],
) -> list[float]:
    """Train the student in place for `student_steps` steps on L_S = KL(T||S) + beta L_AT; the loss of each.

    Args:
        student: In the mode that it is to be trained in.
        batch: Used for every step; what it holds of the original is not computed again.
        optimiser: Over the student's parameters.
        config: Its temperature, attention, clip_norm and student_steps.
        layers: As in `batch`.
    """
    losses: list[float] = []
    with recorded(student, layers) as outputs:
        for _ in range(config.student_steps):
            optimiser.zero_grad(set_to_none=True)
            loss = kd_loss(student(batch.images), batch.logits, temperature=config.temperature)
            if layers:
                loss = loss + config.attention * attention_loss(
                    [attention_map(outputs[name]) for name in layers], batch.maps
                )
            loss.backward()
            nn.utils.clip_grad_norm_(student.parameters(), config.clip_norm)
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                break
            optimiser.step()
    return losses


SIGNALS = ("gated", "ungated", "noise", "probes")
"""Where the student's forget probability is watched."""

PROBES = 64
"""Images per forgotten class in "probes"."""


def distill(
    original: nn.Module,
    task: Task,
    *,
    config: GatedTransferConfig,
    generator: torch.Generator,
    progress: Progress = silent,
    resume: Mapping[str, Any] | None = None,
    checkpoint: Callable[[Mapping[str, Any]], None] | None = None,
) -> tuple[nn.Module, DistillRecord]:
    """A fresh network that imitates the original but for the forgotten classes; and what happened on the way.

    The student is looked at every `monitor_every` cycles, by data-free means alone. The last one whose forget
    probability is at most `leak` everywhere is returned; after `patience` looks in a row above that, it stops.

    Histories of the record, one value per look: "cycle"; "student loss" and "generator loss", means since the look
    before; "pass rate" of the gate; "agreement" of the classes that student and original see in gated images;
    "classes", how many the original sees in at least 1% of the images, after the gate; and the student's mean forget
    probability on "gated" and "ungated" pseudo-images, on "noise", and on "probes", images in
    which the original sees a forgotten class. Notes: "stopped" (done; leak: the class came back; collapse: of the
    generator), "cycles", "chosen_cycle", "leak" (the chosen student's highest forget probability), "restores" of the
    generator, "attention" (how many maps are copied, or why none).

    Args:
        original: Left unchanged: weights, buffers and modes.
        task: Shapes, forgotten classes and `blank`; its samples are never touched.
        config: From `configure`.
        generator: Of latents, initial weights and dropout; on the CPU.
        progress: Called after every cycle.
        resume: What `checkpoint` was last given: goes on from there, to the same bytes as without a break.
        checkpoint: Called after a look with everything needed to go on, as tensors and numbers by name.

    Raises:
        UsageError: Without a class to forget or two to keep, or for a checkpoint of another distillation.
        FloatingPointError: When the generator collapsed for good before the first look at the student.
    """
    kept = set(range(task.outputs)) - set(task.forget_classes)
    if not task.forget_classes or len(kept) < 2:
        raise UsageError(
            f"gated transfer needs classes to forget and at least two to keep, got {len(task.forget_classes)} of "
            f"{task.outputs} to forget: it serves requests by class"
        )
    run = _Distillation(original, task, config, generator)
    if resume is not None:
        run.load(resume)
    run.good = run.state()
    stopped: Literal["done", "leak", "collapse"] = "done"
    while run.cycle < config.cycles:
        if not run.advance():
            run.restore()
            if run.restores > config.restores:
                stopped = "collapse"
                break
        progress("distill", run.cycle, config.cycles, run.losses[-1] if run.losses else math.nan)
        if run.cycle % config.monitor_every == 0 or run.cycle == config.cycles:
            run.look()
            if run.empty == 0:
                run.good = run.state()
                if checkpoint is not None:
                    checkpoint(run.good)
            if run.leaks >= config.patience:
                stopped = "leak"
                break
    if run.chosen == 0:
        raise FloatingPointError(
            f"distill: the generator collapsed {run.restores} times by cycle {run.cycle}; lower "
            "generator_learning_rate, or raise threshold if the gate passes too little"
        )
    return run.result(stopped)


class _Distillation:
    """Networks, optimisers and counts of one distillation: everything that a checkpoint holds."""

    def __init__(self, original: nn.Module, task: Task, config: GatedTransferConfig, draws: torch.Generator) -> None:
        self.config, self.forget, self.draws = config, list(task.forget_classes), draws
        self.device = device_of(original)
        self.teacher = copy.deepcopy(original).requires_grad_(False).eval()
        self.layers = attended_modules(self.teacher, task.input_shape) if config.attention else ()
        self.attention = f"{len(self.layers)} maps"
        if not self.layers:
            self.attention = "off: the network has no convolution blocks" if config.attention else "off: weight 0"
        seed = int(torch.randint(2**31, (1,), generator=draws))
        self.student = task.blank(seed).to(self.device)
        self.student.train(config.student_batchnorm == "train")
        with seeded(seed, torch.device("cpu")):
            self.generator = PseudoGenerator(config.latent, config.generator_width, task.input_shape)
            self.watched_latents = torch.randn(config.batch_size, config.latent).to(self.device)
            self.watched_noise = torch.randn(config.batch_size, *task.input_shape).to(self.device)
            start = torch.randn(len(self.forget), PROBES, *task.input_shape)
        self.generator.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.probes = self._probes(start).to(self.device)
        self.optimisers = {
            "student": torch.optim.Adam(self.student.parameters(), lr=config.student_learning_rate),
            "generator": torch.optim.Adam(self.generator.parameters(), lr=config.generator_learning_rate),
        }
        self.plateaus = {
            name: torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=2)
            for name, optimiser in self.optimisers.items()
        }
        self.cycle = self.chosen = self.leaks = self.restores = self.empty = 0
        self.least = math.inf  # forget probability of the chosen student, on its worst probe
        self.best = _copied(self.student.state_dict())
        self.losses: list[float] = []
        self.generator_losses: list[float] = []
        self.passed: list[float] = []
        self.histories: dict[str, list[float]] = {
            name: []
            for name in ("cycle", "student loss", "generator loss", "pass rate", "agreement", "classes", *SIGNALS)
        }
        self.good: dict[str, Any] = {}

    def _probes(self, start: Tensor) -> Tensor:
        """Images in which the original sees a forgotten class: error-minimising noise, (K * PROBES, ...)."""
        images, _ = learn_noise(
            self.teacher,
            start,
            torch.tensor(self.forget),
            maximise=False,
            penalty=resolved_penalty(0.01, start[0, 0].numel()),
            steps=60,
            optimiser=lambda noise: torch.optim.Adam(noise, lr=0.1),
            chunk=1024,
        )
        return images.flatten(0, 1)

    def _images(self, latents: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.generator_precision == "bfloat16"):
            images: Tensor = self.generator(latents)
        return images.float()

    def _latents(self) -> Tensor:
        return torch.randn(self.config.batch_size, self.config.latent, generator=self.draws).to(self.device)

    def advance(self) -> bool:
        """One generator step, then `student_steps` student steps; False when the generator has collapsed."""
        self.cycle += 1
        self._set_rates()
        with seeded(int(torch.randint(2**31, (1,), generator=self.draws)), self.device):  # for dropout
            latents = self._latents()
            if not self._generator_step(latents):
                return False
            batch = self._batch(latents)
            if batch is not None:
                losses = student_steps(
                    self.student, batch, optimiser=self.optimisers["student"], config=self.config, layers=self.layers
                )
                self.losses += losses
                if not math.isfinite(losses[-1]):
                    return False
        return self.empty <= self.config.empty_tries

    def _generator_step(self, latents: Tensor) -> bool:
        """L_G = -KL(T||S) over what passes, plus barrier and balance over all; False when it is not finite."""
        config = self.config
        images = self._images(latents)
        logits = self.teacher(images)
        keep = gate(logits.detach(), self.forget, config.threshold)
        loss = torch.zeros((), device=self.device)
        if int(keep.sum()) > 1:
            taught = without_classes(logits, self.forget) if config.renorm_teacher else logits
            loss = loss - kd_loss(self.student(images[keep]), taught[keep], temperature=config.temperature)
        elif config.variant == "paper":
            return bool(images.isfinite().all())
        if config.variant == "barrier":
            loss = loss + config.barrier_weight * barrier(logits, self.forget, config.threshold / config.barrier_margin)
            loss = loss + config.balance_weight * balance(logits, self.forget)
        parameters = list(self.generator.parameters())
        optimiser = self.optimisers["generator"]
        optimiser.zero_grad(set_to_none=True)
        loss.backward(inputs=parameters)
        norm = nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        self.generator_losses.append(loss.item())
        if not (math.isfinite(self.generator_losses[-1]) and bool(norm.isfinite())):
            return False
        optimiser.step()
        return True

    def _batch(self, latents: Tensor) -> PseudoBatch | None:
        """What passes of these latents' images, topped up with others'; None while nothing or too little does."""
        config = self.config
        wanted = math.ceil(config.fill * config.batch_size)
        batches: list[PseudoBatch] = []
        for _ in range(MOST_DRAWS):
            with torch.no_grad():
                images = self._images(latents)
            batches.append(gated_batch(self.teacher, images, self.forget, config=config, layers=self.layers))
            self.passed.append(len(batches[-1]) / config.batch_size)
            if sum(map(len, batches)) >= wanted:
                break
            latents = self._latents()
        batch = joined(batches, config.batch_size)
        enough = len(batch) >= min(wanted, config.batch_size // 4)  # BatchNorm needs some
        self.empty = 0 if enough else self.empty + len(batches)
        return batch if enough else None

    def _set_rates(self) -> None:
        if self.config.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * (self.cycle - 1) / self.config.cycles))
            rates = {"student": self.config.student_learning_rate, "generator": self.config.generator_learning_rate}
            for name, optimiser in self.optimisers.items():
                for group in optimiser.param_groups:
                    group["lr"] = factor * rates[name]

    def look(self) -> None:
        """Note how the student stands on data-free probes, and keep it unless the forgotten class is back."""
        with torch.no_grad(), evaluating(self.student) as student:
            images = self._images(self.watched_latents)
            logits = self.teacher(images)
            ours = student(images)
            keep = gate(logits, self.forget, self.config.threshold)
            forgotten = {
                "gated": self._forget_probability(ours[keep]),
                "ungated": self._forget_probability(ours),
                "noise": self._forget_probability(student(self.watched_noise)),
                "probes": self._forget_probability(student(self.probes)),
            }
        seen = logits[keep].argmax(1).bincount(minlength=logits.shape[1])
        agreement = (ours[keep].argmax(1) == logits[keep].argmax(1)).float().mean().item()
        worst = max([value for value in forgotten.values() if math.isfinite(value)], default=0.0)
        entries = {
            "cycle": float(self.cycle),
            "student loss": _mean(self.losses),
            "generator loss": _mean(self.generator_losses),
            "pass rate": _mean(self.passed),
            "agreement": agreement,
            "classes": float((seen >= 0.01 * len(images)).sum()),
            **forgotten,
        }
        for name, value in entries.items():
            self.histories[name].append(value)
        if self.config.schedule == "plateau":
            for name, plateau in self.plateaus.items():
                if math.isfinite(entries[f"{name} loss"]):
                    plateau.step(entries[f"{name} loss"])
        trained = bool(self.losses)
        self.losses, self.generator_losses, self.passed = [], [], []
        self.leaks = self.leaks + 1 if worst > self.config.leak and self.least <= self.config.leak else 0
        if trained and worst <= max(self.least, self.config.leak):
            self.best, self.chosen, self.least = _copied(self.student.state_dict()), self.cycle, worst

    def _forget_probability(self, logits: Tensor) -> float:
        return logits.float().softmax(1)[:, self.forget].sum(1).mean().item()

    def state(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors on the CPU and numbers; independent of what happens next."""
        state: dict[str, Any] = {name: getattr(self, name) for name in COUNTS}
        state["draws"] = self.draws.get_state()
        for name in WATCHED:
            state[name] = getattr(self, name).cpu().clone()
        for name, history in self.histories.items():
            state[f"history.{name}"] = torch.tensor(history, dtype=torch.float64)
        tensors = {"student": self.student.state_dict(), "generator": self.generator.state_dict(), "best": self.best}
        for name, group in tensors.items():
            state |= {f"{name}.{key}": tensor for key, tensor in _copied(group).items()}
        for name, optimiser in self.optimisers.items():
            plateau = self.plateaus[name]
            state[f"{name} rate"] = optimiser.param_groups[0]["lr"]
            state[f"{name} plateau"] = torch.tensor([plateau.best, plateau.num_bad_epochs], dtype=torch.float64)
            for index, values in optimiser.state_dict()["state"].items():
                state |= {f"{name} adam.{index}.{key}": tensor for key, tensor in _copied(values).items()}
        return state

    def load(self, state: Mapping[str, Any]) -> None:
        """Go back to a state.

        Raises:
            UsageError: When it is of another network or another kind of run.
        """
        try:
            for name in COUNTS:
                setattr(self, name, type(getattr(self, name))(state[name]))
            for name in WATCHED:
                setattr(self, name, state[name].to(self.device))
            self.histories = {name: state[f"history.{name}"].tolist() for name in self.histories}
            self.best = _under(state, "best.")
            self.student.load_state_dict(_under(state, "student."))
            for name in self.optimisers:
                self._load_optimiser(name, state)
            self.generator.load_state_dict(_under(state, "generator."))
            self.draws.set_state(state["draws"].cpu())
        except (KeyError, RuntimeError, AttributeError, TypeError) as error:
            raise UsageError(
                f"this checkpoint is not of this distillation ({str(error).splitlines()[0]}): start without it"
            ) from error
        if self.cycle > self.config.cycles:
            raise UsageError(f"this checkpoint is of cycle {self.cycle} of {self.config.cycles}: start without it")

    def _load_optimiser(self, name: str, state: Mapping[str, Any]) -> None:
        values: dict[int, dict[str, Tensor]] = {}
        for key, tensor in _under(state, f"{name} adam.").items():
            index, part = key.split(".")
            values.setdefault(int(index), {})[part] = tensor.clone()
        optimiser, plateau = self.optimisers[name], self.plateaus[name]
        optimiser.load_state_dict({"state": values, "param_groups": optimiser.state_dict()["param_groups"]})
        for group in optimiser.param_groups:
            group["lr"] = state[f"{name} rate"]
        best, bad = state[f"{name} plateau"].tolist()
        plateau.best, plateau.num_bad_epochs = best, int(bad)

    def restore(self) -> None:
        """Put the generator back to its last good state, and the student if it is broken; draws and counts go on."""
        self.restores += 1
        self.empty = 0
        self.generator.load_state_dict(_under(self.good, "generator."))
        self._load_optimiser("generator", self.good)
        if not all(bool(tensor.isfinite().all()) for tensor in self.student.state_dict().values()) or not (
            not self.losses or math.isfinite(self.losses[-1])
        ):
            self.student.load_state_dict(_under(self.good, "student."))
            self._load_optimiser("student", self.good)
        for values in (self.losses, self.generator_losses):
            values[:] = [value for value in values if math.isfinite(value)]

    def result(self, stopped: Literal["done", "leak", "collapse"]) -> tuple[nn.Module, DistillRecord]:
        """The chosen student, in eval mode, and the record."""
        with torch.no_grad():
            images = self._images(self.watched_latents)
            shown = images[gate(self.teacher(images), self.forget, self.config.threshold)][:64].cpu()
        self.student.load_state_dict(self.best)
        notes: dict[str, str | float | int] = {
            "stopped": stopped,
            "cycles": self.cycle,
            "chosen_cycle": self.chosen,
            "leak": self.least,
            "classes": int(self.histories["classes"][-1]),
            "restores": self.restores,
            "attention": self.attention,
        }
        return self.student.eval(), DistillRecord(histories=self.histories, notes=notes, samples=shown)


COUNTS = ("cycle", "chosen", "leaks", "restores", "empty", "least")
WATCHED = ("watched_latents", "watched_noise", "probes")
MOST_DRAWS = 8
"""Pseudo-batches that one cycle draws at most to fill a batch."""


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def _under(state: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
