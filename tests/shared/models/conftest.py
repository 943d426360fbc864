"""A small trained-looking network, its card, and its bundle."""

from pathlib import Path

import pytest
import torch
from torch import nn

from unlearning.models.architectures import build
from unlearning.models.bundle import Bundle, ModelCard, save_bundle


@pytest.fixture
def card() -> ModelCard:
    return ModelCard(
        architecture="allcnn",
        arguments={"width": 0.0625},
        input_shape=(1, 8, 8),
        outputs=3,
        classes=("zero", "one", "zwölf"),
        mean=(0.5,),
        std=(0.25,),
        recipe={"epochs": 2, "lr": 0.1},
    )


@pytest.fixture
def network(card: ModelCard) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return build(card.architecture, card.arguments, input_shape=card.input_shape, outputs=card.outputs)


@pytest.fixture
def bundle(card: ModelCard, network: nn.Module, tmp_path: Path) -> Bundle:
    return save_bundle(network, card, tmp_path / "bundle")
