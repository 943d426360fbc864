"""Blindspot: on the forget rows, imitate a network that was briefly trained on retain rows alone.

Source: Tarun et al., "Deep Regression Unlearning", ICML 2023, arXiv:2210.08196.

The blind network says what a network that never saw the forget rows would say of them, and the original learns to say
the same: L = (1 - q) E(M(x_r), y_r) + q (E(M(x_f), B(x_f)) + lambda AT), where q is the share of forget rows in a
batch and AT the difference between both networks' attention maps on them. The labels of the forget rows are not used.

Departs from the authors' code, by default. The blind network trains for three tenths of the original's epochs rather
than for two: after two of a hundred it knows next to nothing, of the forget rows least of all. Few forget rows are
repeated until they are a quarter of what is taught, or they are taught too little; the student trains at a higher rate,
for five epochs, and its rate falls to zero. Activations without a spatial axis have attention too (in that code theirs
is constant). What the blind network says of the forget rows is computed once. The preset "paper" has the published
numbers; the attention and the single computation are ours even there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlearning.config import About, build
from unlearning.data.samples import Joined, Rows, Samples
from unlearning.losses import Loss
from unlearning.methods import Facts
from unlearning.methods.attention import attended_modules, attention_loss, attention_map, recorded
from unlearning.methods.incompetent_teacher import adam, repeated
from unlearning.methods.record import DistillRecord
from unlearning.methods.rows import (
    Relabelled,
    derived,
    error_loss,
    needed,
    paced,
    part_of,
    settled_error,
    wrong_error,
    wrong_numbers,
)
from unlearning.methods.task import Task
from unlearning.progress import Progress, silent
from unlearning.training import Recipe, device_of, evaluating, fitting, optimise, steps_per_epoch, train

PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "blind_epochs": 2,
        "blind_optimiser": "adam",
        "blind_learning_rate": 1e-2,
        "blind_schedule": "constant",
        "blind_batch_size": 256,
        "attention_weight": 50.0,
        "forget_share": 0.0,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "epochs": 1,
        "batch_size": 256,
    },
}
"""`paper`: what the released notebook of face ages runs; that of sentence pairs runs 10 blind epochs and 5 others."""

RECIPE = ("optimiser", "learning_rate", "schedule", "weight_decay", "batch_size", "clip_value", "augmentation")
"""What the blind network's training takes over from the original's."""

RATES: dict[str, float] = {"scratch": 3e-3, "pretrained": 1e-4}
"""Adam's rate for the student, at most: of a network trained from scratch, and of a fine-tuned backbone."""

EPOCHS = 5
BLIND_SHARE = 0.3
"""The blind network's share of the epochs that the original was trained for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlindspotConfig:
    """Settings of blindspot unlearning; a given value always wins over the rule."""

    preset: Annotated[Literal["default", "paper"], About("a set of values; given ones win")] = "default"
    error: Annotated[
        Literal["auto", "l1", "mse", "quantile"], About("the loss; auto: the one that the model was trained by", "rule")
    ] = "auto"
    quantiles: Annotated[tuple[float, ...], About("of the quantile loss", "rule")] = ()
    blind_epochs: Annotated[int, About("of the blind network, over the retain rows", "rule")] = 2
    blind_optimiser: Annotated[Literal["adam", "sgd"], About("of the blind network, as the original's", "rule")] = (
        "adam"
    )
    blind_learning_rate: Annotated[float, About("of the blind network, as the original's", "rule")] = 1e-2
    blind_schedule: Annotated[
        Literal["constant", "one_cycle"], About("of the blind network, as the original's", "rule")
    ] = "one_cycle"
    blind_weight_decay: Annotated[float, About("of the blind network, as the original's", "rule")] = 1e-4
    blind_batch_size: Annotated[int, About("rows in an update of the blind network, as the original's", "rule")] = 256
    blind_clip_value: Annotated[float, About("bound of the blind network's gradients, as the original's", "rule")] = 0.0
    blind_augmentation: Annotated[
        Literal["none", "shift", "shift_flip"], About("of the blind network, as the original's", "rule")
    ] = "none"
    attention_weight: Annotated[float, About("lambda, of the attention maps' difference; 0: none", "code")] = 50.0
    forget_share: Annotated[float, About("least share of forget rows in what is taught, by repeating")] = 0.25
    learning_rate: Annotated[float, About("of Adam", "rule")] = RATES["scratch"]
    schedule: Annotated[Literal["linear", "constant"], About("of the rate; linear: falls to zero")] = "linear"
    epochs: Annotated[int, About("over the forget rows and the retain rows", "rule")] = EPOCHS
    batch_size: Annotated[int, About("rows in an update", "rule")] = 256

    def __post_init__(self) -> None:
        """Refuse values outside their ranges, all named at once."""
        wrong = wrong_numbers(
            self,
            least={"blind_epochs": 1, "blind_batch_size": 2, "epochs": 1, "batch_size": 2},
            positive=("blind_learning_rate", "learning_rate"),
        )
        wrong += wrong_error(self)
        for name in ("blind_weight_decay", "blind_clip_value", "attention_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                wrong.append(f"{name} must be >= 0, got {getattr(self, name)}")
        if not 0 <= self.forget_share < 1:
            wrong.append(f"forget_share must be in [0, 1), got {self.forget_share}")
        if wrong:
            raise ValueError("; ".join(wrong))


def configure(settings: Mapping[str, Any], facts: Facts) -> BlindspotConfig:
    """The configuration for this model and data: rule, then preset, then what was asked for.

    The rule. The blind network is trained as the model's card says that the original was, but for `BLIND_SHARE` of its
    epochs; for three, paced by the number of retain rows, where that is more or the card says nothing. The student
    trains for `EPOCHS`, paced likewise, at the original's rate but at most that of `RATES`.

    Raises:
        UsageError: For unknown settings or values out of range, all at once.
    """
    asked = build(BlindspotConfig, settings, what="blindspot settings")
    batch_size, epochs = paced(facts.retain_rows, EPOCHS)
    most = RATES["pretrained" if facts.fine_tuned else "scratch"]
    recipe = {name: facts.recipe[name] for name in RECIPE if name in facts.recipe}
    chosen: dict[str, Any] = {
        "blind_batch_size": batch_size,
        **{f"blind_{name}": value for name, value in recipe.items()},
        "learning_rate": min(most, facts.learning_rate or most),
        "epochs": epochs,
        "batch_size": batch_size,
    }
    chosen["blind_epochs"] = max(math.ceil(BLIND_SHARE * facts.recipe.get("epochs", 0)), paced(facts.retain_rows, 3)[1])
    chosen |= PRESETS[asked.preset]
    return build(BlindspotConfig, {**chosen, **settings, **settled_error(settings, facts)}, what="blindspot settings")


def blindspot_loss(
    outputs: Tensor,
    forgotten: Tensor,
    targets: Tensor,
    answers: Tensor,
    maps: Sequence[Tensor] = (),
    blind_maps: Sequence[Tensor] = (),
    *,
    loss: Loss,
    answer_loss: Loss,
    attention_weight: float,
) -> Tensor:
    """(1 - q) E(M(x_r), y_r) + q (E(M(x_f), B(x_f)) + lambda AT), q = F / B; a batch of one kind has its term alone.

    Args:
        outputs: M(x), shape (B, O).
        forgotten: Which of the batch are forget rows, F of them, shape (B,), bool.
        targets: y_r of the other B - F rows, shape (B - F,) or (B - F, H).
        answers: B(x_f), the blind network's outputs, shape (F, O).
        maps: The student's attention maps of the forget rows, (F, J) for each layer.
        blind_maps: The blind network's, of the same shapes.
        loss: E of outputs and targets, a mean over rows.
        answer_loss: E of outputs and outputs, a mean over rows.
        attention_weight: lambda; >= 0.

    Returns:
        Scalar >= 0, in the unit of the loss.
    """
    B, n_f = len(outputs), len(answers)
    total = outputs.new_zeros(())
    if n_f < B:
        total = total + (B - n_f) / B * loss(outputs[~forgotten], targets)
    if n_f:
        imitated = answer_loss(outputs[forgotten], answers)
        if maps:
            imitated = imitated + attention_weight * attention_loss(maps, blind_maps)
        total = total + n_f / B * imitated
    return total


def lesson(
    blind: nn.Module, forget: Samples, layers: Sequence[str], *, batch_size: int = 1024
) -> tuple[Tensor, list[Tensor]]:
    """What the blind network says of the forget rows, and its attention maps of them; one pass, in eval mode.

    Args:
        blind: The blind network.
        forget: N rows.
        layers: The modules whose maps are wanted.
        batch_size: Rows at once.

    Returns:
        Outputs, shape (N, O), and for each layer (N, J), on the network's device.
    """
    device = device_of(blind)
    outputs, maps = [], []
    with evaluating(blind), torch.inference_mode(), recorded(blind, layers) as activations:
        for rows in torch.arange(len(forget)).split(fitting(batch_size, device)):
            outputs.append(blind(forget.batch(rows)[0].to(device)).float())
            maps.append([attention_map(one.float()) for one in activations.values()])
    return torch.cat(outputs).clone(), [torch.cat(layer).clone() for layer in zip(*maps, strict=True)]


def _layers(model: nn.Module, rows: Samples) -> tuple[str, ...]:
    """The modules whose attention is imitated; a row says the shape and the type of an input."""
    inputs, _ = rows.batch(torch.tensor([0]))
    return attended_modules(model, tuple(inputs.shape[1:]), hidden=True, dtype=inputs.dtype)


def distill(
    original: nn.Module,
    task: Task,
    *,
    config: BlindspotConfig,
    generator: torch.Generator,
    progress: Progress = silent,
) -> tuple[nn.Module, DistillRecord]:
    """A student that started as the original and answers the forget rows as the blind network does; and its course.

    Args:
        original: Left unchanged.
        task: With forget and retain rows; the targets of the forget rows are not used.
        config: From `configure`.
        generator: Of the blind network's first weights, and of the orders.
        progress: Called after every step.

    Raises:
        UsageError: Without forget or retain rows.
        FloatingPointError: When a loss is not finite.
    """
    forget = needed(task, "forget", method="blindspot")
    retain = needed(task, "retain", method="blindspot")
    device, loss = device_of(original), error_loss(config, retain)
    recipe = Recipe(
        **{name: getattr(config, f"blind_{name}") for name in (*RECIPE, "epochs")},
        loss=config.error if config.error != "auto" else "mse",
        quantiles=config.quantiles,
    )
    blind = task.blank(int(torch.randint(2**31, (1,), generator=generator))).to(device)
    repeats = repeated(len(forget), len(retain), config.forget_share)
    again = len(forget) * repeats
    before = recipe.epochs * steps_per_epoch(len(retain), recipe.batch_size)
    steps = config.epochs * steps_per_epoch(again + len(retain), config.batch_size)
    blind_losses = train(
        blind,
        retain,
        recipe,
        generator=derived(generator),
        phase="teacher",
        progress=part_of(progress, 0, before + steps),
    )
    layers = _layers(original, forget) if config.attention_weight else ()
    answers, blind_maps = lesson(blind, forget, layers)
    student, n_f, targets = copy.deepcopy(original), len(forget), retain.targets.to(device)
    answer_loss: Loss = F.mse_loss if config.error in ("auto", "mse") else F.l1_loss
    # Every row says its number instead of its target: the loss looks up what is to be learned of it.
    numbered = Relabelled(Joined(forget, retain), torch.arange(n_f + len(retain)))
    taught = Rows(numbered, torch.cat([torch.arange(n_f).repeat(repeats), n_f + torch.arange(len(retain))]))
    optimiser, scheduler = adam(student, steps, config.learning_rate, config.schedule)
    with recorded(student, layers) as activations:

        def taught_loss(outputs: Tensor, numbers: Tensor) -> Tensor:
            forgotten = numbers < n_f
            gone = numbers[forgotten]
            return blindspot_loss(
                outputs,
                forgotten,
                targets[numbers[~forgotten] - n_f],
                answers[gone],
                [attention_map(one[forgotten]) for one in activations.values()],
                [layer[gone] for layer in blind_maps],
                loss=loss,
                answer_loss=answer_loss,
                attention_weight=config.attention_weight,
            )

        losses = optimise(
            student,
            taught,
            optimiser=optimiser,
            scheduler=scheduler,
            epochs=config.epochs,
            batch_size=config.batch_size,
            generator=derived(generator),
            loss=taught_loss,
            phase="distill",
            progress=part_of(progress, before, before + steps),
        )
    notes: dict[str, str | float | int] = {
        "blind_steps": before,
        "steps": steps,
        "forget_repeats": repeats,
        "attended": ", ".join(layers) or "none",
    }
    return student.eval(), DistillRecord(histories={"loss": losses, "blind_loss": blind_losses}, notes=notes)
