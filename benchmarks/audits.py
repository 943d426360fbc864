"""What is left underneath: every method for a class of the digits under an audit, beside models whose state is known.

    python benchmarks/audits.py --out benchmarks/results/audits.jsonl

The original, its last layer edited, and a second retrained model are there for comparison. Columns: mean distance of
the relearning curves from the retrained model's, on a few forgotten rows and on retained rows alone; the Anamnesis
Index; recognition by prototypes and the original's confidence in inverted pictures, less the retrained model's; RMIA.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import torch
from torch import nn

from unlearning.audit import AuditConfig, audit
from unlearning.config import as_plain
from unlearning.data.samples import Rows
from unlearning.data.selection import ForgetRequest, select
from unlearning.data.sources import make_manifest, open_samples
from unlearning.methods import METHODS
from unlearning.methods.apply import unlearn
from unlearning.methods.task import Task
from unlearning.models.architectures import build
from unlearning.training import Recipe, build_seeded, generator, train

RECIPE = Recipe(epochs=20, learning_rate=0.005, batch_size=64)
COLUMNS = {
    "few shots": "relearning_area.few_shots",
    "retained": "relearning_area.retain_only",
    "index": "anamnesis_index",
    "prototype": "prototype_gap",
    "inversion": "inversion_confidence_gap",
    "RMIA": "rmia_auc.unlearned",
}


def blank(seed: int) -> nn.Module:
    """LeNet-5 for 8 x 8 pixels."""
    return build_seeded(lambda: build("lenet5", {}, input_shape=(1, 8, 8), outputs=10), seed)


def trained(rows: Rows, seed: int) -> nn.Module:
    """A network of that seed."""
    model = blank(seed)
    train(model, rows, RECIPE, generator=generator(seed, "train"))
    return model.eval()


def edited(original: nn.Module, gone: int) -> nn.Module:
    """The original with a last layer that cannot say the class."""
    model = copy.deepcopy(original)
    last = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[gone] -= 100
    return model


def main() -> None:
    """Audit all of them and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gone", type=int, default=3, help="the class to forget")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    manifest = make_manifest("digits")
    samples = open_samples(manifest)
    chosen = select(manifest, ForgetRequest("class", (str(options.gone),)), seed=options.seed)
    numbers = {
        "forget.train": chosen.forget,
        "retain.train": chosen.retain,
        "forget.test": chosen.holdout_forget,
        "retain.test": chosen.holdout_retain,
    }
    sets = {name: Rows(samples, torch.from_numpy(rows)) for name, rows in numbers.items()}
    forget, retain = sets["forget.train"], sets["retain.train"]
    original = trained(Rows(samples, torch.from_numpy(manifest.rows("train"))), options.seed)
    retrained = trained(retain, options.seed + 1)
    half = len(chosen.holdout_retain) // 2
    task = Task(
        input_shape=(1, 8, 8),
        outputs=10,
        forget_classes=(options.gone,),
        blank=blank,
        forget=forget,
        retain=retain,
        calibration=Rows(samples, torch.from_numpy(chosen.holdout_retain[:half])),
    )
    known = {
        "the original": lambda: original,
        "its last layer edited": lambda: edited(original, options.gone),
        "retrained, another seed": lambda: trained(retain, options.seed + 2),
    }
    names = [name for name, row in METHODS.items() if "class" in row.requests and "classification" in row.tasks]
    recipe = as_plain(RECIPE)
    lines = []
    print(f"{'':24}" + "".join(f"{column:>11}" for column in COLUMNS))
    for name in (*known, *(name for name in names if name != "retrain")):
        model = (
            known[name]()
            if name in known
            else unlearn(original, task, name=name, recipe=recipe, seed=options.seed).model
        )
        report = audit(
            {"original": original, "unlearned": model, "retrained": retrained},
            sets,
            classes=10,
            forget_classes=(options.gone,),
            input_shape=(1, 8, 8),
            config=AuditConfig(),
            seed=options.seed,
        )
        lines.append({"model": name, "index": str(report.index), "metrics": report.metrics})
        shown = {column: report.metrics.get(f"audit.{metric}") for column, metric in COLUMNS.items()}
        cells = [f"{value:11.3f}" if value is not None else f"{report.index!s:>11}" for value in shown.values()]
        print(f"{name:24}" + "".join(cells), flush=True)
    if options.out:
        options.out.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
