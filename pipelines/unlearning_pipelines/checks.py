"""What a cluster refuses, or would run otherwise than meant, found in compiled YAML without a cluster."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unlearning.errors import PipelineError

SCHEMA = "2.1.0"
MOST_DEFAULT_BYTES = 10_000
"""Of all parameters together; the API server refuses more."""

_SECRET = re.compile(r"SECRET|PASSWORD|PASSWD|TOKEN|CREDENTIAL|API_?KEY|ACCESS_KEY")
_SHORTEST_SECRET = 8


def check_compiled(path: Path) -> None:
    """Nothing, when a cluster accepts the file and runs it as it is meant.

    That is: the strict grammar of KFP's API server; every reference resolves; the image is the one in force and nothing
    is installed into it; no task is cached; every parameter has a default and a description, all small enough; and
    nothing of this machine's secrets or environment is in it.

    Args:
        path: YAML that `unlearn compile` wrote.

    Raises:
        PipelineError: Naming the file and the first thing that is wrong.
    """
    import yaml

    try:
        text = path.read_text()
        documents = list(yaml.safe_load_all(text))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise _wrong(path, f"it cannot be read as YAML: {error}") from error
    if not 1 <= len(documents) <= 2 or not all(isinstance(document, dict) for document in documents):
        raise _wrong(path, "it is not one pipeline, with or without one document for the platform")
    for mistake in _mistakes(text, documents):
        raise _wrong(path, mistake)


def _wrong(path: Path, reason: str) -> PipelineError:
    return PipelineError(f"{path}: {' '.join(reason.split())}: mend the pipeline and compile it again")


def _mistakes(text: str, documents: list[dict[str, Any]]) -> Iterator[str]:
    from google.protobuf import json_format
    from kfp.kubernetes import kubernetes_executor_config_pb2 as kubernetes
    from kfp.pipeline_spec import pipeline_spec_pb2 as grammar

    try:
        spec = json_format.ParseDict(documents[0], grammar.PipelineSpec(), ignore_unknown_fields=False)
        deployed = json_format.MessageToDict(spec.deployment_spec)
        deployment = json_format.ParseDict(deployed, grammar.PipelineDeploymentConfig(), ignore_unknown_fields=False)
        for document in documents[1:]:
            json_format.ParseDict(document, grammar.PlatformSpec(), ignore_unknown_fields=False)
            for platform in document.get("platforms", {}).values():
                for executor in platform.get("deploymentSpec", {}).get("executors", {}).values():
                    json_format.ParseDict(executor, kubernetes.KubernetesExecutorConfig(), ignore_unknown_fields=False)
    except json_format.ParseError as error:
        yield f"KFP's API server would refuse it: {error}"
        return
    if spec.schema_version != SCHEMA:
        yield f'its schema version is "{spec.schema_version}", wanted {SCHEMA}'
    yield from _loose_ends(spec, deployment)
    yield from _containers(deployment)
    yield from _parameters(spec)
    yield from (f"it holds the value of {name}" for name in secrets_in(text))


def _loose_ends(spec: Any, deployment: Any) -> Iterator[str]:
    """References that lead nowhere, and cached tasks."""
    for name, component in spec.components.items():
        if not component.HasField("dag") and component.executor_label not in deployment.executors:
            yield f'component "{name}" names the executor "{component.executor_label}", which is not there'
    for component in (spec.root, *spec.components.values()):
        for name, task in component.dag.tasks.items():
            if task.component_ref.name not in spec.components:
                yield f'task "{name}" names the component "{task.component_ref.name}", which is not there'
            if task.caching_options.enable_cache:
                yield f'task "{name}" may be answered from the cache: every stage reads or changes what others share'
    if not spec.root.dag.tasks:
        yield "it has no tasks"


def _containers(deployment: Any) -> Iterator[str]:
    from unlearning_components._image import IMAGE

    for name, executor in deployment.executors.items():
        container = executor.container
        if container.image != IMAGE:
            yield f'executor "{name}" runs the image "{container.image}", wanted {IMAGE} (UNLEARN_IMAGE)'
        if any("pip install" in part for part in (*container.command, *container.args)):
            yield f'executor "{name}" would install packages when it starts'
        if container.env:
            yield f'executor "{name}" carries values of environment variables: name a Kubernetes Secret instead'


def _parameters(spec: Any) -> Iterator[str]:
    from google.protobuf import json_format

    defaults = {}
    for name, parameter in spec.root.input_definitions.parameters.items():
        if not parameter.HasField("default_value"):
            yield f'parameter "{name}" has no default'
        if not parameter.description:
            yield f'parameter "{name}" has no description: add it to the docstring'
        defaults[name] = json_format.MessageToDict(parameter.default_value)
    size = len(json.dumps(defaults).encode())
    if size >= MOST_DEFAULT_BYTES:
        yield f"the defaults of its parameters take {size} bytes, a cluster accepts fewer than {MOST_DEFAULT_BYTES}"


def secrets_in(text: str) -> Iterator[str]:
    """Names of this environment's secrets whose values a text holds."""
    for name, value in os.environ.items():
        if _SECRET.search(name.upper()) and len(value) >= _SHORTEST_SECRET and value in text:
            yield name
