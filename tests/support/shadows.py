"""Many tiny networks trained at once on halves of some digits, with false labels to learn by heart."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from unlearning.attacks.lira import taught
from unlearning.training import build_seeded, seeded

Array = NDArray[np.float64]
ROWS, SHADOWS, SEED = 200, 24, 0
POPULATION = 300


@dataclass(frozen=True)
class Shadows:
    """Losses in nats of candidates and of population rows under every network, and who was taught which candidate."""

    sides: NDArray[np.bool_]  # (SHADOWS, ROWS)
    losses: Array  # (SHADOWS, ROWS), networks that overfitted
    population: Array  # (SHADOWS, POPULATION)
    untrained: Array  # (SHADOWS, ROWS), the same networks before any training


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


def _data() -> tuple[Tensor, Tensor]:
    """Inputs (N, 64) and labels (N,), three in ten of them drawn at random."""
    digits = load_digits()
    order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(1))[: ROWS + POPULATION]
    inputs = torch.from_numpy(digits.data / 16).float()[order]
    labels = torch.from_numpy(digits.target).long()[order]
    source = torch.Generator().manual_seed(2)
    false = torch.rand(len(labels), generator=source) < 0.3
    return inputs, torch.where(false, torch.randint(10, (len(labels),), generator=source), labels)


@cache
def shadows() -> Shadows:
    inputs, labels = _data()
    sides = np.stack([taught(ROWS, shadow, seed=SEED) for shadow in range(SHADOWS)])
    networks = [build_seeded(_network, 100 + shadow) for shadow in range(SHADOWS)]
    weights, _ = stack_module_state(networks)  # type: ignore[arg-type]
    shell = networks[0]

    def losses_of(one: dict[str, Tensor], rows: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(shell, one, (rows,)), targets, reduction="none")

    every = vmap(losses_of, in_dims=(0, None, None))

    def measured() -> Array:
        with torch.no_grad():
            return np.asarray(every(weights, inputs, labels).double().numpy())

    untrained = measured()
    shares = torch.from_numpy(sides).float() / ROWS * 2
    with seeded(0, torch.device("cpu")):
        optimiser = torch.optim.Adam(list(weights.values()), lr=0.01)
        for _ in range(120):
            optimiser.zero_grad()
            (every(weights, inputs[:ROWS], labels[:ROWS]) * shares).sum().backward()
            optimiser.step()
    trained = measured()
    return Shadows(sides=sides, losses=trained[:, :ROWS], population=trained[:, ROWS:], untrained=untrained[:, :ROWS])
