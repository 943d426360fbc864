"""What it means for a verdict that rows are there twice, in words."""

from __future__ import annotations

from collections.abc import Mapping


def warnings(metrics: Mapping[str, float | None]) -> tuple[str, ...]:
    """What a reader must know of rows that are there twice, a sentence for each kind; empty when there are none.

    Args:
        metrics: With "overlap.test_in_train.exact" and so on, as `data.overlap` counts them; others are left alone.
    """

    def rows(name: str) -> int:
        return int(metrics.get(f"overlap.{name}") or 0)

    said = []
    if count := rows("test_in_train.exact"):
        said.append(
            f"{_counted(count, 'held-out ')} repeat{'s' * (count == 1)} a training row byte for byte: what is measured "
            "on unseen rows is flattered by that."
        )
    for kind, words in (("exact", "an exact copy"), ("near", "a near twin")):
        if count := rows(f"forget_in_retain.{kind}"):
            said.append(
                f"{_counted(count)} to forget ha{'s' if count == 1 else 've'} {words} among the retained rows: what "
                "that teaches is not forgotten."
            )
        if count := rows(f"forget_in_test.{kind}"):
            said.append(
                f"{_counted(count)} to forget ha{'s' if count == 1 else 've'} {words} among the held-out rows, which "
                "then are not unseen."
            )
    return tuple(said)


def _counted(count: int, kind: str = "") -> str:
    return f"1 {kind}row" if count == 1 else f"{count:,} {kind}rows".replace(",", "\u202f")
