"""Bad teaching: imitate an incompetent teacher on the forget rows, the original model on retain rows.

Source: Chundawat et al., "Can Bad Teaching Induce Forgetting?", AAAI 2023, arXiv:2205.08096.

Departs from the authors' code, by default. KL is averaged over samples; theirs over samples and classes, so their loss
is ours / C, which Adam does not notice. Every teacher is asked once, about its own rows only. The student trains in
train mode, whatever mode it came in. An incompetent random network that is not near uniform is averaged with others, or
replaced. For whole classes its probability of the forgotten classes is taken away: a random network prefers some class,
and would teach the forgotten one when it happens to prefer that. The rate falls to zero.

For rows, the published settings and teacher miss on either side: random rows, of which a model that never saw them gets
most right, become more uncertain than rows never seen, or stay known; one kind of object within a class stays known in
part, as a few rows among many are taught too little. So here the teacher of rows is blind rather than random: random
weights, trained for a few epochs on what the original says of the retain rows. It knows what these support and has
never seen the forget rows, which is what the student should say of them. After so few epochs it is less certain of
everything than a trained network, so its logits are scaled until it is as certain of calibration rows, which nobody
was trained on, as the original. And the forget rows are repeated until they are a fifth of what is taught.

With a random teacher, the forget rows are compared with calibration rows, which were never trained on, after every few
steps. While they look more familiar, the next steps train on both kinds of rows; once they do not, on retain rows
alone, which lets whatever the retained data support come back. The last model whose forget rows cannot be told from
calibration rows is returned. The preset "paper" does none of all this.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.config import About, build
from unlearning.data.samples import Joined, Rows, Samples
from unlearning.errors import UsageError
from unlearning.methods import Facts
from unlearning.methods.likeness import Likeness, Watch
from unlearning.methods.record import DistillRecord
from unlearning.methods.rows import Deck, Relabelled, derived, needed, paced, part_of, wrong_numbers
from unlearning.methods.task import Task
from unlearning.progress import Progress, silent
from unlearning.training import device_of, optimise, predict, steps_per_epoch

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "teacher": "random",
        "forget_share": 0.0,
        "retain_fraction": 0.3,
        "learning_rate": 1e-4,
        "schedule": "constant",
        "epochs": 1,
        "batch_size": 256,
        "least_entropy": 0.0,
        "keep_forgotten": True,
        "watch": "never",
    },
}
"""`paper`: what the released notebook runs (1 epoch, Adam 1e-4, 30% of the retain rows)."""

RATES: dict[str, float] = {"scratch": 3e-3, "pretrained": 1e-4}
"""Adam's rate: for a network trained from scratch, and for a fine-tuned backbone."""

RETAIN_ROWS = 3000
"""Retain rows that the default draws at least; 30% of a small data set is too little to hold a model."""

BLIND_RATE = 1e-2
"""Adam's highest rate while the blind teacher learns; it starts from random weights whatever the original did."""

FORGET_SHARE = 0.2
MOST_REPEATS = 50
"""The share that forget rows are repeated to for a blind teacher; how often one is repeated in an epoch at most."""

MORE_TEACHERS = 5
"""Incompetent teachers that are averaged when fewer are too certain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IncompetentTeacherConfig:
    """Settings of bad teaching; a given value always wins over the rule."""

    preset: Annotated[Literal["default", "paper"], About("a set of values; given ones win")] = "default"
    rates: Annotated[Literal["auto", "scratch", "pretrained"], About("which rate; auto: by how it was trained")] = (
        "auto"
    )
    teacher: Annotated[
        Literal["random", "uniform", "blind"],
        About("random: a fresh network; blind: one trained on retain rows alone; blind for rows, else random", "rule"),
    ] = "blind"
    teachers: Annotated[int, About("random networks whose probabilities are averaged", "paper")] = 1
    least_entropy: Annotated[
        float, About("of the teacher on forget rows, share of ln C; below: more networks, then uniform")
    ] = 0.9
    keep_forgotten: Annotated[bool, About("whether the teacher of a class request may name the class")] = False
    temperature: Annotated[float, About("tau, divides all logits", "code")] = 1.0
    teacher_epochs: Annotated[int, About("of the blind teacher, over the drawn retain rows", "rule")] = 3
    teacher_learning_rate: Annotated[float, About("of Adam for the blind teacher; falls to zero")] = BLIND_RATE
    match_certainty: Annotated[
        bool, About("scales the blind teacher's logits until it is as certain of calibration rows as the original")
    ] = True
    retain_fraction: Annotated[float, About("share of the retain rows at hand that is drawn", "rule")] = 1.0
    forget_share: Annotated[float, About("least share of forget rows in what is taught, by repeating", "rule")] = (
        FORGET_SHARE
    )
    learning_rate: Annotated[float, About("of Adam", "rule")] = 3e-3
    schedule: Annotated[Literal["linear", "constant"], About("of the rate; linear: falls to zero")] = "linear"
    epochs: Annotated[int, About("over the forget rows and the drawn retain rows", "rule")] = 3
    batch_size: Annotated[int, About("rows in an update", "rule")] = 256
    watch: Annotated[
        Literal["auto", "calibration", "never"],
        About("compares forget with calibration rows; auto: for rows of several classes, unless the teacher is blind"),
    ] = "auto"
    looks: Annotated[int, About("comparisons, spread over the updates")] = 30
    watched_rows: Annotated[int, About("most forget rows, and most calibration rows, in a comparison")] = 1000

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all named at once."""
        wrong = wrong_numbers(
            self,
            least={"teachers": 1, "teacher_epochs": 1, "epochs": 1, "batch_size": 2, "looks": 1, "watched_rows": 10},
            positive=("temperature", "teacher_learning_rate", "learning_rate"),
        )
        if not 0 <= self.forget_share < 1:
            wrong.append(f"forget_share must be in [0, 1), got {self.forget_share}")
        if not 0 < self.retain_fraction <= 1:
            wrong.append(f"retain_fraction must be in (0, 1], got {self.retain_fraction}")
        if not 0 <= self.least_entropy <= 1:
            wrong.append(f"least_entropy must be in [0, 1], got {self.least_entropy}")
        if wrong:
            raise ValueError("; ".join(wrong))


def configure(settings: Mapping[str, Any], facts: Facts) -> IncompetentTeacherConfig:
    """The configuration for this model and data: rule, then preset, then what was asked for.

    The rule. A blind teacher for rows, a random one for classes. Retain rows: all of them for a blind teacher, else
    30%, but `RETAIN_ROWS` where there are as many. Forget rows repeated to `FORGET_SHARE` for a blind teacher. Rate by
    `RATES`. Three epochs, of the blind teacher too, and batches and more epochs as in `paced`.

    Raises:
        UsageError: For unknown settings or values out of range, all at once.
    """
    asked = build(IncompetentTeacherConfig, settings, what="incompetent_teacher settings")
    kind = asked.rates if asked.rates != "auto" else "pretrained" if facts.fine_tuned else "scratch"
    teacher = {"teacher": "random" if facts.forget_classes else "blind", **PRESETS[asked.preset], **settings}["teacher"]
    fraction = 1.0 if teacher == "blind" else min(1.0, max(0.3, RETAIN_ROWS / facts.retain_rows))
    rows = math.ceil(fraction * facts.retain_rows) + facts.forget_classes * facts.retain_per_class
    batch_size, epochs = paced(rows, 3)
    chosen: dict[str, Any] = {
        "teacher": teacher,
        "teacher_epochs": epochs,
        "forget_share": FORGET_SHARE if teacher == "blind" else 0.0,
        "retain_fraction": fraction,
        "learning_rate": RATES[kind],
        "batch_size": batch_size,
        "epochs": epochs,
        **PRESETS[asked.preset],
    }
    if asked.rates != "auto":  # asked for by name: wins over the preset's
        chosen["learning_rate"] = RATES[asked.rates]
    return build(IncompetentTeacherConfig, {**chosen, **settings}, what="incompetent_teacher settings")


def soft_target_loss(student: Tensor, target: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(P || S) of the student's softened probabilities from soft targets.

    Args:
        student: S, logits, shape (N, C).
        target: P, probabilities, shape (N, C).
        temperature: tau, divides the student's logits; > 0.

    Returns:
        Scalar mean over samples, in nats, >= 0.
    """
    return F.kl_div(F.log_softmax(student / temperature, dim=1), target, reduction="batchmean")


def incompetent_teacher_loss(
    student: Tensor, competent: Tensor, incompetent: Tensor, forget: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """KL of the student from each sample's own teacher: KL(l T_d + (1 - l) T_s || S).

    `distill` computes the same with targets cached for all steps.

    Args:
        student: S, logits, shape (N, C).
        competent: T_s, logits of the original model, shape (N, C).
        incompetent: T_d, logits of a randomly initialised model, shape (N, C).
        forget: l, 1 for a forget sample and 0 for a retain sample, shape (N,).
        temperature: tau, divides all logits; > 0.

    Returns:
        Scalar mean over the batch, in nats, >= 0.

    Raises:
        ValueError: If the logits differ in shape.
    """
    if not student.shape == competent.shape == incompetent.shape:
        raise ValueError(
            "student, competent and incompetent logits must share one (N, C) shape, got "
            f"{tuple(student.shape)}, {tuple(competent.shape)}, {tuple(incompetent.shape)}"
        )
    l = forget.to(student.dtype).unsqueeze(1)  # (N, 1)
    T_s = F.softmax(competent / temperature, dim=1)  # (N, C)
    T_d = F.softmax(incompetent / temperature, dim=1)
    return soft_target_loss(student, l * T_d + (1 - l) * T_s, temperature=temperature)


def without(probabilities: Tensor, classes: tuple[int, ...]) -> Tensor:
    """The probabilities, shape (N, C), given that it is none of these classes; unchanged when that leaves nothing."""
    if not classes or len(set(classes)) == probabilities.shape[1]:
        return probabilities
    kept = probabilities.index_fill(1, torch.tensor(classes), 0.0)
    return kept / kept.sum(1, keepdim=True)


def mean_entropy(logits: Tensor) -> float:
    """Of the softmax of logits, shape (N, C): mean over rows, in nats, in [0, ln C]."""
    return float(torch.special.entr(F.softmax(logits, dim=1)).sum(1).mean())


def scale_to_entropy(logits: Tensor, wanted: float) -> float:
    """What to multiply logits, shape (N, C), by for a mean entropy of `wanted` nats; in [0.01, 100].

    The entropy falls as the scale grows, so there is one answer at most; the nearer end of the range where there is
    none, 1 where the scale does not matter.
    """
    from scipy.optimize import brentq

    def excess(power: float) -> float:
        return mean_entropy(logits * math.exp(power)) - wanted

    low, high = math.log(0.01), math.log(100.0)
    most, least = excess(low), excess(high)
    if math.isclose(most, least):
        return 1.0
    if most <= 0 or least >= 0:
        return math.exp(low if most <= 0 else high)
    return math.exp(float(brentq(excess, low, high, xtol=1e-6)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lesson:
    """What the incompetent teacher says of the forget rows.

    Attributes:
        targets: T_d, probabilities, shape (N, C).
        teachers: Networks averaged; 0: uniform.
        entropy: Mean over rows, as a share of ln C, before any class was taken away.
        first_entropy: The same of the teacher as it was asked for.
        scale: What the blind teacher's logits were multiplied by.
        losses: Of the blind teacher's training.
    """

    targets: Tensor
    teachers: int
    entropy: float
    first_entropy: float
    scale: float = 1.0
    losses: list[float] = field(default_factory=list)


def incompetent_lesson(
    task: Task,
    forget: Samples,
    *,
    config: IncompetentTeacherConfig,
    generator: torch.Generator,
    device: torch.device,
    answers: Samples | None = None,
    certainty: tuple[Samples, float] | None = None,
    progress: Progress = silent,
) -> Lesson:
    """The incompetent teacher's targets for the forget rows, by a teacher that is as uncertain as it should be.

    Args:
        task: Makes the random networks, and says which classes are forgotten.
        forget: N rows.
        config: `teachers` networks; more when their mean entropy is below `least_entropy` ln C; then uniform targets.
            Blind: one network, trained on `answers`, however certain it is.
        generator: Of the networks' seeds, and of the order in which the blind one learns.
        device: Where the networks run.
        answers: Retain rows, with what the original says of them as targets; only a blind teacher reads them.
        certainty: Rows that nobody was trained on, and the original's mean entropy on them, in nats; a blind teacher
            is scaled to it, or left as it is without.
        progress: Called after every step of the blind teacher's training.

    Raises:
        UsageError: When the teacher is to be blind and there are no answers to learn.
        FloatingPointError: When its loss is not finite.
    """
    C, total, made = task.outputs, torch.zeros((len(forget), task.outputs)), 0
    seen: list[float] = []
    losses: list[float] = []
    scale = 1.0

    def fresh() -> nn.Module:
        return task.blank(int(torch.randint(2**31, (1,), generator=generator))).to(device)

    def lesson(T_d: Tensor) -> Lesson:
        return Lesson(
            targets=T_d if config.keep_forgotten else without(T_d, task.forget_classes),
            teachers=made,
            entropy=torch.special.entr(T_d).sum(1).mean().item() / math.log(C),
            first_entropy=seen[0] if seen else 1.0,
            scale=scale,
            losses=losses,
        )

    if config.teacher == "blind":
        if answers is None:
            raise UsageError("a blind teacher learns from retain rows, none were given: give some or a random teacher")
        network, made = fresh(), 1
        steps = config.teacher_epochs * steps_per_epoch(len(answers), config.batch_size)
        optimiser, scheduler = adam(network, steps, config.teacher_learning_rate, "linear")
        losses += optimise(
            network,
            answers,
            optimiser=optimiser,
            scheduler=scheduler,
            epochs=config.teacher_epochs,
            batch_size=config.batch_size,
            generator=derived(generator),
            loss=lambda S, P: soft_target_loss(S, P, temperature=config.temperature),
            phase="teacher",
            progress=progress,
        )
        logits = predict(network, forget) / config.temperature
        seen.append(lesson(F.softmax(logits, dim=1)).entropy)
        if certainty is not None:
            unseen, wanted = certainty
            scale = scale_to_entropy(predict(network, unseen) / config.temperature, wanted)
        return lesson(F.softmax(scale * logits, dim=1))
    if config.teacher == "random":
        for wanted in dict.fromkeys((config.teachers, max(config.teachers, MORE_TEACHERS))):
            while made < wanted:
                total += F.softmax(predict(fresh(), forget) / config.temperature, dim=1)
                made += 1
            seen.append(lesson(total / made).entropy)
            if seen[-1] >= config.least_entropy:
                return lesson(total / made)
    made = 0
    return lesson(torch.full((len(forget), C), 1 / C))


def adam(
    model: nn.Module, steps: int, learning_rate: float, schedule: str
) -> tuple[torch.optim.Adam, torch.optim.lr_scheduler.LRScheduler | None]:
    """Adam over the model's parameters, and a scheduler that lets its rate fall to zero when it is to."""
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    if schedule == "constant":
        return optimiser, None
    return optimiser, torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 1 / steps, total_iters=steps)


def repeated(forget_rows: int, retain_rows: int, share: float) -> int:
    """How often each forget row occurs so that they are this share of all rows, in [1, `MOST_REPEATS`].

    Example:
        >>> repeated(100, 900, 0.25), repeated(500, 900, 0.25), repeated(1, 9000, 0.25)
        (3, 1, 50)
    """
    return min(max(math.ceil(share / (1 - share) * retain_rows / forget_rows), 1), MOST_REPEATS)


def why_unwatched(task: Task, forget: Samples, config: IncompetentTeacherConfig) -> str:
    """Why the forget rows are not compared with calibration rows; "" when they are."""
    if config.watch == "never":
        return "switched off"
    if config.watch == "auto" and config.teacher == "blind":
        return "the teacher has never seen the forget rows"
    if task.calibration is None or len(task.calibration) == 0:
        return "no calibration rows"
    if config.watch == "calibration":
        return ""
    if task.forget_classes:
        return "whole classes are forgotten"
    if len(forget) >= 20 and len(forget.targets.unique()) == 1:
        return "the forget rows are all of one class, as no random draw would be"
    return ""


def distill(
    original: nn.Module,
    task: Task,
    *,
    config: IncompetentTeacherConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> tuple[nn.Module, DistillRecord]:
    """A student that started as the original and knows the forget rows no better than unseen ones; and its course.

    Args:
        original: The competent teacher; left unchanged.
        task: With forget and retain rows; their targets are only used to watch. Calibration rows to watch with.
        config: From `configure`.
        generator: Of the teacher's weights, the draw of retain rows, and the order.
        progress: Called after every step.

    Raises:
        UsageError: Without forget or retain rows.
        FloatingPointError: When the loss is not finite.
    """
    forget = needed(task, "forget", method="incompetent_teacher")
    every = needed(task, "retain", method="incompetent_teacher")
    drawn = torch.randperm(len(every), generator=generator)[: math.ceil(config.retain_fraction * len(every))]
    retain = Rows(every, drawn)
    answers = Relabelled(retain, F.softmax(predict(original, retain) / config.temperature, dim=1))  # T_s
    repeats = repeated(len(forget), len(retain), config.forget_share)
    again = len(forget) * repeats
    steps = config.epochs * steps_per_epoch(again + len(retain), config.batch_size)
    before = config.teacher_epochs * steps_per_epoch(len(retain), config.batch_size) * (config.teacher == "blind")
    certainty = None
    if config.teacher == "blind" and config.match_certainty and task.calibration is not None and len(task.calibration):
        certainty = task.calibration, mean_entropy(predict(original, task.calibration) / config.temperature)
    lesson = incompetent_lesson(
        task,
        forget,
        config=config,
        generator=generator,
        device=device_of(original),
        answers=answers,
        certainty=certainty,
        progress=part_of(progress, 0, before + steps),
    )
    progress = part_of(progress, before, before + steps)
    both = Relabelled(Joined(forget, retain), torch.cat([lesson.targets, answers.targets]))
    taught = Rows(both, torch.cat([torch.arange(len(forget)).repeat(repeats), len(forget) + torch.arange(len(retain))]))
    student = copy.deepcopy(original)
    optimiser, scheduler = adam(student, steps, config.learning_rate, config.schedule)
    common: dict[str, Any] = {
        "optimiser": optimiser,
        "scheduler": scheduler,
        "batch_size": config.batch_size,
        "loss": lambda S, P: soft_target_loss(S, P, temperature=config.temperature),
        "phase": "distill",
    }
    learned = {"teacher_loss": lesson.losses} if lesson.losses else {}
    notes: dict[str, str | float | int] = {
        "teacher": config.teacher if lesson.teachers else "uniform",
        "teachers": lesson.teachers,
        "teacher_entropy": lesson.entropy,
        "teacher_entropy_at_first": lesson.first_entropy,
        "teacher_scale": lesson.scale,
        "retain_rows": len(retain),
        "forget_repeats": repeats,
    }
    unwatched = why_unwatched(task, forget, config)
    if not unwatched and task.calibration is not None:
        watch = Watch(forget, task.calibration, config.watched_rows, generator)
        familiar = watch(original)
        if familiar is not None:
            histories, more = _watched(
                student, taught, again, steps, familiar, watch, common, config, generator, progress
            )
            return student.eval(), DistillRecord(
                histories=histories | learned, notes={**notes, "watched": "yes", **more}
            )
        unwatched = "no calibration row has a class of the forget rows"
    losses = optimise(student, taught, epochs=config.epochs, generator=generator, progress=progress, **common)
    return student.eval(), DistillRecord(
        histories={"loss": losses} | learned, notes={**notes, "watched": f"no: {unwatched}"}
    )


def _watched(
    student: nn.Module,
    taught: Samples,
    forget_rows: int,
    steps: int,
    before: Likeness,
    watch: Watch,
    common: dict[str, Any],
    config: IncompetentTeacherConfig,
    generator: torch.Generator,
    progress: Progress,
) -> tuple[dict[str, list[float]], dict[str, str | float | int]]:
    """Train the student in place, deciding by a look after every few steps whether the next ones teach forgetting."""
    part = max(1, steps // config.looks)
    both = Deck(len(taught), generator)
    retain = Deck(len(taught) - forget_rows, generator)
    losses: list[float] = []
    aucs: list[tuple[float, float]] = []
    forgetting: list[float] = []
    chosen: tuple[float, int, Likeness, dict[str, Tensor]] = (math.inf, 0, before, {})
    state, forgotten = before, False
    while len(losses) < steps:
        done = len(losses)
        count = min(part, steps - done)
        # In the first third on to well below what chance explains: what is memorised goes then, the rest comes back.
        enough = -2 * state.standard_error if done < steps // 3 else 0.0
        forgets = done == 0 or state.familiarity > enough
        rows = both.deal(count * config.batch_size) if forgets else forget_rows + retain.deal(count * config.batch_size)
        losses += optimise(
            student,
            Rows(taught, rows),
            epochs=1,
            generator=derived(generator),
            progress=part_of(progress, done, steps),
            **common,
        )
        state = watch(student) or state
        aucs.append((state.loss_auc, state.entropy_auc))
        forgetting.append(float(forgets))
        forgotten = forgotten or state.familiarity <= 0
        # Beyond chance only: of models that are all alike enough, the latest has recovered most of the retain rows.
        score = max(abs(state.familiarity) - 2 * state.standard_error, 0.0)
        if (forgotten or len(losses) == steps) and score <= chosen[0]:
            chosen = (score, len(losses), state, copy.deepcopy(student.state_dict()))
    score, step, found, weights = chosen
    student.load_state_dict(weights)
    histories = {
        "loss": losses,
        "loss_auc": [loss for loss, _ in aucs],
        "entropy_auc": [spread for _, spread in aucs],
        "forgetting": forgetting,
    }
    return histories, {
        "loss_auc_of_original": before.loss_auc,
        "entropy_auc_of_original": before.entropy_auc,
        "loss_auc": found.loss_auc,
        "entropy_auc": found.entropy_auc,
        "auc_standard_error": found.standard_error,
        "chosen_step": step,
        "like_calibration_rows": "yes" if score == 0 else "no",
    }
