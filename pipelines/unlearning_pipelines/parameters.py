"""Pipeline parameters from the command line: `--set name=value`, checked against the pipeline itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from unlearning.config import nearest
from unlearning.errors import UsageError
from unlearning_pipelines.catalogue import PIPELINES

_PYTHON: dict[str, tuple[type, ...]] = {
    "Integer": (int,),
    "Float": (int, float),
    "Boolean": (bool,),
    "Dict": (dict,),
}


def pipeline_named(name: str) -> Any:
    """The pipeline of this name.

    Raises:
        UsageError: For an unknown name.
    """
    if name not in PIPELINES:
        raise UsageError(f'unknown pipeline "{name}"{nearest(name, PIPELINES)} (valid: {", ".join(PIPELINES)})')
    return PIPELINES[name]


def defaults(name: str) -> dict[str, Any]:
    """Every parameter of a pipeline with its default."""
    return {key: spec.default for key, spec in _inputs(name).items()}


def parse(name: str, assignments: Iterable[str]) -> dict[str, Any]:
    """The parameters that were set, in the types that the pipeline declares.

    Args:
        name: Of the pipeline.
        assignments: "seed=1", "forget=[1,4]" or "forget=1,4", "settings.noise=none", 'policy={"...": {...}}'.

    Raises:
        UsageError: For an unknown parameter, or a value of another type.
    """
    inputs = _inputs(name)
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        key, _, entry = key.strip().partition(".")
        if not separator or not key:
            raise UsageError(f'wanted --set name=value, got "{assignment}"')
        if key not in inputs:
            valid = ", ".join(inputs)
            raise UsageError(f'{name} has no parameter "{key}"{nearest(key, inputs)} (valid: {valid})')
        kind = inputs[key].type
        if entry:
            if kind != "Dict":
                raise UsageError(f'parameter "{key}" of {name} has no entries: write --set {key}=value')
            values.setdefault(key, {})[entry] = _free(text)
        else:
            values[key] = _typed(key, kind, text)
    return values


def _inputs(name: str) -> Mapping[str, Any]:
    inputs: Mapping[str, Any] = pipeline_named(name).component_spec.inputs
    return inputs


def _free(text: str) -> Any:
    """JSON when it is JSON, else the text itself: 0.1 is a number, none is a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _typed(key: str, kind: str, text: str) -> Any:
    if kind == "String":
        return text
    value = _free(text)
    if kind == "List":
        if not isinstance(value, list):
            value = [part.strip() for part in text.split(",") if part.strip()]
        return [entry if isinstance(entry, str) else json.dumps(entry) for entry in value]
    wanted: dict[str, tuple[type, ...]] = {
        "Integer": (int,),
        "Float": (int, float),
        "Boolean": (bool,),
        "Dict": (dict,),
    }
    accepted = wanted.get(kind, (object,))
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        raise UsageError(f'parameter "{key}" wants a value of type {kind}, got "{text}"')
    return value


def pairs(option: str, assignments: Iterable[str]) -> dict[str, Any]:
    """Free name=value options as a mapping; values are JSON where they can be.

    Raises:
        UsageError: For an entry without "=".
    """
    values = {}
    for assignment in assignments:
        key, separator, text = assignment.partition("=")
        if not separator or not key.strip():
            raise UsageError(f'wanted {option} name=value, got "{assignment}"')
        values[key.strip()] = _free(text)
    return values


def numbers(option: str, text: str) -> tuple[float, ...]:
    """Numbers with commas between them.

    Raises:
        UsageError: When one is none.
    """
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(f'wanted {option} 0.5,0.5,0.5, got "{text}"') from error
