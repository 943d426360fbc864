"""The compiled pipelines: YAML for a cluster, kept beside the code and held against it by a test."""

from __future__ import annotations

from pathlib import Path

from unlearning_pipelines.catalogue import PIPELINES
from unlearning_pipelines.checks import check_compiled
from unlearning_pipelines.parameters import pipeline_named

COMPILED = Path(__file__).parent / "compiled"


def compile_all(folder: Path = COMPILED) -> list[Path]:
    """Write every pipeline's YAML to a folder, and check it; the files written.

    Raises:
        PipelineError: When a cluster would refuse a file, or run it otherwise than meant.
    """
    return [compile_one(name, folder) for name in PIPELINES]


def compile_one(name: str, folder: Path) -> Path:
    """Write one pipeline's YAML to a folder, and check it; the file.

    Raises:
        UsageError: For an unknown name.
        PipelineError: When a cluster would refuse the file, or run it otherwise than meant.
    """
    from kfp import compiler

    pipeline = pipeline_named(name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    check_compiled(path)
    return path
