"""Does the measurement itself work? The gate's bounds, held against models whose answer is known.

The original has seen the forgotten rows: bounds on them that would pass it can tell nothing (positive control). A
retrained model has not: one that fails them was no reference, or the rows to compare with are of another kind (negative
control).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from unlearning.policy.gates import EXCHANGEABLE, FINDINGS, Bound, Policy, judge, policy_for, without_reference

ASKING = ("forget_", "seen_", "membership_")
"""How metrics begin whose bounds ask about forgotten rows."""
DOUBT = 0.5
"""Standard error of a control: one that does not hold leaves the verdict open, it does not settle it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """What the controls say.

    Attributes:
        metrics: "control.positive" and, with a retrained model, "control.negative": 1 where it holds, else 0.
        standard_errors: By the same names.
        sentences: What follows for a reader, one for each control that does not hold.
    """

    metrics: dict[str, float]
    standard_errors: dict[str, float]
    sentences: tuple[str, ...]


def controls(
    metrics: Mapping[str, float | None], errors: Mapping[str, float], *, task: str, request: str, reference: bool
) -> Controls:
    """Both controls, by the default bounds, from what was measured of all models.

    Args:
        metrics: As the gate reads them; "control.forget_gap.train" and the like are the original's distances from the
            retrained model.
        errors: Standard errors, by the same names.
        task: "classification" or "regression".
        request: What was forgotten.
        reference: Whether there is a retrained model.
    """
    seen = _refused("original", policy_for(task, request, reference=reference), metrics, errors)
    values = {"control.positive": float(seen)}
    said = []
    if not seen:
        said.append(
            "The original, which has seen the forgotten rows, would pass the same bounds on them: on these data they "
            "cannot tell whether rows were learned, and passing them says little."
        )
    if reference:
        policy = without_reference(task, request)
        if request not in EXCHANGEABLE:  # rows may be harder by themselves; easier ones look as if they were learned
            policy = {name: replace(bound, low=None) for name, bound in policy.items() if bound.high is not None}
        known = _refused("retrained", policy, metrics, errors)
        values["control.negative"] = float(not known)
        if known:
            said.append(
                "The retrained model, which should never have seen the forgotten rows, does not treat them like unseen "
                "ones either: it may have seen them, or they are of another kind than the held-out rows."
            )
    return Controls(metrics=values, standard_errors=dict.fromkeys(values, DOUBT), sentences=tuple(said))


def _refused(model: str, policy: Policy, metrics: Mapping[str, float | None], errors: Mapping[str, float]) -> bool:
    """Whether a bound on forgotten rows fails for this model; what was not measured of it counts for nothing."""
    asked: dict[str, Bound] = {}
    for name, bound in policy.items():
        stem, _, whose = name.rpartition(".")
        other = f"{stem}.{model}" if whose == "unlearned" else f"control.{name}" if model == "original" else ""
        if name not in FINDINGS and name.startswith(ASKING) and metrics.get(other) is not None:
            asked[other] = bound
    return bool(asked) and any(gate.outcome == "fail" for gate in judge(metrics, errors, asked).gates)
