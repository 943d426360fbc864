"""The list of pipelines: what is compiled, run, uploaded and tested."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlearning_pipelines.delete_class import delete_class

PIPELINES: Mapping[str, Any] = {"delete_class": delete_class}
"""Name, as module, command line and golden file have it, to KFP pipeline."""
