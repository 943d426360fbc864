"""Do the networks for data beyond images learn? Trained once on real data, measured on held-out rows, beside a guess.

    UNLEARN_DATA=... python benchmarks/modalities.py ett --seeds 3
    UNLEARN_DATA=... python benchmarks/modalities.py stsb har eeg diabetes abalone parkinsons california

Each is trained from its starting point (`unlearning.models.starting_points`). A run prints one JSON line: the network,
its held-out figures, and those of a guess that needs no network. Seconds are of the processor.

- `ett`: the oil temperature of ETTh1 24 hours ahead by a Temporal Fusion Transformer; the guess is the same hour of the
  day before. `mae` and `mse` of the median are in deviations of the training time; `crossed` is the share of forecast
  steps at which any quantile lies above the next one (0 by construction), `covered` how often the truth lies between
  the outermost ones, `nominal` how often it should. --set '{"monotone": false, "season": 0}' is the published network.
- `stsb`: how alike two sentences are, 0 to 5, by the pair network; the guess is the mean.
- `har`, `eeg`: held-out accuracy; people, or recordings, in the test were never seen. The guess is the largest class.
- `diabetes`, `abalone`, `parkinsons`, `california`: tables by linear layers; the guess is the mean. Of parkinsons,
  whole patients are held out: features say little about a stranger's score.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import data_folder
from torch import Tensor

from unlearning.config import build as build_settings
from unlearning.data.manifest import Manifest
from unlearning.data.samples import Rows, Samples
from unlearning.data.sources import make_manifest, open_samples
from unlearning.losses import by_quantile
from unlearning.losses import point as point_of
from unlearning.metrics.accuracy import accuracy
from unlearning.models.architectures import build
from unlearning.models.starting_points import starting_point
from unlearning.training import Recipe, best_device, build_seeded, generator, predict, train

SOURCES = {
    "ett": "windows:{data}/regression/ett/ETTh1.csv?target=OT&unit=degrees C",
    "stsb": "pairs:{data}/regression/stsb",
    "har": "har:{data}/har",
    "eeg": "eeg:{data}/eeg",
    "diabetes": "diabetes",
    "abalone": "table:{data}/regression/uci/abalone.csv?target=rings"
    "&names=sex,length,diameter,height,whole,shucked,viscera,shell,rings",
    "parkinsons": "table:{data}/regression/uci/parkinsons_updrs.data"
    "?sep=tab&target=total_UPDRS&subject=subject#&drop=motor_UPDRS",
    "california": "table:{data}/regression/california_housing/housing.csv?target=median_house_value&divide=100000",
}
EVERY = {"ett": 4}
"""Of the training rows, each so many-th is taken: neighbouring windows share nearly all hours."""


def run(name: str, *, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The figures of one data set; `settings` win over the starting point's arguments."""
    source = SOURCES[name]
    made = make_manifest(source.format(data=data_folder()) if "{data}" in source else source)
    rows = torch.from_numpy(made.rows("train"))[:: EVERY.get(name, 1)]
    samples, point = open_samples(made), starting_point(made.card, len(rows))
    arguments = {**point.arguments, **settings}
    recipe = build_settings(Recipe, point.recipe, what="recipe")
    model = build_seeded(
        lambda: build(point.architecture, arguments, input_shape=made.card.input_shape, outputs=point.outputs), seed
    ).to(best_device())
    began = time.process_time()
    train(model, Rows(samples, rows), recipe, generator=generator(seed, "train"))
    seconds = time.process_time() - began
    parts = {split: Rows(samples, torch.from_numpy(made.rows(split))) for split in ("train", "test")}
    outputs = {split: predict(model, part) for split, part in parts.items()}
    figures = _measured(made, recipe, parts, outputs)
    return {
        **{"data": name, "seed": seed, "architecture": point.architecture, "arguments": arguments},
        **{"recipe": point.recipe, "train_rows": len(rows), "seconds": round(seconds, 1)},
        **{key: round(value, 4) for key, value in figures.items()},
    }


def _measured(made: Manifest, recipe: Recipe, parts: dict[str, Rows], outputs: dict[str, Tensor]) -> dict[str, float]:
    truth = parts["test"].targets
    if made.card.classes:
        common = parts["train"].targets.mode().values
        figures = {f"accuracy.{split}": accuracy(outputs[split], part.targets) for split, part in parts.items()}
        return {**figures, "guess.accuracy": float((truth == common).float().mean())}
    quantiles, card = recipe.quantiles, made.card
    predicted = {split: point_of(values, quantiles) for split, values in outputs.items()}
    guess = parts["train"].targets.mean(0).expand_as(truth)
    figures = {}
    if quantiles:
        guess = _day_before(parts["test"], card.input_shape[0] - card.horizon, card.features.index(card.target_name))
        levels = by_quantile(outputs["test"], truth, len(quantiles))
        inside = (levels[..., 0] <= truth) & (truth <= levels[..., -1])
        figures["crossed"] = float((levels.diff(dim=-1) < 0).any(-1).float().mean())
        figures |= {"covered": float(inside.float().mean()), "nominal": quantiles[-1] - quantiles[0]}
    errors: dict[str, Callable[[Tensor], Tensor]] = {"mae": Tensor.abs, "mse": Tensor.square}
    for key, error in errors.items():
        figures[f"{key}.train"] = float(error(predicted["train"] - parts["train"].targets).mean())
        figures[f"{key}.test"] = float(error(predicted["test"] - truth).mean())
        figures[f"guess.{key}"] = float(error(guess - truth).mean())
    if not quantiles:
        figures["correlation"] = float(np.corrcoef(predicted["test"].numpy(), truth.numpy())[0, 1])
    return figures


def _day_before(windows: Samples, encoder: int, column: int) -> Tensor:
    """What the series was at the same hours of the last day that was read, (N, horizon)."""
    values = [
        windows.batch(rows)[0][:, encoder - 24 : encoder, column] for rows in torch.arange(len(windows)).split(512)
    ]
    return torch.cat(values)[:, torch.arange(windows.targets.shape[1]) % 24]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", choices=sorted(SOURCES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", default="{}", help='JSON, arguments of the network: {"monotone": false, "season": 0}')
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = []
    for name in options.data:
        for seed in range(options.seeds):
            lines.append(json.dumps(run(name, seed=seed, settings=json.loads(options.set))))
            print(lines[-1], flush=True)
    lines.append(json.dumps({"torch": torch.__version__, "command": "python " + " ".join(sys.argv)}))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
