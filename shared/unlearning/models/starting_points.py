"""Which network and recipe to begin with, for data of every kind: what a card says decides, no sample is read.

These are starting points that learn on one CPU within minutes, not the best that is known. `benchmarks/modalities.py`
trains each of them but those for images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from unlearning.data.card import DataCard
from unlearning.data.sources.windows import CALENDAR
from unlearning.errors import UsageError

UPDATES = 2000
"""Updates that tables of numbers get, by as many epochs as that takes."""

QUANTILES = [0.1, 0.5, 0.9]


@dataclass(frozen=True)
class StartingPoint:
    """A network and how to train it, in the JSON types that a model card carries.

    Attributes:
        kind: What the data are taken for: "table", "image", "sequence", "pairs" or "windows".
        architecture: A key of `unlearning.models.architectures.ARCHITECTURES`.
        arguments: Its settings.
        outputs: Number of its outputs.
        recipe: Fields of `unlearning.training.Recipe` that differ from its defaults.
    """

    kind: str
    architecture: str
    arguments: dict[str, Any]
    outputs: int
    recipe: dict[str, Any]


def starting_point(card: DataCard, train_rows: int) -> StartingPoint:
    """What to train on such data when nothing else is said.

    Args:
        card: Of the data.
        train_rows: How many rows it will be trained on; >= 1.

    Raises:
        UsageError: Without rows.

    Example:
        >>> card = DataCard("diabetes", "regression", (), (10,), (0.0,) * 10, (1.0,) * 10)
        >>> starting_point(card, 354).architecture
        'mlp'
    """
    if train_rows < 1:
        raise UsageError(f"a network needs rows to train on, got {train_rows}: choose another split")
    kind = _kind(card)
    architecture, arguments, recipe = _CHOICES[kind](card, train_rows)
    outputs = len(card.classes) or card.horizon * len(recipe.get("quantiles", [0.5]))
    return StartingPoint(kind, architecture, arguments, outputs, recipe)


def _kind(card: DataCard) -> str:
    if card.vocabulary:
        return "pairs"
    if card.source.startswith("windows:"):
        return "windows"
    return {1: "table", 2: "sequence", 3: "image"}[len(card.input_shape)]


_Choice = tuple[str, dict[str, Any], dict[str, Any]]


def _epochs(train_rows: int, batch_size: int, *, least: int, most: int) -> int:
    return min(most, max(least, math.ceil(UPDATES / math.ceil(train_rows / batch_size))))


def _loss(card: DataCard) -> dict[str, Any]:
    return {} if card.classes else {"loss": "l1"}


def _table(card: DataCard, rows: int) -> _Choice:
    if card.classes:
        return "mlp", {"hidden": [128], "dropout": 0.3}, {"epochs": 15}
    epochs = _epochs(rows, 128, least=10, most=200)
    return "mlp", {"hidden": [64, 64]}, {"epochs": epochs, "learning_rate": 3e-3, "batch_size": 128, "loss": "l1"}


def _image(card: DataCard, rows: int) -> _Choice:
    if min(card.input_shape[1:]) < 16:
        return "allcnn", {"width": 0.25}, {"epochs": 15, "learning_rate": 5e-3, "batch_size": 64, **_loss(card)}
    epochs = _epochs(rows, 128, least=4, most=60)
    recipe = {"epochs": epochs, "learning_rate": 3e-3, "batch_size": 128, **_loss(card)}
    return "allcnn", {"width": 0.25}, recipe | ({"augmentation": "shift_flip"} if card.input_shape[0] == 3 else {})


def _sequence(card: DataCard, rows: int) -> _Choice:
    return "cnn1d", {"width": 0.5, "dropout": 0.2}, {"epochs": 15, "learning_rate": 3e-3, **_loss(card)}


def _pairs(card: DataCard, rows: int) -> _Choice:
    arguments = {"vocabulary": card.vocabulary, "embedding": 100, "joined": "compared", "read": "mean"}
    return "pair_lstm", arguments, {"epochs": 12, "learning_rate": 5e-3, "batch_size": 64, "loss": "mse"}


def _windows(card: DataCard, rows: int) -> _Choice:
    alone = "target=*" in card.source.partition("?")[2].split("&")
    arguments: dict[str, Any] = {
        "encoder": card.input_shape[0] - card.horizon,
        "observed": card.input_shape[1] - len(CALENDAR) - alone,
        **({"series": len(card.features)} if alone else {}),
        "season": 1,
        "target": 0 if alone else card.features.index(card.target_name),
        "hidden": 16,
    }
    recipe = {"epochs": 4, "learning_rate": 3e-3, "batch_size": 64, "weight_decay": 0.0, "clip_value": 0.1}
    return "tft", arguments, {**recipe, "loss": "quantile", "quantiles": list(QUANTILES)}


_CHOICES = {"table": _table, "image": _image, "sequence": _sequence, "pairs": _pairs, "windows": _windows}
