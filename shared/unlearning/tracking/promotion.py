"""A bundle into the object store and the registry, and the alias that serving reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unlearning.storage import ObjectStore, upload_folder
from unlearning.tracking.registry import Registry
from unlearning.tracking.runs import Tracker

if TYPE_CHECKING:
    from unlearning.models.bundle import Bundle

CANDIDATE = "candidate"
CHAMPION = "champion"


def store_bundle(store: ObjectStore, bundle: Bundle) -> str:
    """The bundle's address in the store: `models/<digest>`, so that the same model is stored once."""
    return upload_folder(store, f"models/{bundle.digest}", bundle.folder)


def promote_bundle(
    tracker: Tracker,
    store: ObjectStore,
    bundle: Bundle,
    *,
    name: str,
    run_id: str,
    outcome: str,
    tags: Mapping[str, str] | None = None,
    may_serve: bool = True,
) -> dict[str, Any]:
    """Store and register the bundle as candidate; on a pass, make it champion.

    Every step may be repeated: a run that was killed in the middle is run again, and ends with one stored bundle, one
    version, and the alias where it belongs. The alias moves last.

    Args:
        tracker: Whose registry.
        store: Where bundles are kept.
        bundle: Checked, on disk.
        name: Of the registered model.
        run_id: The run that made it.
        outcome: The gate's; "pass" alone moves the champion.
        tags: Added to the version.
        may_serve: False leaves the champion alone whatever the outcome.

    Returns:
        model_uri, name, version, digest, verdict and champion ("yes" or "no"), as JSON types.
    """
    registry = Registry(tracker)
    uri = store_bundle(store, bundle)
    gone = ", ".join(bundle.card.forgotten)
    version = registry.register(
        name,
        bundle_uri=uri,
        digest=bundle.digest,
        weights_sha256=bundle.card.weights_sha256,
        run_id=run_id,
        description=f"{bundle.card.architecture}" + (f", made to forget {gone}" if gone else ""),
        tags={**(tags or {}), "unlearning.verdict": outcome, "unlearning.forgotten": gone},
        folder=bundle.folder,
    )
    registry.set_alias(name, CANDIDATE, version)
    champion = outcome == "pass" and may_serve
    if champion:
        registry.set_alias(name, CHAMPION, version)
    return {
        "model_uri": uri,
        "name": name,
        "version": version,
        "digest": bundle.digest,
        "verdict": outcome,
        "champion": "yes" if champion else "no",
    }
