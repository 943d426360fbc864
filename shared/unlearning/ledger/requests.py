"""One request to forget: what a controller sends, checked field by field. Ids only, never features."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from unlearning.errors import DataError
from unlearning.ledger.deadlines import Regulation
from unlearning.ledger.pseudonyms import Pseudonyms

Kind = Literal["class", "subject", "sample", "target", "period"]
Priority = Literal["normal", "expedite"]

SCHEMA = "unlearning-request/1"
MOST_IDS = 10_000
LONGEST_ID = 256

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_KEY = r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$"
_DATASET = r"^(\*|[A-Za-z0-9][A-Za-z0-9._-]{0,127})$"
_ID = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ._:@/+-]*[A-Za-z0-9._:@+-])?")
_NUMBER = r"-?\d{1,20}(?:\.\d{1,20})?(?:[eE][+-]?\d{1,3})?"
_DATE = r"\d{4}(?:-\d\d(?:-\d\d(?:[T ]\d\d(?::\d\d)?)?)?)?"
_RANGES = {
    "target": (
        re.compile(f"{_NUMBER}:(?:{_NUMBER})?|:{_NUMBER}"),
        'is no range of values such as "0:80", ":80" or "80:"',
    ),
    "period": (re.compile(f"{_DATE}(?:/{_DATE})?"), 'is no period such as "2017-03" or "2017-03-01/2017-03-08"'),
}
"""Kinds whose ids name nobody: what they look like, and what is said of others."""
_TIME = re.compile(r"\d{4}-\d{2}-\d{2}[Tt]\d{2}:\d{2}:\d{2}(?:\.\d{1,6})?(?:[Zz]|[+-]\d{2}:\d{2})")
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


def _checked_ids(values: Any, info: ValidationInfo) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not values:
        raise ValueError("wanted a list of one or more ids as text")
    if len(values) > MOST_IDS:
        raise ValueError(f"{len(values)} ids: at most {MOST_IDS} in one request, split it")
    for number, value in enumerate(values, 1):
        if wrong := wrong_with_id(value, info.data.get("kind", "")):
            raise ValueError(f"id {number} {wrong}")
    return tuple(sorted(set(values)))


def wrong_with_id(value: object, kind: str = "") -> str:
    """What keeps a value from being an id, for a message that does not show it; "" when nothing does.

    Ids match exactly, so look-alikes, other normal forms and stray spaces are refused instead of guessed at.

    Args:
        value: What came.
        kind: Of the request: ranges of the target and periods have a form of their own.

    Example:
        >>> wrong_with_id("user-17"), wrong_with_id("../key")
        ('', 'begins with another character than a letter or digit')
    """
    if not isinstance(value, str):
        return f"is no text ({type(value).__name__}): quote it"
    if not value or len(value) > LONGEST_ID:
        return f"has {len(value)} characters, wanted 1 to {LONGEST_ID}"
    if kind in _RANGES:
        form, reason = _RANGES[kind]
        return "" if form.fullmatch(value) else reason
    if any(unicodedata.category(character)[0] == "C" for character in value):
        return "has a control or invisible character"
    if not value.isascii():
        return "has a character outside ASCII: a look-alike of another id could be meant"
    if not re.match("[A-Za-z0-9]", value):
        return "begins with another character than a letter or digit"
    if not _ID.fullmatch(value):
        return "has a character other than letters, digits, inner spaces and . _ : @ / + -"
    if ".." in value or "//" in value:
        return 'holds ".." or "//", which read as a path or address'
    return ""


def _time(value: Any) -> datetime:
    if isinstance(value, str) and _TIME.fullmatch(value):
        value = datetime.fromisoformat(value.upper().replace("Z", "+00:00"))
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError("wanted a time with its zone, as in 2026-11-21T09:30:00Z")
    try:
        time = value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the time is out of range") from error
    if time < _EARLIEST or time.year > 9000:
        raise ValueError("the year is before 2000 or after 9000")
    return time


class DeletionRequest(BaseModel):
    """What a controller asks to be forgotten; ids are sorted and held once.

    Attributes:
        controller: Who asks, on behalf of the person: a short name.
        key: The controller's own name of the request; the same key twice is the same request.
        kind: "class", "subject", "sample", "target" or "period".
        ids: Class names, subject ids, sample ids, ranges of the value ("0:80") or periods ("2017-03"), 1 to 10,000;
            never shown by `repr`.
        model: The registered model that is to forget.
        dataset: Name of the data set, or "*".
        regulation: Whose deadline applies.
        submitted_at: When the person asked; the clock starts then. UTC.
        priority: "expedite" goes first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    controller: Annotated[str, Field(pattern=_NAME)]
    key: Annotated[str, Field(pattern=_KEY, repr=False)]
    kind: Kind
    ids: Annotated[tuple[str, ...], BeforeValidator(_checked_ids), Field(repr=False)]
    model: Annotated[str, Field(pattern=_NAME)]
    dataset: Annotated[str, Field(pattern=_DATASET)] = "*"
    regulation: Regulation = "gdpr"
    submitted_at: Annotated[datetime, BeforeValidator(_time)]
    priority: Priority = "normal"

    def ref(self, names: Pseudonyms) -> str:
        """Its name outside the restricted prefix."""
        return names.request(self.controller, self.key)

    def target(self, names: Pseudonyms) -> str:
        """The keyed digest of what is to be forgotten: two requests with the same are twins."""
        return names.target(self.kind, self.model, self.dataset, self.ids)

    def content(self, names: Pseudonyms) -> str:
        """The keyed digest of what is asked; when it was asked, and how urgently, does not count."""
        return names.of("content", self.target(names), self.regulation)


def request_from(values: Mapping[str, Any]) -> DeletionRequest:
    """The checked request of a plain mapping.

    Raises:
        DataError: Naming every field that does not fit and why; what it held is never repeated.
    """
    try:
        return DeletionRequest.model_validate(dict(values))
    except ValidationError as error:
        reasons = []
        for mistake in error.errors(include_url=False, include_input=False, include_context=False):
            message = mistake["msg"].removeprefix("Value error, ")
            unknown = mistake["type"] == "extra_forbidden"
            where = "a column or field" if unknown else ".".join(str(part) for part in mistake["loc"][:1])
            reasons.append("a field is unknown: put nothing but ids in a request" if unknown else f"{where}: {message}")
        raise DataError("; ".join(dict.fromkeys(reasons))) from None
