"""What a compiled pipeline is called: the same content has the same name, wherever and whenever it was compiled."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearning import __version__

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Content:
    """What is uploaded.

    Attributes:
        pipeline: The pipeline's name in Kubeflow, such as delete-class.
        description: Of the pipeline.
        version: The package's version and the beginning of the digest.
        digest: sha256 of the YAML's content and so of the image that it names; the compiler's own version is left out.
        images: All that it runs.
    """

    pipeline: str
    description: str
    version: str
    digest: str
    images: tuple[str, ...]

    @property
    def note(self) -> str:
        """Shown beside the version."""
        return f"kfp-unlearning {__version__}, image {', '.join(self.images)}, sha256 {self.digest}"


def content_of(package: Path) -> Content:
    """The content of YAML that `unlearn compile` wrote."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the fast one, where it was built
    documents: list[dict[str, Any]] = list(yaml.load_all(package.read_text(), Loader=loader))
    for document in documents:
        document.pop("sdkVersion", None)
    digest = digest_of(documents)
    executors = documents[0]["deploymentSpec"]["executors"].values()
    return Content(
        pipeline=documents[0]["pipelineInfo"]["name"],
        description=documents[0]["pipelineInfo"].get("description", ""),
        version=f"{__version__}-{digest[:_SHOWN]}".replace("+", "-"),
        digest=digest,
        images=tuple(sorted({executor["container"]["image"] for executor in executors})),
    )


def digest_of(content: Any) -> str:
    """The sha256 of JSON content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
