"""When a request must be answered: calendar months or days by regulation, in UTC."""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from unlearning.errors import UsageError

Regulation = Literal["gdpr", "uk_gdpr", "ccpa", "other", "internal"]

POLICY = "deadlines/1"
"""Name of the table below; it is kept with every date that was computed from it."""


@dataclass(frozen=True)
class Deadline:
    """How long a regulation gives.

    Attributes:
        months: Calendar months from the person's request.
        days: Days on top of `months`.
        more_months: Calendar months that one extension adds.
        more_days: Days that one extension adds.
        target_days: What this tool aims at, in days from the person's request.
    """

    months: int = 0
    days: int = 0
    more_months: int = 0
    more_days: int = 0
    target_days: int = 28


RULES: dict[Regulation, Deadline] = {
    "gdpr": Deadline(months=1, more_months=2, target_days=28),
    "uk_gdpr": Deadline(months=1, more_months=2, target_days=28),
    "ccpa": Deadline(days=45, more_days=45, target_days=40),
    "other": Deadline(months=1, target_days=28),
    "internal": Deadline(days=90, more_days=90, target_days=60),
}


def add_months(start: datetime, months: int) -> datetime:
    """The same day and time some calendar months on; the month's last day where it has no such day.

    Example:
        >>> add_months(datetime(2027, 1, 31, 9, tzinfo=UTC), 1).date().isoformat()
        '2027-02-28'
    """
    count = start.year * 12 + start.month - 1 + months
    year, month = divmod(count, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return start.replace(year=year, month=month + 1, day=min(start.day, last))


def due_dates(regulation: Regulation, submitted: datetime) -> tuple[datetime, datetime]:
    """When an answer is due, and the earlier time that this tool aims at; both in UTC.

    Args:
        regulation: Which rule.
        submitted: When the person asked, with its time zone.
    """
    rule, start = RULES[regulation], submitted.astimezone(UTC)
    due = add_months(start, rule.months) + timedelta(days=rule.days)
    return due, min(due, start + timedelta(days=rule.target_days))


def extended(regulation: Regulation, due: datetime) -> datetime:
    """The later date that one extension gives.

    Raises:
        UsageError: When the regulation knows none.
    """
    rule = RULES[regulation]
    if not rule.more_months and not rule.more_days:
        raise UsageError(f'"{regulation}" knows no extension: answer by {due.date()}, or deny with a reason')
    return add_months(due, rule.more_months) + timedelta(days=rule.more_days)
