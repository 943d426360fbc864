"""Manifests, made and kept where pipelines can read them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from unlearning.data.manifest import write_manifest
from unlearning.data.sources import make_manifest
from unlearning.storage import open_store, split


def make(source: str, out: str, *, name: str, test_share: float, seed: int, image_size: int | None) -> dict[str, Any]:
    """Make a source's manifest and write it to a path or into a store.

    Returns:
        out, rows, classes and digest, as JSON types.
    """
    manifest = make_manifest(
        source, name=name, test_share=test_share, seed=seed, image_size=image_size, objects=open_store
    )
    if "://" in out:
        where, key = split(out)
        with tempfile.TemporaryDirectory(prefix="unlearn-") as folder:
            path = Path(folder, "manifest.parquet")
            write_manifest(manifest, path)
            open_store(where).upload(key, path)
    else:
        write_manifest(manifest, Path(out))
    return {"out": out, "rows": len(manifest), "classes": len(manifest.card.classes), "digest": manifest.digest}
