"""The gate: a policy's two-sided bounds held against measured metrics. It fails closed.

A metric that is missing or not a finite number fails. A metric outside its bounds fails when its distance to them is
more than two standard errors, and is inconclusive when it is less: too few samples to tell. Everything else passes.

A distance from a retrained model is bounded by what matters, and, where rows are few, by what chance alone explains:
its ends give way to so many standard errors. Where they would have to give way too far to tell anything, it is
inconclusive, whatever was measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from unlearning.config import build, nearest
from unlearning.errors import UsageError

Outcome = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What a metric may be, both ends included; None: open on that side.

    Attributes:
        low: Lower end.
        high: Upper end.
        why: What it asks, in words.
        chance: Standard errors from the middle of the two ends that are allowed even where that is beyond them.
        widest: How far from the middle the ends may lie for that; beyond, there are too few rows to tell.
    """

    low: float | None = None
    high: float | None = None
    why: str = ""
    chance: float = 0.0
    widest: float | None = None

    def __post_init__(self) -> None:
        """Refuse a bound that bounds nothing, or that nothing can meet."""
        ends = [end for end in (self.low, self.high) if end is not None]
        if not ends or not all(math.isfinite(end) for end in ends):
            raise ValueError(f"a bound needs a finite low or high, got low {self.low}, high {self.high}")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        if not self.chance:
            return
        if self.low is None or self.high is None or not (self.chance > 0 and math.isfinite(self.chance)):
            raise ValueError(f"chance needs two ends and to be above 0, got {self.low}, {self.high} and {self.chance}")
        if self.widest is None or not (self.high - self.low) / 2 <= self.widest < math.inf:
            raise ValueError(f"chance needs a finite widest, at least half of high - low, got {self.widest}")

    def given_way(self, error: float) -> Bound:
        """The bound as it stands for a metric with this standard error."""
        if not self.chance or self.low is None or self.high is None or self.widest is None:
            return self
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        reach = min(self.chance * error, self.widest)
        return self if reach <= half else replace(self, low=middle - reach, high=middle + reach)

    def outside(self, value: float) -> float:
        """How far beyond the nearer end a value lies; 0 or less inside."""
        below = self.low - value if self.low is not None else -math.inf
        above = value - self.high if self.high is not None else -math.inf
        return max(below, above)

    def tells(self, error: float) -> bool:
        """Whether a metric with this standard error is sure enough to be held against it."""
        return not self.chance or self.widest is None or self.chance * error <= self.widest


Policy = Mapping[str, Bound]

FINDINGS: Policy = {
    "finding.no_reference": Bound(high=0, why="the retrained model is not the original under another name"),
    "finding.not_finite": Bound(high=0, why="no weight and no output is NaN or infinite"),
    "finding.no_change": Bound(high=0, why="the model is not the original under another name"),
    "finding.output_permuted": Bound(high=0, why="the outputs were not merely put in another order"),
    "finding.head_only": Bound(high=0, why="more than the last layer was changed"),
    "finding.randomised": Bound(high=0, why="the model is not a random one"),
    "finding.over_forgotten": Bound(high=0, why="what is forgotten does not stand out by how wrong it is"),
}
"""Known failures that look like forgetting; each is a gate when it is found, and only then."""

CLASS_POLICY: Policy = {
    "forget_accuracy.test.unlearned": Bound(high=0.05, why="the class is no longer recognised"),
    "forget_accuracy.train.unlearned": Bound(high=0.05, why="nor are the very rows it was learned from"),
    "retain_accuracy_drop.test": Bound(high=0.05, why="the other classes still work"),
    "worst_class_drop.test": Bound(high=0.25, why="no single class pays for it"),
    "membership_auc.entropy.forget.unlearned": Bound(
        low=0.4, high=0.6, why="forgotten rows look like rows never trained on: as sure, no more, no less"
    ),
    "membership_auc.loss.forget.unlearned": Bound(
        low=0.4, high=0.6, why="forgotten rows look like rows never trained on: as wrong, no more, no less"
    ),
    "weights_changed": Bound(low=1e-6, why="the weights are not the original's"),
}
"""For class requests without a retrained reference: held-out rows of the class stand in for it."""


ROWS_POLICY: Policy = {
    "seen_gap.forget.unlearned": Bound(
        low=-0.05, high=0.05, why="forgotten rows are classified as well as rows never trained on, no better, no worse"
    ),
    "retain_accuracy_drop.test": Bound(high=0.05, why="the model still works"),
    "worst_class_drop.test": Bound(high=0.25, why="no single class pays for it"),
    "membership_auc.entropy.forget.unlearned": CLASS_POLICY["membership_auc.entropy.forget.unlearned"],
    "membership_auc.loss.forget.unlearned": CLASS_POLICY["membership_auc.loss.forget.unlearned"],
    "weights_changed": CLASS_POLICY["weights_changed"],
}
"""For requests that name rows or people: forgetting is looking like unseen rows, which is not an accuracy of 0."""

VALUES_POLICY: Policy = {
    "seen_advantage.forget.unlearned": Bound(
        low=-0.25, high=0.25, why="forgotten rows are predicted as well as rows never trained on, no better, no worse"
    ),
    "retain_error_rise.test": Bound(high=0.1, why="the model still works"),
    "membership_auc.residual.forget.unlearned": Bound(
        low=0.4, high=0.6, why="forgotten rows look like rows never trained on: as far off, no more, no less"
    ),
    "weights_changed": CLASS_POLICY["weights_changed"],
}
"""For models that predict values: the error on forgotten rows is held against that on unseen rows of their kind."""


_NEAR = Bound(
    low=-0.1,
    high=0.1,
    why="to an attacker, forgotten rows look as they do in a model that never saw them",
    chance=3,
    widest=0.25,
)
REFERENCE_POLICY: Policy = {
    "forget_gap.train": Bound(
        low=-0.05, high=0.05, why="forgotten rows are classified as by the retrained model", chance=3, widest=0.15
    ),
    "retain_gap.test": Bound(low=-0.05, why="the model is about as good as the retrained one"),
    "membership_gap.loss.forget": _NEAR,
    "membership_gap.entropy.forget": _NEAR,
}
"""Where there is a retrained model: distances from it, on either side, in place of what `YARDSTICKS` asks."""

VALUES_REFERENCE_POLICY: Policy = {
    "forget_error_gap.train": Bound(low=-0.25, high=0.25, why="forgotten rows are predicted as by the retrained model"),
    "retain_error_gap.test": Bound(high=0.1, why="the model is about as good as the retrained one"),
    "membership_gap.residual.forget": _NEAR,
}
"""The same for models that predict values; gaps of errors are shares of the retrained model's."""

YARDSTICKS = ("seen_", "membership_auc.")
"""Metrics that hold forgotten rows against unseen ones, a stand-in for a model that never saw the former. With such a
model at hand they are not bounded: two sets of rows differ by their own difficulty, which it carries, too."""

CONTROLS: Policy = {
    "control.positive": Bound(low=1, why="the same bounds would have refused the original: they see what they ask"),
    "control.negative": Bound(low=1, why="the retrained model itself does not seem to have seen the forgotten rows"),
}
"""Of the measurement, not of the model; see `policy.controls`. 0 is inconclusive. The positive one is a gate by default
where classes are forgotten: a model that treats rows alike whether it learned them or not passes bounds on rows that
tell nothing, and whoever will not have that asks for it there, too. The negative one is where the rows
to compare with were drawn alike."""

EXCHANGEABLE = ("class", "target")
"""Requests whose forgotten rows and held-out stand-ins were drawn alike. People, times and rows that someone picked
differ from others by themselves: a retrained model may well treat them otherwise."""

COPIES = Bound(high=0.05, why="what is forgotten does not go on being taught by copies of it among the retained rows")
"""Of "overlap.forget_in_retain.share", the share of forget rows that such a copy has. Of the data, not of the model:
beyond it no verdict can be given."""

AUDIT_POLICY: Policy = {
    "audit.relearning_area.retain_only": Bound(high=0.1, why="training on without it does not bring it back"),
    "audit.rmia_auc.unlearned": Bound(low=0.4, high=0.6, why="a sharper attack, row by row, cannot tell either"),
}
"""Added where an audit was asked for. What else it measures is for people to read beside the retrained model's."""

AUDITED: Policy = {
    "audit.prototype_gap": Bound(high=0.3, why="a few rows are not enough to recognise the class by its features"),
    "audit.relearning_area.few_shots": Bound(high=0.3, why="a few rows do not bring it back"),
    "audit.probe_gap": Bound(high=0.1, why="features do not set the rows apart"),
    "audit.anamnesis_index": Bound(low=0.5, why="it is learned no faster than for the first time"),
    "audit.lira_auc.unlearned": Bound(low=0.4, high=0.6, why="shadow models cannot tell the rows"),
}
"""Metrics of an audit that a policy may bound, with what one might ask. No default: methods that suppress a class's
outputs are not made to meet them."""


RETEST_POLICY: Policy = {
    "retest.class_accuracy": Bound(high=0.05, why="classes that earlier batches forgot are still not recognised"),
    "retest.seen_gap": Bound(high=0.05, why="rows that earlier batches forgot are known no better than unseen ones"),
    "retest.membership_auc": Bound(high=0.6, why="rows that earlier batches forgot still do not look trained on"),
}
"""What a deletion batch asks of its model about all that was forgotten before: nothing of it may come back."""


def retest_policy(overrides: Mapping[str, Any]) -> dict[str, Bound]:
    """The bounds of what was forgotten before; those that "none" drops may be all.

    Args:
        overrides: A policy, as for `policy_with`; names that do not begin with "retest." are passed over.
    """
    mine = {name: bound for name, bound in overrides.items() if name.startswith("retest.")}
    kept = {name: bound for name, bound in mine.items() if bound is not None and bound != "none"}
    dropped = mine.keys() - kept.keys()
    policy_with(
        {**kept, **dict.fromkeys(dropped)}, {**RETEST_POLICY, "weights_changed": CLASS_POLICY["weights_changed"]}
    )
    return {name: bound for name, bound in policy_with(kept, RETEST_POLICY).items() if name not in dropped}


def without_retest(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The bounds that a run's own gate judges by."""
    return {name: bound for name, bound in overrides.items() if not name.startswith("retest.")}


def shadows_in(audit: str) -> int:
    """How many shadow models an audit is to have: 16 for "shadows:16", 0 for "none" and "attacks".

    Raises:
        UsageError: For anything else.
    """
    if audit in ("none", "attacks"):
        return 0
    word, _, count = audit.partition(":")
    if word == "shadows" and count.isascii() and count.isdigit() and len(count) < 5 and int(count) in range(6, 1001, 2):
        return int(count)
    raise UsageError(f'audit must be "none", "attacks" or "shadows:16" (even, 6 to 1000), got {audit[:40]!r}')


def check_audit(audit: str, *, task: str, reference: str) -> None:
    """Nothing, when such an audit can be made.

    Raises:
        UsageError: For an unknown one, shadows of a model of values, or no retrained model to compare with.
    """
    if shadows_in(audit) and task == "regression":
        raise UsageError("shadow models are of classifiers, the model predicts values: run audit=attacks")
    if audit != "none" and reference == "none":
        raise UsageError("an audit compares with a retrained model: give reference=train, or its address")


def policy_for(task: str, request: str, *, reference: bool = False, audit: bool = False) -> Policy:
    """The default policy.

    Args:
        task: "classification" or "regression".
        request: What is forgotten.
        reference: Whether there is a retrained model to be held against.
        audit: Whether there is an audit; what it finds of a model that predicts values is shown and not bounded.
    """
    kind = dict(without_reference(task, request))
    if reference:
        beside = VALUES_REFERENCE_POLICY if task == "regression" else REFERENCE_POLICY
        kind = {name: bound for name, bound in kind.items() if not name.startswith(YARDSTICKS)} | {**beside}
        if request in EXCHANGEABLE:
            kind["control.negative"] = CONTROLS["control.negative"]
    if request == "class" and task != "regression":
        kind["control.positive"] = CONTROLS["control.positive"]
    kind["overlap.forget_in_retain.share"] = COPIES
    return {**FINDINGS, **kind, **(AUDIT_POLICY if audit and task != "regression" else {})}


def without_reference(task: str, request: str) -> Policy:
    """Bounds that need no retrained model."""
    if task == "regression":
        return VALUES_POLICY
    return CLASS_POLICY if request == "class" else ROWS_POLICY


def policy_with(overrides: Mapping[str, Any], default: Policy = CLASS_POLICY) -> dict[str, Bound]:
    """The default policy with some bounds replaced.

    Args:
        overrides: Metric name to {"low", "high", "why"}; "none" drops the gate (parameters of a pipeline know no null).
        default: What is replaced in. Controls may be added; with an audit's bounds, those of `AUDITED`; with bounds of
            distances from a retrained model, the `YARDSTICKS` that these replaced.

    Raises:
        UsageError: For a metric that the policy does not know, or bounds that make no sense.
    """
    policy = dict(default)
    known = {**default, **CONTROLS, **(AUDITED if AUDIT_POLICY.keys() <= default.keys() else {})}
    for beside, kinds in ((REFERENCE_POLICY, (CLASS_POLICY, ROWS_POLICY)), (VALUES_REFERENCE_POLICY, (VALUES_POLICY,))):
        if beside.keys() <= default.keys():
            known |= {name: one for kind in kinds for name, one in kind.items() if name.startswith(YARDSTICKS)}
    for metric, bound in overrides.items():
        if metric not in known:
            raise UsageError(f'policy: unknown metric "{metric}"{nearest(metric, known)} (valid: {", ".join(known)})')
        if bound is None or bound == "none":
            policy.pop(metric, None)
            continue
        if not isinstance(bound, Mapping):
            raise UsageError(f'policy: "{metric}" wants {{"low": ..., "high": ...}}, got {bound!r}')
        policy[metric] = build(Bound, bound, what=f'policy "{metric}"')
    if policy.keys() <= FINDINGS.keys():
        raise UsageError("policy: every gate was dropped; a verdict needs at least one")
    return policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One bound held against one metric."""

    metric: str
    value: float | None
    standard_error: float
    low: float | None
    high: float | None
    why: str
    outcome: Outcome
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All gates, and what follows from them: any failed: fail; else any inconclusive: inconclusive; else pass.

    Attributes:
        outcome: The word.
        gates: Each bound, and what came of it.
        caveats: What weakens whatever the gates say, a sentence each: controls that do not hold, rows that are there
            twice.
    """

    outcome: Outcome
    gates: tuple[Gate, ...]
    caveats: tuple[str, ...] = ()

    @property
    def reasons(self) -> list[str]:
        """Why it is not a pass, a sentence each; empty for a pass."""
        return [gate.reason for gate in self.gates if gate.outcome != "pass"]


def judge(
    metrics: Mapping[str, float | None],
    errors: Mapping[str, float],
    policy: Policy,
    findings: Iterable[Mapping[str, str]] = (),
) -> Verdict:
    """Hold every bound of the policy against the metrics.

    Args:
        metrics: Name to value; what was not measured is missing or None.
        errors: Standard errors of some metrics, by the same names; the others count as exact.
        policy: Name to bound; at least one.
        findings: What is known to be wrong with the model, each with "code" and "sentence"; any one fails, unless it is
            of `FINDINGS` and the policy does not have it.
    """
    bounds = {name: bound for name, bound in policy.items() if name not in FINDINGS}
    if not bounds:
        raise UsageError("policy: every gate was dropped; a verdict needs at least one")
    counted = [found for found in findings if (name := f"finding.{found['code']}") not in FINDINGS or name in policy]
    gates = tuple(_gate(name, bound, metrics.get(name), errors.get(name, 0.0)) for name, bound in bounds.items())
    gates = (*(_finding(found["code"], found["sentence"]) for found in counted), *gates)
    outcomes = {gate.outcome for gate in gates}
    outcome: Outcome = "fail" if "fail" in outcomes else "inconclusive" if "inconclusive" in outcomes else "pass"
    return Verdict(outcome=outcome, gates=gates)


def _finding(code: str, sentence: str) -> Gate:
    return Gate(
        metric=f"finding.{code}",
        value=1.0,
        standard_error=0.0,
        low=None,
        high=0.0,
        why=sentence,
        outcome="fail",
        reason=sentence,
    )


def _gate(name: str, bound: Bound, value: float | None, error: float) -> Gate:
    outcome: Outcome
    stands = bound
    if value is None or not math.isfinite(value) or not math.isfinite(error) or error < 0:
        outcome, reason = "fail", f"{name} was not measured"
        value = None
    else:
        stands = bound.given_way(error)
        inside = stands.outside(value) <= 0
        if bound.outside(value) > 2 * error and not inside:
            outcome = "fail"
        else:
            outcome = "pass" if inside and bound.tells(error) else "inconclusive"
        reason = f"{name} is {value:.4g}"
        if not inside:
            low = stands.low is not None and value < stands.low
            side = f"below {stands.low:g}" if low else f"above {stands.high:g}"
            doubt = f", by less than two standard errors ({error:.2g})" if outcome == "inconclusive" else ""
            reason += f", {side}{doubt}"
        elif outcome == "inconclusive":
            reason += f", with a standard error of {error:.2g}: too few rows to tell"
    return Gate(
        metric=name,
        value=value,
        standard_error=error if math.isfinite(error) else 0.0,
        low=stands.low,
        high=stands.high,
        why=bound.why,
        outcome=outcome,
        reason=reason,
    )
