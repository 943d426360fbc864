"""The list of pipelines: what is compiled, run, uploaded and tested."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlearning_pipelines.compare_methods import compare_methods
from unlearning_pipelines.delete_class import delete_class
from unlearning_pipelines.delete_class_zero_shot import delete_class_zero_shot
from unlearning_pipelines.delete_regression import delete_regression
from unlearning_pipelines.delete_samples import delete_samples
from unlearning_pipelines.deletion_batch import deletion_batch

PIPELINES: Mapping[str, Any] = {
    "delete_class": delete_class,
    "delete_class_zero_shot": delete_class_zero_shot,
    "delete_samples": delete_samples,
    "delete_regression": delete_regression,
    "compare_methods": compare_methods,
    "deletion_batch": deletion_batch,
}
"""Name, as module, command line and golden file have it, to KFP pipeline."""

READS: Mapping[str, tuple[str, ...]] = {"delete_class_zero_shot": ()}
"""The kinds of rows that a pipeline gives to a method, where that is not all of them."""
