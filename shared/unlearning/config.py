"""Checked configuration records from plain mappings."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

from unlearning.errors import UsageError

T = TypeVar("T")


def nearest(word: str, choices: Iterable[str]) -> str:
    """The end of an error sentence: the choice closest to `word`, or nothing.

    Example:
        >>> nearest("sead", ["seed", "model"])
        '; did you mean "seed"?'
    """
    found = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f'; did you mean "{found[0]}"?' if found else ""


@cache
def _adapter(cls: type[Any]) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def build(cls: type[T], values: Mapping[str, Any], *, what: str) -> T:
    """A frozen dataclass from a plain mapping, with every mistake named at once.

    Args:
        cls: The dataclass; its own `__post_init__` may raise `ValueError`.
        values: Field name to value, as JSON gives them (whole floats pass for integers).
        what: What the mapping is, for the message: "unsir settings".

    Raises:
        UsageError: For unknown keys (with the nearest valid one) and for values that do not fit.
    """
    from pydantic import ValidationError

    if not is_dataclass(cls):
        raise TypeError(f"{cls!r} is not a dataclass")
    known = [field.name for field in fields(cls)]
    wrong = [f'unknown setting "{key}"{nearest(key, known)}' for key in values if key not in known]
    try:
        result: T = _adapter(cls).validate_python({key: value for key, value in values.items() if key in known})
    except ValidationError as error:
        for mistake in error.errors(include_url=False):
            where = ".".join(str(part) for part in mistake["loc"])
            wrong.append(f"{where}: {mistake['msg']}" if where else str(mistake["msg"]))
    else:
        if not wrong:
            return result
    raise UsageError(f"{what}: {'; '.join(wrong)} (valid: {', '.join(known)})")


def as_plain(record: Any) -> dict[str, Any]:
    """A dataclass as a mapping of JSON types; `build` turns it back."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(record)))
    return plain
