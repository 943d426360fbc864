"""From a run's artifacts to its audit: the deeper attacks, and shadow models made one by one and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unlearning import __version__
from unlearning.attacks.lira import Audit, audit_by_shadow, lira_scores, taught
from unlearning.attacks.membership import cross_entropy, population_attack
from unlearning.audit import FEWEST, AuditConfig, AuditReport, audit
from unlearning.config import as_plain
from unlearning.data.samples import Joined, Rows, Samples
from unlearning.data.selection import read_rows
from unlearning.errors import UsageError
from unlearning.methods import METHODS
from unlearning.methods.apply import unlearn
from unlearning.metrics.distance import layer_distances
from unlearning.models.bundle import load_bundle
from unlearning.policy.gates import shadows_in
from unlearning.processes import by_each, team
from unlearning.progress import Lines
from unlearning.references import rows_digest
from unlearning.reporting.audit_figures import layer_distances as distances_drawn
from unlearning.reporting.audit_figures import relearning_curves
from unlearning.reporting.figures import noise_pictures
from unlearning.training import best_device, generator, predict
from unlearning_components.evaluations import quantiles_of
from unlearning_components.surroundings import fetch_manifest, further_references, open_for, store, subset, task_for

if TYPE_CHECKING:
    from unlearning.data.card import Scaling
    from unlearning.data.manifest import Manifest
    from unlearning.models.bundle import ModelCard

WHOLE = ("target", "period")
"""Requests about values whose forgotten rows have held-out ones of their own."""
MOST_CANDIDATES = 2000
"""Rows that shadows are taught, or not; more are drawn down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """What the audit stage writes.

    Attributes:
        content: As JSON types; "metrics" and "standard_errors" are what the gate reads, "asked" what the report shows.
        pictures: File name to SVG or PNG.
    """

    content: dict[str, Any]
    pictures: dict[str, bytes]


def run_audit(folders: Mapping[str, Path], *, manifest: str, how: str, seed: int) -> Audited:
    """The attacks on the artifacts' models, and the shadows that are asked for.

    Args:
        folders: The artifacts: original, unlearned, retrained, forget, retain, holdout.
        manifest: The data set, as for select.
        how: "attacks", or "shadows:16".
        seed: Of every random choice.
    """
    data = fetch_manifest(manifest)
    forget, retain, holdout = (str(folders[name]) for name in ("forget", "retain", "holdout"))
    gone = tuple(read_rows(forget)[1]["forget_classes"])
    loaded = {name: load_bundle(folders[name]) for name in ("original", "unlearned", "retrained")}
    card = loaded["unlearned"][1]
    samples = open_for(card, data)
    sets: dict[str, Samples] = {
        "forget.train": subset(samples, forget, "forget", data),
        "retain.train": subset(samples, retain, "retain", data),
        "retain.test": subset(samples, holdout, "holdout_retain", data),
    }
    values = card.task == "regression"
    unseen = subset(samples, holdout, "holdout_forget", data)
    if gone or (values and read_rows(forget)[1]["request"] in WHOLE and len(unseen) >= FEWEST):
        sets["forget.test"] = unseen
    models = {name: network.to(best_device()) for name, (network, _) in loaded.items()}
    if loaded["retrained"][1].scaling != card.scaling:  # of a table, by the retain rows alone
        models["retrained"] = Rescaled(models["retrained"], card.scaling, loaded["retrained"][1].scaling).to(
            best_device()
        )
    with TemporaryDirectory() as folder:
        further = {} if values else further_references(str(folders["retrained"]), data, Path(folder))
        references = [load_bundle(Path(one))[0].to(best_device()) for one in further.values()]
    report = attack_all(models, sets, card=card, gone=gone, seed=seed, references=references)
    metrics, errors = dict(report.metrics), dict(report.standard_errors)
    asked = [as_plain(one) for one in report.asked]
    if planned := shadows_in(how):
        shadows = _shadows(models["unlearned"], sets, card, data, folders, planned=planned, seed=seed)
        metrics |= shadows.metrics
        errors |= shadows.errors
        asked.append(shadows.asked)
    pictures = {}
    if report.relearning:
        pictures["relearning_curves.svg"] = relearning_curves(report.relearning, "skill" if values else "accuracy")
    if values:
        weights = {name: dict(network.named_parameters()) for name, (network, _) in loaded.items()}
        before = weights.pop("original")
        apart = {name: layer_distances(before, after) for name, after in weights.items()}
        pictures["layer_distances.svg"] = distances_drawn(apart["unlearned"], apart["retrained"])
    if report.images:
        each = len(report.image_classes) // len(gone)
        stacked = torch.cat([made.unflatten(0, (len(gone), each)) for made in report.images.values()])
        names = [f"{model}: {data.card.classes[c]}" for model in report.images for c in gone]
        mean, std = card.mean or (0.0,), card.std or (1.0,)
        pictures["inverted_classes.png"] = noise_pictures(stacked.numpy(), mean, std, names)
    content = {
        "metrics": metrics,
        "standard_errors": errors,
        "asked": asked,
        "anamnesis_index": "" if report.index is None else str(report.index),
        "left_out": list(report.left_out),
    }
    return Audited(content=content, pictures=pictures)


class Rescaled(nn.Module):
    """A network that scales its inputs otherwise, asked with inputs that are scaled for another one.

    Missing values come filled as the other one's card says.

    Args:
        network: Takes rows of a table, shape (B, D).
        given: How the inputs are scaled.
        wanted: How the network wants them.
    """

    factor: torch.Tensor
    offset: torch.Tensor

    def __init__(self, network: nn.Module, given: Scaling, wanted: Scaling) -> None:
        super().__init__()
        self.network = network
        std, mean, own_std, own_mean = (torch.tensor(one) for one in (given.std, given.mean, wanted.std, wanted.mean))
        self.register_buffer("factor", std / own_std)
        self.register_buffer("offset", (mean - own_mean) / own_std)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The network's outputs."""
        outputs: torch.Tensor = self.network(inputs * self.factor + self.offset)
        return outputs


def attack_all(
    models: Mapping[str, nn.Module],
    sets: Mapping[str, Samples],
    *,
    card: ModelCard,
    gone: tuple[int, ...],
    seed: int,
    references: Sequence[nn.Module] = (),
) -> AuditReport:
    """`unlearning.audit.audit` with errors that name what to do."""
    try:
        return audit(
            models,
            sets,
            classes=card.outputs,
            forget_classes=gone,
            input_shape=card.input_shape,
            config=AuditConfig(),
            seed=seed,
            references=references,
            levels=quantiles_of(card) if card.task == "regression" else None,
            progress=Lines(),
        )
    except ValueError as error:
        raise UsageError(f"the audit cannot be made: {error}; run without one (audit=none)") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shadows:
    metrics: dict[str, float]
    errors: dict[str, float]
    asked: dict[str, Any]


def _shadows(
    unlearned: nn.Module,
    sets: Mapping[str, Samples],
    card: ModelCard,
    data: Manifest,
    folders: Mapping[str, Path],
    *,
    planned: int,
    seed: int,
) -> _Shadows:
    """The likelihood-ratio audit: shadows train on half of the candidates each and unlearn it by the run's method."""
    how = card.method or {}
    if how.get("name") not in METHODS or not card.recipe:
        raise UsageError("shadows are made by the model's recipe and method, its card lacks one: run audit=attacks")
    members, strangers = sets["forget.train"], sets["forget.test" if "forget.test" in sets else "retain.test"]
    half = min(len(members), len(strangers), MOST_CANDIDATES // 2)
    draws = generator(seed, "audit candidates")
    picked = [
        Rows(side, torch.randperm(len(side), generator=draws)[:half].sort().values) for side in (members, strangers)
    ]
    candidates = Joined(*picked)
    task = task_for(
        ("forget", "retain", "calibration"),
        card,
        data,
        *(str(folders[name]) for name in ("forget", "retain", "holdout")),
    )
    kept = store()
    left_out = rows_digest(read_rows(folders["forget"])[0]["forget"].tolist())
    facts = [
        data.digest,
        left_out,
        card.architecture,
        card.arguments,
        dict(card.recipe),
        how,
        planned,
        seed,
        __version__,
    ]
    key = f"audits/{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()}.json"
    record = (
        Audit.from_json(kept.get(key).decode())
        if kept.exists(key)
        else Audit(seed=seed, rows=len(candidates), planned=planned, confidences={})
    )

    def losses_of(shadow: int) -> NDArray[Any]:
        """Of every candidate under a shadow that unlearned its half."""
        print(f"shadow model {shadow + 1} of {planned}", flush=True)
        seen = Rows(candidates, torch.from_numpy(np.flatnonzero(taught(len(candidates), shadow, seed=seed))))
        whole = replace(task, retain=Joined(sets["retain.train"], seen), forget_classes=())
        recipe = dict(card.recipe or {})
        before = unlearn(task.blank(seed), whole, name="retrain", recipe=recipe, seed=seed + 1 + shadow).model
        after = unlearn(
            before,
            replace(task, forget=seen),
            name=how["name"],
            settings=how.get("settings", {}),
            recipe=recipe,
            seed=seed + 1 + shadow,
        ).model
        return cross_entropy(predict(after, candidates), candidates.targets)

    at_once = team().size
    for first in range(0, len(missing := record.missing), at_once):  # each process makes one, then they are kept
        some = missing[first : first + at_once]
        for shadow, losses in zip(some, by_each(some, losses_of), strict=True):
            record = record.with_shadow(shadow, losses)
        if team().rank == 0:
            kept.put(key, record.to_json().encode())
    scores = lira_scores(record, cross_entropy(predict(unlearned, candidates), candidates.targets))
    ours = population_attack(-scores[:half], -scores[half:])
    over = audit_by_shadow(record).tolist()
    return _Shadows(
        metrics={"audit.lira_auc.unlearned": ours.auc, "audit.lira_auc.shadows": fmean(over)},
        errors={
            "audit.lira_auc.unlearned": ours.auc_standard_error,
            "audit.lira_auc.shadows": stdev(over) / len(over) ** 0.5,
        },
        asked={
            "metric": "lira_auc",
            "original": None,
            "unlearned": ours.auc,
            "retrained": None,
            "members": half,
            "non_members": half,
        },
    )
