"""Does the gate say yes to what has forgotten, and no to what only looks like it? Known answers, over seeds.

    python benchmarks/verdicts.py --seeds 20 --out benchmarks/results/verdicts.jsonl

On scikit-learn's digits, for a class, for a twentieth of the rows, and for a twentieth of the rows that bear false
labels which the original learned by heart: an original, a reference retrained without what is forgotten, and candidates
whose right verdict is known. A second network retrained from scratch, by another seed, should pass. These should not:
the original itself; one that was trained on for an epoch; the original with a last layer that cannot say the class,
that was learned anew, or whose outputs were put in another order; a network that was never trained; one whose weights
hold a NaN. For each candidate: how often which verdict came, and by which gates. Of rows with true labels the original
and the retrained networks treat the same way whether they saw them or not: there the positive control says that a pass
means little, and the network that was trained on passes.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import machine
from torch import nn

from unlearning.data.manifest import Manifest
from unlearning.data.overlap import overlap
from unlearning.data.samples import Rows, Samples, TensorSamples
from unlearning.data.selection import ForgetRequest, select
from unlearning.data.sources import make_manifest, open_samples
from unlearning.metrics.classification import Outputs
from unlearning.models.architectures import build
from unlearning.models.bundle import ModelCard
from unlearning.policy.controls import controls
from unlearning.policy.gates import judge, policy_for
from unlearning.training import Recipe, build_seeded, generator, predict, train
from unlearning_components.evaluations import attacked, measured

RECIPE = Recipe(epochs=15, learning_rate=0.005, batch_size=64)
LONGER = Recipe(epochs=40, learning_rate=0.005, batch_size=64)
"""Until false labels are learned by heart."""
REQUESTS = ("class", "sample", "mislabelled")
WANTED = {"retrained": "pass"}
"""Of every other candidate: anything else."""


def blank(seed: int) -> nn.Module:
    """LeNet-5 for 8 x 8 pixels."""
    return build_seeded(lambda: build("lenet5", {}, input_shape=(1, 8, 8), outputs=10), seed)


def trained(rows: Samples, seed: int, recipe: Recipe) -> nn.Module:
    """A network of that seed."""
    model = blank(seed)
    train(model, rows, recipe, generator=generator(seed, "train"))
    return model.eval()


def candidates(
    original: nn.Module, again: nn.Module, everything: Samples, retain: Samples, seed: int, gone: int
) -> dict[str, nn.Module]:
    """Name to network; the first one is to pass, the others are not."""
    edited, permuted, broken, trained_on, anew = (copy.deepcopy(original) for _ in range(5))
    train(trained_on, everything, Recipe(epochs=1, learning_rate=0.001), generator=generator(seed, "on"))
    last = [layer for layer in anew.modules() if isinstance(layer, nn.Linear)][-1]
    anew.requires_grad_(False)
    last.requires_grad_(True)
    last.reset_parameters()
    train(anew, retain, Recipe(epochs=3, learning_rate=0.01), generator=generator(seed, "anew"))
    layers = [[layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1] for model in (edited, permuted)]
    order = torch.arange(10).roll(1)
    with torch.no_grad():
        layers[0].bias[gone] -= 100
        layers[1].weight.copy_(layers[1].weight[order])
        layers[1].bias.copy_(layers[1].bias[order])
        next(broken.parameters()).view(-1)[0] = float("nan")
    return {
        "retrained": again,
        "original": original,
        "trained on": trained_on.eval(),
        "last layer edited": edited,
        "last layer learned anew": anew.eval(),
        "outputs reordered": permuted,
        "never trained": blank(seed + 1000).eval(),
        "holds a NaN": broken,
    }


def verdict(
    models: dict[str, nn.Module],
    sets: dict[str, Rows],
    manifest: Manifest,
    card: ModelCard,
    request: str,
    gone: list[int],
    twice: dict[str, float],
) -> tuple[str, list[str], dict[str, bool]]:
    """The outcome, the gates that said no, and whether the controls hold.

    An error on the way, such as outputs that are not finite, is a no.
    """
    try:
        outputs = {
            name: {key: Outputs(logits=predict(model, rows), targets=rows.targets) for key, rows in sets.items()}
            for name, model in models.items()
        }
        found = measured(outputs, card=card, data=manifest.card, forget_classes=gone, models=models)
        attacks = attacked(outputs, task=card.task, seed=0)
    except (ValueError, FloatingPointError) as error:
        return "refused", [str(error).partition(":")[0][:60]], {}
    content = found.content
    metrics = {**content["metrics"], **attacks.metrics, **twice}
    errors = {**content["standard_errors"], **attacks.standard_errors}
    control = controls(metrics, errors, task="classification", request=request, reference=True)
    decided = judge(
        {**metrics, **control.metrics},
        {**errors, **control.standard_errors},
        policy_for("classification", request, reference=True),
        findings=content["findings"],
    )
    gates = [gate.metric for gate in decided.gates if gate.outcome != "pass"]
    return decided.outcome, gates, {name: bool(value) for name, value in control.metrics.items()}


def with_targets(samples: Samples) -> TensorSamples:
    """The same samples in memory, with targets that may be changed."""
    inputs, targets = samples.batch(torch.arange(len(samples)))
    return TensorSamples(inputs, targets.clone(), mean=(0.0,), std=(1.0,))


def one_seed(request: str, seed: int, manifest: Manifest) -> list[dict[str, Any]]:
    """A line for each candidate."""
    train_rows = manifest.rows("train")
    draws = np.random.default_rng(seed)
    drawn = draws.permutation(train_rows)[: len(train_rows) // 20]
    samples = with_targets(open_samples(manifest))
    if request == "mislabelled":
        samples.targets[drawn] = (samples.targets[drawn] + torch.from_numpy(draws.integers(1, 10, len(drawn)))) % 10
    column = manifest.table["sample_id"].to_pylist()
    name = manifest.card.classes[seed % 10]
    kind = "class" if request == "class" else "sample"
    ids = (name,) if request == "class" else tuple(column[row] for row in drawn)
    chosen = select(manifest, ForgetRequest(kind, ids), seed=seed)
    rows = {
        "forget.train": chosen.forget,
        "retain.train": chosen.retain,
        "forget.test": chosen.holdout_forget,
        "retain.test": chosen.holdout_retain,
    }
    sets = {key: Rows(samples, torch.from_numpy(values)) for key, values in rows.items() if len(values)}
    everything, retain = Rows(samples, torch.from_numpy(train_rows)), sets["retain.train"]
    recipe = LONGER if request == "mislabelled" else RECIPE
    original, reference, again = (
        trained(*one, recipe) for one in ((everything, seed), (retain, seed + 100), (retain, seed + 200))
    )
    card = ModelCard(
        architecture="lenet5", arguments={}, input_shape=(1, 8, 8), outputs=10, classes=manifest.card.classes
    )
    gone = list(chosen.forget_classes)
    held_out = np.concatenate([chosen.holdout_forget, chosen.holdout_retain])
    twice = overlap(samples, chosen.forget, chosen.retain, held_out)
    lines = []
    for candidate, model in candidates(original, again, everything, retain, seed, seed % 10).items():
        models = {"original": original, "unlearned": model, "retrained": reference}
        outcome, gates, control = verdict(models, sets, manifest, card, kind, gone, twice)
        right = outcome == "pass" if WANTED.get(candidate) == "pass" else outcome != "pass"
        lines.append(
            {
                "request": request,
                "seed": seed,
                "candidate": candidate,
                "outcome": outcome,
                "right": right,
                "gates": gates,
                "control": control,
            }
        )
    return lines


def main() -> None:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--requests", nargs="+", choices=REQUESTS, default=REQUESTS)
    parser.add_argument("--test-share", type=float, default=0.2, help="of the rows: 0.5 leaves more to tell by")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    manifest = make_manifest("digits", test_share=options.test_share)
    began = time.process_time()
    lines = [
        line
        for request in options.requests
        for seed in range(options.seeds)
        for line in one_seed(request, seed, manifest)
    ]
    if options.out:
        last = {**machine(), "cpu_s": round(time.process_time() - began)}
        options.out.write_text("".join(json.dumps(line) + "\n" for line in [*lines, last]))
    print(f"{'forgotten':11} {'candidate':23} {'right':>7}  verdicts; what said no")
    for request in options.requests:
        for candidate in dict.fromkeys(line["candidate"] for line in lines):
            mine = [line for line in lines if (line["request"], line["candidate"]) == (request, candidate)]
            outcomes = ", ".join(f"{count} {word}" for word, count in Counter(line["outcome"] for line in mine).items())
            gates = Counter(gate for line in mine for gate in line["gates"]).most_common(3)
            said = ", ".join(f"{gate} {count}" for gate, count in gates)
            right = sum(line["right"] for line in mine)
            print(f"{request:11} {candidate:23} {right:>3} of {len(mine):<3} {outcomes}; {said}")
        held = [line["control"] for line in lines if line["request"] == request and line["candidate"] == "retrained"]
        said = ", ".join(f"{name} {sum(one[name] for one in held)} of {len(held)}" for name in held[0])
        print(f"{request:11} controls hold: {said}")
    print(f"{time.process_time() - began:.0f} CPU seconds")


if __name__ == "__main__":
    main()
