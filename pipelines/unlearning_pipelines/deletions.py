"""What a run of `deletion_batch` made of the requests: what each became, and the batch's papers side by side."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unlearning.settings import Settings

MOST_SHOWN = 1000
"""Requests that a result names; the ledger has all."""
FOLDER = "batches"
OUTCOMES = {
    "erased_exact": "forgotten: the model was retrained without it",
    "erased_certified": "forgotten, with a certified bound",
    "erased_approx_audited": "forgotten, as far as the attacks that were run can tell",
    "no_data_found": "no row of the data set that the model still knows belongs to it",
}
STEPS = {
    "stronger": "stronger settings",
    "other_method": "another method",
    "bisect": "half of the batch",
    "retrain": "a full retrain",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletions:
    """What a run made of the requests about a model.

    Attributes:
        requests: Those to which something happened: ref, state, outcome, reason, due_at and batch of each; no ids.
        certificates: Of the batches that were settled, as files on this machine.
        public_key: Whoever signed them, likewise; empty without a certificate.
        report: The gate's page, likewise; empty where it never came so far.
        following: What the next run tries, where a gate said no; else empty.
        at_work: Batches of the model that are not ended: batch, owner and lease_until of each.
    """

    requests: list[dict[str, str]] = field(default_factory=list)
    certificates: list[str] = field(default_factory=list)
    public_key: str = ""
    report: str = ""
    following: str = ""
    at_work: list[dict[str, str]] = field(default_factory=list)

    def as_plain(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self)


def last_event() -> int:
    """Number of the ledger's last event; 0 where there is none yet."""
    from unlearning.ledger.opening import has_ledger, open_ledger

    if not has_ledger():
        return 0
    ledger = open_ledger(make=True)
    try:
        return ledger.head()[0]
    finally:
        ledger.close()


def deletions_since(seq: int, model: str, run: str) -> Deletions:
    """What became of the requests about a model since an event; certificates and the report are fetched.

    Args:
        seq: From `last_event`, before the run.
        model: Registered model.
        run: The pipeline's MLflow run; empty when nothing waited.
    """
    from unlearning.ledger.opening import open_ledger
    from unlearning.ledger.overview import changed_since, status

    ledger = open_ledger(make=True)
    try:
        names = ("ref", "state", "outcome", "reason", "due_at", "batch")
        rows = [{name: str(row[name]) for name in names} for row in changed_since(ledger, seq, model, limit=MOST_SHOWN)]
        settled = [one.batch for one in ledger.events_of(model, "settled") if one.seq > seq]
        gated = [one.content["next"] for one in ledger.events_of(model, "gated") if one.seq > seq]
        active = [one for one in status(ledger).active if one["model"] == model]
    finally:
        ledger.close()
    return Deletions(
        requests=rows,
        following=str(gated[-1]) if gated else "",
        at_work=[{name: one[name] for name in ("batch", "owner", "lease_until")} for one in active],
        **_papers(settled, run),
    )


def words(request: Mapping[str, str], following: str = "") -> str:
    """What became of a request, for people."""
    state, outcome, reason = request["state"], request["outcome"], request["reason"]
    if state == "pending":
        return f"waits for the next run, which tries {STEPS[following]}" if following in STEPS else "waits"
    if state == "held":
        return f"held for a person: {reason}"
    said = OUTCOMES.get(outcome, reason)
    return f"{state}: {said}" if said else state


def _papers(settled: list[str], run: str) -> dict[str, Any]:
    """The certificates, the public key and the report, beside each other."""
    from unlearning_components.surroundings import tracker
    from unlearning_pipelines.certificate_cli import certificate_in

    if not settled and not run:
        return {}
    folder = Settings().home.absolute() / FOLDER / (settled[-1][:12] if settled else f"run-{run[:12]}")
    papers: dict[str, Any] = {"certificates": [str(certificate_in(folder, batch)) for batch in settled]}
    key = Settings().signing_key_file
    public = key.with_name(f"{key.name}.pub")
    if settled and public.is_file():
        papers["public_key"] = str(shutil.copy(public, folder))
    if run:
        papers["report"] = str(_report(folder, run, tracker()))
    return papers


def _report(folder: Path, run: str, runs: Any) -> Path | str:
    if "unlearning.verdict" not in runs.tags_of(run):
        return ""
    path: Path = runs.fetch(run, "report.html", folder)
    return path
