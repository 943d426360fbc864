"""What the next batch would do, found out without a claim: its rows, gates, guards, time and traces. Writes nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from unlearning.errors import UsageError
from unlearning.ledger.certificate import PREFIX as CERTIFICATES
from unlearning.ledger.claims import plan
from unlearning.ledger.events import moment
from unlearning.ledger.exclusion import PREFIX as EXCLUSIONS
from unlearning.ledger.filing import read_ids
from unlearning.ledger.guards import SHARE, cleared, guards_from, too_few
from unlearning.ledger.ladder import LADDER, RESERVE_DAYS, next_rung
from unlearning.ledger.opening import open_ledger
from unlearning.ledger.overview import status
from unlearning.ledger.serving import base_of
from unlearning.settings import Settings
from unlearning.tracking import Champion, Registry
from unlearning_components.bookkeeping import check_batches, how_at, to_forget, too_much
from unlearning_components.surroundings import fetch_manifest, fetch_model, rows_for, store, tracker

MOST_CLASSES = 20
"""Classes that a preview names, those that lose most first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """The batch that a run would make now.

    Attributes:
        requests: How many it would take.
        without_rows: How many of them would be closed, for no row of the data set belongs to them.
        twins: How many ask for the very same as another one.
        kind: What they are about.
        rows: Training rows that would be forgotten.
        share: Of the training rows that the model knows.
        classes: Class to the share of its training rows, those that lose most first; for classifiers.
        step: Of the ladder.
        method: Of that step.
        settings: Of the method.
        gates: What the result would be held against, by metric: low and high.
        hours: How long it may take: within so many did 95 of 100 of the last month's tries end; 0 before the first.
        ends_by: When a run that began now would have ended, by that.
        first_due: The earliest due date.
        in_time: Whether it ends before that.
        hits: What would hold it or make it wait, a sentence each.
        writes: The keys and names that it would make; the model's own digest is known only when it is made.
    """

    requests: int
    without_rows: int
    twins: int
    kind: str
    rows: int
    share: float
    classes: dict[str, float] = field(default_factory=dict)
    step: str
    method: str
    settings: dict[str, Any]
    gates: dict[str, list[float | None]]
    hours: float
    ends_by: str
    first_due: str
    in_time: bool
    hits: list[str]
    writes: list[str]

    def as_plain(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def preview(
    name: str,
    manifest: str,
    *,
    limit: int = 0,
    ladder: Mapping[str, Any] | None = None,
    policies: Mapping[str, Any] | None = None,
    reference: str = "none",
    cadence_days: float = 7.0,
) -> Preview | None:
    """What a run of `deletion_batch` would do now; None when nothing waits that is not at work already.

    Args:
        name: The registered model.
        manifest: The data set.
        limit: As for the pipeline.
        ladder: As for the pipeline.
        policies: As for the pipeline.
        reference: As for the pipeline.
        cadence_days: As for the pipeline.

    Raises:
        UsageError: When the model has no champion, or the parameters have a mistake.
    """
    from unlearning.policy.gates import policy_for, policy_with, without_retest

    steps, bounds, guards = ladder or {}, policies or {}, guards_from(Settings().guards)
    check_batches(steps, bounds, reference=reference)
    ledger, objects, registry = open_ledger(), store(), Registry(tracker())
    try:
        base = base_of(ledger, name, Champion(registry, name))
        planned = plan(ledger, model=name, limit=limit, base=base)
        if planned is None:
            return None
        if not base or (version := registry.with_digest(name, base)) is None:
            raise UsageError(f'"{name}" has no champion that we registered: see `unlearn train` and `models import`')
        with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
            card = fetch_model(f"models:/{name}/{version.version}", Path(folder)).card
        data, kind = fetch_manifest(manifest), str(planned.content["kind"])
        check_batches(steps, bounds, reference=reference, task=card.task)
        rung = next_rung(ledger, planned, cadence_days=cadence_days, reset_every=Settings().reset_every)
        if LADDER[rung] == "bisect":
            planned = plan(ledger, model=name, limit=(len(planned.refs) + 1) // 2, base=base) or planned
        is_known, ids, empty = to_forget(data, card, kind), set[str](), 0
        for kept in read_ids(ledger, planned.refs):
            known = {one for one in kept.ids if is_known(one)}
            empty += not known
            ids |= known
        hits = _waiting(name, guards.batch, too_few(ledger, name, guards, days=2 * cadence_days + RESERVE_DAYS))
        rows, share, classes = 0, 0.0, dict[str, float]()
        if ids:
            try:
                chosen = rows_for(card, data, kind, sorted(ids), retain_per_class=0, seed=0)
            except UsageError as error:
                hits.append(f"held for a person: {error}")
            else:
                rows = len(chosen.forget)
                share, classes = _shares(chosen, data)
                why = too_much(chosen, data, kind, guards.share)
                if why and set(planned.refs) - cleared(ledger, planned.refs, SHARE):
                    hits.append(f"held until it is approved: {why}")
        how = how_at(LADDER[rung], kind, steps, card.task)
        policy = policy_with(
            without_retest(bounds.get(kind, {})), policy_for(card.task, kind, reference=reference != "none")
        )
        hours = status(ledger).batch_hours_p95
        ends = moment(ledger.clock() + timedelta(hours=hours))
        if ends > planned.first_due:
            hits.append(f"too late: it ends by {ends[:16]}, the first request is due {planned.first_due[:16]}")
    finally:
        ledger.close()
    where = objects.uri
    return Preview(
        requests=len(planned.refs),
        without_rows=empty,
        twins=planned.twins,
        kind=kind,
        rows=rows,
        share=share,
        classes=classes,
        step=LADDER[rung],
        method=str(how["method"]),
        settings=dict(how.get("settings", {})),
        gates={metric: [bound.low, bound.high] for metric, bound in policy.items()},
        hours=hours,
        ends_by=ends,
        first_due=planned.first_due,
        in_time=ends <= planned.first_due,
        hits=hits,
        writes=[
            f"{where}/models/<digest of the new model>",
            f"models:/{name}, a new version, and its alias champion",
            f"{where}/{CERTIFICATES}/<batch>.dsse.json",
            f"{where}/{EXCLUSIONS}/<batch>.txt",
        ],
    )


def _waiting(name: str, least: int, few: int) -> list[str]:
    return [f"it would wait: {few} requests of {least} about {name} are there, and none is due soon"] if few else []


def _shares(chosen: Any, data: Any) -> tuple[float, dict[str, float]]:
    """The share of what the model knows, and of each class."""
    import numpy as np

    share = round(len(chosen.forget) / (len(chosen.forget) + len(chosen.retain)), 6)
    if data.card.task == "regression":
        return share, {}
    targets, count = data.targets(), len(data.card.classes)
    gone = np.bincount(targets[chosen.forget], minlength=count)
    every = gone + np.bincount(targets[chosen.retain], minlength=count)
    most = [int(place) for place in np.argsort(-gone / np.maximum(every, 1), kind="stable") if gone[place]]
    return share, {data.card.classes[place]: round(gone[place] / every[place], 6) for place in most[:MOST_CLASSES]}
