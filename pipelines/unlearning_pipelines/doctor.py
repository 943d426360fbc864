"""What is configured, what works, and what to do about the rest."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

from unlearning.errors import UnlearningError
from unlearning.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing looked at."""

    what: str
    ok: bool
    detail: str

    @property
    def mark(self) -> str:
        """A word, since not every terminal shows signs and colours."""
        return "ok  " if self.ok else "FAIL"


def examine() -> list[Finding]:
    """Look at the settings, the embedded folder, the object store, MLflow and the image; nothing is left behind."""
    from unlearning.ledger.guards import guards_from
    from unlearning_components._image import IMAGE
    from unlearning_components.surroundings import store, tracker
    from unlearning_pipelines.preflight import check_home

    settings = Settings()
    return [
        _works("home", check_home, f"{settings.home} (UNLEARN_HOME)"),
        _works("object store", lambda: store().check(), f"{settings.store_uri} (UNLEARN_STORE)"),
        _works("MLflow", lambda: tracker().check(), f"{masked(settings.tracking_uri)} (MLFLOW_TRACKING_URI)"),
        *ledger_findings(),
        _works("guards", lambda: guards_from(settings.guards), f"{settings.guards or 'as given'} (UNLEARN_GUARDS)"),
        Finding(what="image", ok=True, detail=f"{IMAGE} (UNLEARN_IMAGE)"),
        Finding(
            what="versions",
            ok=True,
            detail=", ".join(
                f"{name} {version(name)}" for name in ("kfp-unlearning", "kfp", "torch", "mlflow", "boto3")
            ),
        ),
        *cluster_findings(),
    ]


def ledger_findings() -> list[Finding]:
    """What the ledger's database and the bucket can promise, tried with two writers; without a ledger nothing is."""
    from unlearning.ledger.opening import has_ledger, open_ledger
    from unlearning.ledger.probe import probe
    from unlearning.storage import open_store

    settings = Settings()
    where = f"{masked(settings.ledger_uri)} (UNLEARN_LEDGER_URL)"
    if not has_ledger():
        return [Finding(what="ledger", ok=True, detail=f"none yet at {where}")]
    try:
        ledger = open_ledger()
        tried = probe(ledger, open_store(settings.store_uri))
        ledger.close()
    except UnlearningError as error:
        return [Finding(what="ledger", ok=False, detail=f"{error}")]
    return [
        Finding(what="ledger", ok=True, detail=where),
        *(Finding(what=f"ledger: {one.what}", ok=one.holds, detail=one.detail) for one in tried),
    ]


def masked(uri: str) -> str:
    """An address without its user and password."""
    scheme, separator, rest = uri.partition("://")
    _, at, host = rest.rpartition("@")
    return f"{scheme}{separator}***@{host}" if at else uri


def _works(what: str, probe: Callable[[], object], detail: str) -> Finding:
    try:
        probe()
    except UnlearningError as error:
        return Finding(what=what, ok=False, detail=f"{error}")
    return Finding(what=what, ok=True, detail=detail)


def cluster_findings() -> list[Finding]:
    """Whether Kubeflow Pipelines answers and the settings of its pods can be read, where the environment names them."""
    from unlearning_pipelines.cluster import Cluster
    from unlearning_pipelines.connection import connection
    from unlearning_pipelines.placement import VARIABLE, in_force

    def asked() -> None:
        Cluster(connection()).experiment(make=False)

    found = []
    if host := os.environ.get("UNLEARN_KFP_HOST") or os.environ.get("KF_PIPELINES_ENDPOINT"):
        found.append(_works("Kubeflow Pipelines", asked, f"{masked(host)} (UNLEARN_KFP_HOST)"))
    if path := os.environ.get(VARIABLE):
        found.append(_works("cluster settings", in_force, f"{path} ({VARIABLE})"))
    return found
