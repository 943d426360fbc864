"""The compiled pipelines: YAML for a cluster, kept beside the code and held against it by a test."""

from __future__ import annotations

from pathlib import Path

from unlearning_pipelines.catalogue import PIPELINES
from unlearning_pipelines.checks import check_compiled

COMPILED = Path(__file__).parent / "compiled"


def compile_all(folder: Path = COMPILED) -> list[Path]:
    """Write every pipeline's YAML to a folder, and check it; the files written.

    Raises:
        PipelineError: When a cluster would refuse a file, or run it otherwise than meant.
    """
    from kfp import compiler

    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, pipeline in PIPELINES.items():
        path = folder / f"{name}.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        check_compiled(path)
        written.append(path)
    return written
