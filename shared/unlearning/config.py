"""Checked configuration records from plain mappings."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from unlearning.errors import UsageError

T = TypeVar("T")
Origin = Literal["paper", "code", "rule", "ours"]


@dataclass(frozen=True, slots=True)
class About:
    """What a setting is, beside its type: `steps: Annotated[int, About("of the repair", "paper")] = 20`.

    Attributes:
        text: What it means, with its unit; no sentence.
        origin: Of the default: "paper", the authors' "code", a "rule" that `configure` applies, or "ours".
    """

    text: str
    origin: Origin = "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One field of a configuration, for people who choose its value.

    Attributes:
        name: Of the field.
        kind: Its type, or its choices, as a person would write them: "int", "none | relu".
        default: As JSON has it; None also where there is none.
        text: What it means.
        origin: Of the default; see `About`.
    """

    name: str
    kind: str
    default: Any
    text: str
    origin: Origin


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


def settings_of(cls: type[Any]) -> list[Setting]:
    """The fields of a configuration whose types are `Annotated` with `About`, in their order.

    Raises:
        TypeError: For a field without.
    """
    hints, settings = get_type_hints(cls, include_extras=True), []
    for field in fields(cls):
        kind, *notes = get_args(hints[field.name]) or (hints[field.name],)
        about = next((note for note in notes if isinstance(note, About)), None)
        if about is None:
            raise TypeError(f"{cls.__name__}.{field.name} has no About")
        settings.append(
            Setting(
                name=field.name,
                kind=" | ".join(map(str, get_args(kind))) if get_origin(kind) is Literal else kind.__name__,
                default=None if field.default is MISSING else field.default,
                text=about.text,
                origin=about.origin,
            )
        )
    return settings
