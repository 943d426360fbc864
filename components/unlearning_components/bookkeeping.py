"""What the first and last stage of a deletion batch do around the ledger: which rows, by which method, and the end."""

from __future__ import annotations

import hashlib
import json
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearning.data.selection import KINDS, SPOKEN, rows_meant
from unlearning.errors import UnlearningError, UsageError
from unlearning.ledger.certificate import Measure
from unlearning.ledger.claims import Claim, batch_members, dissolve
from unlearning.ledger.completion import keep, kept, propose, sweep
from unlearning.ledger.events import digest_of, moment
from unlearning.ledger.exclusion import RANGES
from unlearning.ledger.filing import Hold
from unlearning.ledger.guards import SHARE, Guards, cleared, guards_from, holds, too_few
from unlearning.ledger.inbox import take_in, totals, waiting
from unlearning.ledger.ladder import RESERVE_DAYS, Try, claim_next, retested, set_aside, turn_away
from unlearning.ledger.opening import has_ledger, open_ledger
from unlearning.ledger.overview import waits
from unlearning.ledger.promotion import Version, standing
from unlearning.ledger.retirement import note_copies, run_of
from unlearning.ledger.segments import seal
from unlearning.ledger.serving import base_of, heal, serve
from unlearning.ledger.settlement import is_settled, prepare, settle_batch
from unlearning.ledger.signing import signer_of
from unlearning.ledger.store import Ledger
from unlearning.settings import Settings
from unlearning.tracking import Champion, Registry
from unlearning_components.retesting import retest
from unlearning_components.surroundings import (
    fetch_manifest,
    fetch_model,
    forgotten_before,
    request_for,
    rows_for,
    store,
    tracker,
)

if TYPE_CHECKING:
    from unlearning.data.manifest import Manifest
    from unlearning.data.selection import Selection
    from unlearning.models.bundle import Bundle, ModelCard
    from unlearning.storage import ObjectStore

IDS = "requests/batches"
"""Where the ids of a batch wait for its select stage: in the restricted prefix, until the batch has ended."""
VALUES_LADDER: Sequence[Mapping[str, Any]] = (
    {"method": "blindspot"},
    {"method": "blindspot", "settings": {"blind_epochs": 5}},
    {"method": "negative_gradient_plus"},
)
"""Methods for models that predict values, whatever the kind of request, for the first three rungs."""
LADDERS: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "class": ({"method": "unsir"}, {"method": "amnesiac"}, {"method": "negative_gradient_plus"}),
    "subject": ({"method": "incompetent_teacher"}, {"method": "negative_gradient_plus"}, {"method": "amnesiac"}),
    "sample": ({"method": "incompetent_teacher"}, {"method": "negative_gradient_plus"}, {"method": "amnesiac"}),
}
"""Methods for classifiers by kind of request, for the first three rungs; the last is a full retrain."""
TASKS = ("classification", "regression")
_COLUMNS = {"class": "target", "subject": "subject_id", "sample": "sample_id"}
_FACTS = "facts"


def next_batch(
    name: str,
    manifest: str,
    *,
    owner: str,
    limit: int,
    lease_hours: float,
    seed: int,
    ladder: Mapping[str, Any],
    policies: Mapping[str, Any],
    reference: str = "none",
    cadence_days: float = 0.0,
    into: Path,
) -> dict[str, Any] | None:
    """What the stages need to know of the next batch about a model; None, quickly, when nothing waits.

    A batch that was cut short between intent and end is ended first, from what it left.

    Args:
        name: The registered model.
        manifest: The data set.
        owner: Unlike that of any other run; the same when a run's stage is tried again, which then goes on.
        limit: At most so many requests; 0 for all.
        lease_hours: How long nobody else may take the batch over.
        seed: Of every random choice; part of the batch's content.
        ladder: Kind to a list of {"method", "settings"}, over `LADDERS`.
        policies: Kind to gate bounds that differ from the default.
        reference: Where a retrained model comes from, "none" if there is none; the policies may bound distances.
        cadence_days: Days until the next run, as for `claim_next`.
        into: Folder for the claim, which `end_batch` reads.

    Raises:
        UsageError: For a ladder or policies with a mistake, before anything is claimed.
    """
    check_batches(ladder, policies, reference=reference)
    guards = guards_from(Settings().guards)
    ledger, objects, champion = open_ledger(make=True), store(), Champion(Registry(tracker()), name)
    try:
        if drops := take_in(ledger, objects, actor="intake", hold=holds(ledger, guards)):
            print(totals(drops))
            for one in drops:
                if one.refused:
                    print(f"a file was refused, see {one.report or 'the inbox'}: {one.refused}")
        heal(ledger, name, champion, actor=owner)
        _sweep(ledger, objects, owner)
        while True:
            if not (base := base_of(ledger, name, champion)):
                if not waits(ledger, name):
                    return None
                raise UsageError(
                    f'"{name}" has no champion that we registered: see `unlearn train` and `models import`'
                )
            patience = 2 * cadence_days + RESERVE_DAYS
            if few := too_few(ledger, name, guards, days=patience):
                print(f"{few} requests wait for {guards.batch - few} more, or until one is due in {patience:g} days")
            found = claim_next(
                ledger,
                owner=owner,
                model=name,
                limit=limit,
                base=base,
                settings={"seed": seed, "manifest": manifest},
                lease_seconds=lease_hours * 3600,
                cadence_days=cadence_days,
                reset_every=Settings().reset_every,
                resume=True,
                begin=not few,
            )
            if found is None:
                return None
            if found.claim.state == "promoting":
                _conclude(ledger, objects, champion, found.claim, into / _FACTS)
                continue
            try:
                batch = _selected(ledger, objects, found, manifest, name, ladder, policies, reference, guards)
            except UnlearningError as error:
                with suppress(UnlearningError):  # the first error is the one to tell; the lease ends in any case
                    dissolve(ledger, found.claim, f"its rows could not be selected ({type(error).__name__})")
                raise
            if batch is not None:
                into.mkdir(parents=True, exist_ok=True)
                (into / "claim.json").write_text(json.dumps({"claim": found.claim.as_plain(), **batch}))
                return batch
    finally:
        ledger.close()


def end_batch(
    folder: Path, verdict: Mapping[str, Any], unlearned: Path, *, run: str, desk: Path, artifact: str = ""
) -> str:
    """What became of the batch: closed, or the step that is tried next, held after the last. May be repeated.

    Args:
        folder: What `next_batch` left.
        verdict: The gate's.
        unlearned: The bundle of the model after.
        run: The pipeline's MLflow run.
        desk: An empty folder.
        artifact: Address of the bundle's artifact; with it goes the whole run when one of its models is retired.
    """
    from unlearning.models.bundle import read_bundle
    from unlearning.tracking.promotion import store_bundle

    about = json.loads((folder / "claim.json").read_text())
    claim, objects = Claim(**about["claim"]), store()
    registry = Registry(tracker())
    ledger, champion = open_ledger(), Champion(registry, claim.model)
    try:
        if is_settled(ledger, claim):
            return "closed"
        if artifact:
            note_copies(ledger, claim, read_bundle(unlearned).digest, run_of(artifact))
        if verdict["outcome"] != "pass":
            following = turn_away(ledger, claim, outcome=verdict["outcome"], reasons=verdict["reasons"])
            return following or "held"
        bundle = read_bundle(unlearned)
        again = retest(bundle, about)
        if reasons := retested(ledger, claim, bundle.digest, again):
            return turn_away(ledger, claim, outcome="fail", reasons=reasons) or "held"
        propose(objects, claim, bundle.digest)
        uri = store_bundle(objects, bundle)
        fetch_model(uri, desk / "read-back")
        version = registry.register(
            claim.model,
            bundle_uri=uri,
            digest=bundle.digest,
            weights_sha256=bundle.card.weights_sha256,
            run_id=run,
            description=f"{bundle.card.architecture}, made to forget a batch of {claim.count} requests",
            tags={"unlearning.verdict": "pass", "unlearning.batch": claim.batch},
            folder=bundle.folder,
        )
        left = desk / "left"
        left.mkdir(parents=True)
        facts = _facts(bundle, claim, about, [*verdict["gates"], *again], version=version, run=run)
        (left / "facts.json").write_text(json.dumps(facts))
        keep(objects, claim, _FACTS, left)
        _conclude(ledger, objects, champion, claim, desk / "facts")
        seal(ledger, objects)
        return "closed"
    finally:
        _sweep(ledger, objects, claim.owner)
        ledger.close()


def is_governed(name: str) -> bool:
    """Whether the ledger says which version of a model serves, since a deletion batch was promoted."""
    if not has_ledger():
        return False
    ledger = open_ledger()
    try:
        return bool((known := standing(ledger, name)).expected or known.open_batch)
    finally:
        ledger.close()


def anything_waits(name: str) -> bool:
    """Whether a run about a model has anything to do: requests, or files in the inbox."""
    if waiting(store()):
        return True
    if not has_ledger():
        return False
    ledger = open_ledger(make=True)
    try:
        return waits(ledger, name)
    finally:
        ledger.close()


def check_batches(
    ladder: Mapping[str, Any], policies: Mapping[str, Any], *, reference: str = "none", task: str = ""
) -> None:
    """Nothing, when the ladder's methods serve the kinds that they stand for, and the policies' bounds make sense.

    Args:
        ladder: As for `next_batch`.
        policies: As for `next_batch`.
        reference: As for `next_batch`.
        task: The model's, where it is known; empty: ids may be of a classifier's rows or a regressor's.

    Raises:
        UsageError: Naming the first mistake.
    """
    from unlearning.methods import METHODS, method
    from unlearning.policy.gates import policy_for, policy_with, retest_policy, without_retest

    for what, given in (("ladder", ladder), ("policies", policies)):
        if strangers := sorted(set(given) - set(KINDS)):
            raise UsageError(f"{what}: no kind of request is called {strangers[0][:40]!r} (valid: {', '.join(KINDS)})")
    for kind, steps in ladder.items():
        if not isinstance(steps, list) or not all(isinstance(one, dict) and "method" in one for one in steps):
            raise UsageError(f'ladder: wanted a list such as [{{"method": "amnesiac"}}] for {kind}')
        for one in steps:
            tasks = (task,) if task else METHODS[one["method"]].tasks if one["method"] in METHODS else TASKS
            method(one["method"], request=kind, task=tasks[0])
    for kind, bounds in policies.items():
        known = [policy_for(one, kind, reference=reference != "none") for one in ((task,) if task else TASKS)]
        policy_with(without_retest(bounds), dict(ChainMap(*map(dict, known))))
        retest_policy(bounds)


def _conclude(ledger: Ledger, objects: ObjectStore, champion: Champion, claim: Claim, desk: Path) -> None:
    """From the facts that a batch left to its closed requests."""
    if not kept(objects, claim, _FACTS, desk):
        raise UsageError(f"batch {claim.batch[:12]} left no facts: withdraw its promotion, see the runbook")
    facts = json.loads((desk / "facts.json").read_text())
    measures = [Measure(**one) for one in facts.pop("measures")]
    outcome, obligations = facts.pop("outcome"), facts.pop("obligations")
    serve(ledger, claim, Version(**facts.pop("made")), champion)
    settle_batch(
        ledger,
        objects,
        signer_of(Settings().signing_key_file),
        claim,
        outcome=outcome,
        facts={**facts, "measures": measures},
        obligations=obligations,
    )


def _selected(
    ledger: Ledger,
    objects: ObjectStore,
    found: Try,
    manifest: str,
    name: str,
    ladder: Mapping[str, Any],
    policies: Mapping[str, Any],
    reference: str,
    guards: Guards,
) -> dict[str, Any] | None:
    """The batch's ids where the select stage finds them, and its method; None when there is nothing left to do."""
    import tempfile

    from unlearning.policy.gates import without_retest

    claim = found.claim
    with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
        address = _address(name, claim.base)
        card = fetch_model(address, Path(folder)).card
    data = fetch_manifest(manifest)
    mine = [{kind: rows for kind, rows in given.items() if kind == claim.kind} for given in (ladder, policies)]
    check_batches(*mine, reference=reference, task=card.task)
    wanted = prepare(ledger, claim, to_forget(data, card, claim.kind), evidence=data.digest)
    if not wanted.ids:
        return None
    try:
        chosen = rows_for(card, data, claim.kind, wanted.ids, retain_per_class=0, seed=0)
    except UsageError as error:
        why = str(error) if claim.kind in SPOKEN else "the rows of these requests cannot be served as one batch"
        set_aside(ledger, claim, " ".join(why.split())[:256])
        return None
    if why := too_much(chosen, data, claim.kind, guards.share):
        members = set(batch_members(ledger, claim))
        if unseen := members - cleared(ledger, members, SHARE):
            set_aside(ledger, claim, Hold(why, SHARE, max(1, guards.approvals)), unseen)
            return None
    ids = ""
    if claim.kind not in SPOKEN:
        key = f"{IDS}/{claim.batch}.txt"
        objects.put(key, "".join(f"{one}\n" for one in wanted.ids).encode())
        ids = f"{objects.uri}/{key}"
    rung = how_at(found.step, claim.kind, ladder, card.task)
    return {
        "count": wanted.requests,
        "kind": claim.kind,
        "targets": list(wanted.ids) if claim.kind in SPOKEN else [],
        "ids": ids,
        "model": address,
        "method": rung["method"],
        "settings": dict(rung.get("settings", {})),
        "policy": without_retest(bounds := policies.get(claim.kind, {})),
        "retest": {name: bound for name, bound in bounds.items() if name.startswith("retest.")},
        "manifest": manifest,
        "forgotten": {"classes": list(card.forgotten), "rows": card.forgotten_rows.get(data.digest, "")},
        "work": f"{claim.batch}:{claim.token}",
        "step": found.step,
    }


def too_much(chosen: Selection, data: Manifest, kind: str, share: float) -> str:
    """Why a batch may not forget so many rows without approval; "" when it may.

    Args:
        chosen: Its rows.
        data: The data set.
        kind: Of the requests.
        share: Most of the training rows that the model still knows; above 0, at most 1.
    """
    import numpy as np

    part = len(chosen.forget) / (len(chosen.forget) + len(chosen.retain))
    if part > share:
        return f"the batch would forget {part:.0%} of the rows that the model knows, more than {share:.0%}"
    if kind != "class" and data.card.task == "classification":
        targets = data.targets()
        if len(np.setdiff1d(targets[chosen.forget], targets[chosen.retain])):
            return "the batch would forget every row of a class, which nobody asked for by its name"
    return ""


def how_at(step: str, kind: str, ladder: Mapping[str, Any], task: str) -> Mapping[str, Any]:
    """The method, and its settings, of a step of the ladder.

    Args:
        step: One of `LADDER`.
        kind: Of the requests.
        ladder: As for `next_batch`.
        task: The model's.
    """
    if step == "retrain":
        return {"method": "retrain"}
    steps: Sequence[Mapping[str, Any]] = ladder.get(kind) or (VALUES_LADDER if task == "regression" else LADDERS[kind])
    place = {"first": 0, "stronger": 1, "other_method": 2, "bisect": 0}[step]
    return steps[min(place, len(steps) - 1)]


def to_forget(data: Manifest, card: ModelCard, kind: str) -> Callable[[str], bool]:
    """Whether an id, or a range, means any training row that the model has not forgotten before.

    Args:
        data: The data set.
        card: The model's.
        kind: What the ids are of.
    """
    import numpy as np

    rows = np.setdiff1d(data.rows("train"), forgotten_before(card, data))
    if kind in RANGES:

        def means_rows(text: str) -> bool:
            try:
                return bool(np.isin(rows, rows_meant(data, request_for(kind, [text]))).any())
            except UsageError:
                return True  # such as a period at the edge of the data: a person decides, nothing is closed for it

        return means_rows
    table = data.table.take(rows)
    gone = set(card.forgotten)
    pairs = zip(table[_COLUMNS[kind]].to_pylist(), table["target"].to_pylist(), strict=True)
    return {str(value) for value, target in pairs if value is not None and target not in gone}.__contains__


def _address(name: str, digest: str) -> str:
    version = Registry(tracker()).with_digest(name, digest)
    if version is None:
        raise UsageError(
            f'no version of "{name}" has the digest {digest[:12] or "of a champion"}: register a model first'
        )
    return f"models:/{name}/{version.version}"


def _facts(
    bundle: Bundle,
    claim: Claim,
    about: Mapping[str, Any],
    gates: Sequence[Mapping[str, Any]],
    *,
    version: int,
    run: str,
) -> dict[str, Any]:
    from importlib.metadata import version as version_of

    card, method = bundle.card, bundle.card.method or {}
    names = ("metric", "value", "standard_error", "low", "high", "outcome")
    measures = [asdict(Measure(**{name: gate[name] for name in names})) for gate in gates if gate["outcome"] == "pass"]
    unclear = [f"too few rows to tell: {gate['reason']}" for gate in gates if gate["outcome"] != "pass"]
    files = {path.name: _sha256(path) for path in sorted(bundle.folder.iterdir()) if path.is_file()}
    return {
        "made": {"digest": bundle.digest, "parent": card.parent, "number": str(version)},
        "outcome": "erased_exact" if method.get("name") == "retrain" else "erased_approx_audited",
        "before": {"digest": claim.base},
        "after": {"digest": bundle.digest, "version": str(version)},
        "files": files,
        "data": {"manifest": card.manifest_sha256},
        "method": {**method, "step": about["step"]},
        "measures": measures,
        "policy": digest_of([[one["metric"], one["low"], one["high"]] for one in measures]),
        "limits": unclear,
        "provenance": {"run": run, "torch": version_of("torch")},
        "obligations": {
            "oldModel": claim.base,
            "oldModelUntil": moment(datetime.now(UTC) + timedelta(days=Settings().retire_days)),
            "sourceData": "to be deleted by the controller",
        },
    }


def _sweep(ledger: Ledger, objects: ObjectStore, actor: str) -> None:
    """Removes what ended batches left, and the ids of those that are no longer at work."""
    import sqlalchemy as sa

    from unlearning.ledger import tables

    sweep(ledger, objects, actor=actor)
    with ledger.reading() as connection:
        query = sa.select(tables.batches.c.batch).where(tables.ACTIVE)
        working = set(connection.execute(query).scalars())
    for key in list(objects.keys(IDS)):
        if key.rsplit("/", 1)[1].removesuffix(".txt") not in working:
            objects.delete(key)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
