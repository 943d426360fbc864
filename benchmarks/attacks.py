"""Do attacks that look at each row by itself see more than a threshold on the loss? Over-fitted networks, over seeds.

    python benchmarks/attacks.py --seeds 5 --out benchmarks/results/attacks.jsonl

For each seed, 24 small networks learn by heart one half each of 200 digits with 30% false labels; complementary halves
come in pairs, so every row was taught to half of the networks. Each network in turn is attacked with the others at
hand: a threshold on the loss (population), RMIA with 0 to 4 networks that never saw the row as references, and the
likelihood ratio with all 23. AUC of telling taught rows from others, and members found at 1% false alarms, mean over
networks and seeds, with the standard deviation of the seeds' means. And the same of the networks before any training,
where every attack should be at chance.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from unlearning.attacks.lira import Audit, leave_one_out, taught
from unlearning.attacks.membership import population_attack
from unlearning.attacks.rmia import rmia_scores
from unlearning.training import build_seeded, seeded

Array = NDArray[np.float64]
ROWS, POPULATION, NETWORKS, EPOCHS = 200, 300, 24, 120


def blank() -> nn.Module:
    """A network with one hidden layer."""
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))


def losses(seed: int) -> tuple[NDArray[np.bool_], Array, Array]:
    """Who was taught which row, (K, R); losses of rows and population before and after training, (K, R + P) each."""
    digits, source = load_digits(), torch.Generator().manual_seed(seed)
    order = torch.randperm(len(digits.data), generator=source)[: ROWS + POPULATION]
    inputs = torch.from_numpy(digits.data / 16).float()[order]
    labels = torch.from_numpy(digits.target).long()[order]
    false = torch.rand(len(labels), generator=source) < 0.3
    labels = torch.where(false, torch.randint(10, (len(labels),), generator=source), labels)
    sides = np.stack([taught(ROWS, network, seed=seed) for network in range(NETWORKS)])
    networks = [build_seeded(blank, 1000 * seed + network) for network in range(NETWORKS)]
    weights, _ = stack_module_state(networks)  # type: ignore[arg-type]

    def losses_of(one: dict[str, Tensor], rows: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(functional_call(networks[0], one, (rows,)), targets, reduction="none")

    every = vmap(losses_of, in_dims=(0, None, None))

    def measured() -> Array:
        with torch.no_grad():
            return np.asarray(every(weights, inputs, labels).double().numpy())

    before, shares = measured(), torch.from_numpy(sides).float() / ROWS * 2
    with seeded(seed, torch.device("cpu")):
        optimiser = torch.optim.Adam(list(weights.values()), lr=0.01)
        for _ in range(EPOCHS):
            optimiser.zero_grad()
            (every(weights, inputs[:ROWS], labels[:ROWS]) * shares).sum().backward()
            optimiser.step()
    return sides, before, measured()


def scores(sides: NDArray[np.bool_], found: Array, seed: int) -> Iterator[tuple[str, Array]]:
    """Attack to one score for each network and row, (K, R); higher: likelier a member."""
    rows, population = found[:, :ROWS], found[:, ROWS:]
    yield "population, loss", -rows
    for count in (0, 1, 2, 4):
        scored = np.empty_like(rows)
        for network in range(NETWORKS):
            pairs = np.random.default_rng([seed, network]).permutation(NETWORKS // 2)
            first = 2 * pairs[pairs != network // 2][:count]
            # Of each pair one network never saw the row: that is its reference.
            unseen = first[:, None] + sides[first].astype(np.int64)
            for chosen in np.unique(unseen, axis=1).T:
                mine = (unseen == chosen[:, None]).all(axis=0)
                scored[network, mine] = rmia_scores(
                    rows[network, mine], population[network], rows[chosen][:, mine], population[chosen]
                )
        yield f"RMIA, {count} reference{'s' * (count != 1)}", scored
    audit = Audit(seed=seed, rows=ROWS, planned=NETWORKS, confidences={})
    for network in range(NETWORKS):
        audit = audit.with_shadow(network, rows[network])
    yield f"likelihood ratio, {NETWORKS - 1} shadows", leave_one_out(audit)[0]


def main() -> None:
    """Attack the networks of every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines, began = [], time.process_time()
    for seed in range(options.seeds):
        sides, before, after = losses(seed)
        for state, found in (("over-fitted", after), ("never trained", before)):
            for attack, scored in scores(sides, found, seed):
                curves = [population_attack(-one[side], -one[~side]) for one, side in zip(scored, sides, strict=True)]
                line = {
                    "networks": state,
                    "attack": attack,
                    "seed": seed,
                    "auc": round(statistics.fmean(curve.auc for curve in curves), 4),
                    "found": round(statistics.fmean(curve.tpr_at_1_percent_fpr for curve in curves), 4),
                }
                lines.append(line)
    if options.out:
        options.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"{'networks':14} {'attack':30} {'AUC':>15}  found at 1% false alarms")
    for state, attack in dict.fromkeys((line["networks"], line["attack"]) for line in lines):
        mine = [line for line in lines if (line["networks"], line["attack"]) == (state, attack)]
        spoken = [
            f"{statistics.fmean(values):.3f} +- {statistics.stdev(values) if len(values) > 1 else 0:.3f}"
            for values in ([float(line[key]) for line in mine] for key in ("auc", "found"))
        ]
        print(f"{state:14} {attack:30} {spoken[0]:>15}  {spoken[1]}")
    print(f"{time.process_time() - began:.0f} CPU seconds")


if __name__ == "__main__":
    main()
