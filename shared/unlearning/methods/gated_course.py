"""The course of one gated transfer: its networks, its steps, its looks at the student, and the checkpoints of them all.

Part of gated transfer, which says where it comes from.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.errors import UsageError
from unlearning.methods.attention import attended_modules, attention_loss, attention_map, recorded
from unlearning.methods.noise import learn_noise, resolved_penalty
from unlearning.methods.pseudo_images import (
    PseudoBatch,
    PseudoGenerator,
    balance,
    barrier,
    gate,
    gated_batch,
    joined,
    without_classes,
)
from unlearning.methods.record import DistillRecord
from unlearning.methods.task import Task
from unlearning.training import device_of, evaluating, seeded

if TYPE_CHECKING:
    from unlearning.methods.gated_transfer import GatedTransferConfig

SIGNALS = ("gated", "ungated", "noise", "probes")
"""Where the student's forget probability is watched."""

PROBES = 64
"""Images per forgotten class in "probes"."""


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


class Course:
    """Networks, optimisers and counts of one distillation: everything that a checkpoint holds."""

    def __init__(self, original: nn.Module, task: Task, config: GatedTransferConfig, draws: torch.Generator) -> None:
        self.config, self.forget, self.draws = config, list(task.forget_classes), draws
        self.outputs = task.outputs
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
        self.least = math.inf  # the chosen student's highest rise
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
            batches.append(
                gated_batch(
                    self.teacher,
                    images,
                    self.forget,
                    threshold=config.threshold,
                    layers=self.layers,
                    renorm=config.renorm_teacher,
                )
            )
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
                "probes": max(self._forget_probability(bank) for bank in student(self.probes).split(PROBES)),
            }
        seen = logits[keep].argmax(1).bincount(minlength=logits.shape[1])
        agreement = (ours[keep].argmax(1) == logits[keep].argmax(1)).float().mean().item()
        worst = max([self._rise(name, value) for name, value in forgotten.items() if math.isfinite(value)], default=0.0)
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
        """The likeliest forgotten class's mean probability over the images."""
        return logits.float().softmax(1)[:, self.forget].mean(0).max().item()

    def _rise(self, name: str, value: float) -> float:
        """How far a signal is above its lowest so far: what a student that does not know the class gives it anyway.

        That may be next to nothing, or about as much as every class when these images tell the student little. More
        than one part in all classes is never taken for ignorance.
        """
        before = [earlier for earlier in self.histories[name] if math.isfinite(earlier)]
        return value - min([value, 1 / self.outputs, *before])

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
