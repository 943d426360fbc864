"""Names and numbers as a reader wants them: metrics in plain words, honest digits, names that do no harm."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from unlearning.policy.gates import CONTROLS, Gate, Verdict

NAME_LENGTH = 60
DASH, MINUS = "\u2013", "\u2212"
OPEN, CLOSE = "\u2068", "\u2069"
"""First strong isolate, pop isolate: what lies between cannot turn the direction of the text around it."""

_CONTROLS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_QUANTITIES = {
    "accuracy": "accuracy{of} on {rows}",
    "forget_accuracy": "accuracy{of} on {rows}",
    "retain_accuracy": "accuracy{of} on {rows}",
    "forget_accuracy_drop": "accuracy lost{of} on {rows}",
    "retain_accuracy_drop": "accuracy lost{of} on {rows}",
    "seen_gap": "accuracy{of} on {rows} less that on unseen ones",
    "worst_class_drop": "largest accuracy loss of any one {class}{of} on {rows}",
    "membership_auc": "membership-attack AUC{by}{of} on {rows}",
    "membership_tpr_at_1_percent_fpr": "members found{by}{of} at 1% false alarms among {rows}",
    "membership_tpr_at_tenth_percent_fpr": "members found{by}{of} at 0.1% false alarms among {rows}",
    "forget_top_prediction_share": "share of {rows} that one class{of} draws",
    "forget_mae": "mean absolute error{of} on {rows}",
    "retain_mae": "mean absolute error{of} on {rows}",
    "forget_rmse": "root mean squared error{of} on {rows}",
    "retain_rmse": "root mean squared error{of} on {rows}",
    "forget_gap": "accuracy on {rows} less the retrained model's",
    "retain_gap": "accuracy on {rows} less the retrained model's",
    "forget_error_gap": "mean absolute error on {rows}, above the retrained model's",
    "retain_error_gap": "mean absolute error on {rows}, above the retrained model's",
    "membership_gap": "membership-attack AUC{by} on {rows} less the retrained model's",
    "references": "retrained models compared with",
    "divergence": "divergence of the outputs for {rows} from the retrained model's, bits",
    "wasserstein": "Wasserstein distance of the predictions of {rows} from the retrained model's",
    "retain_error_rise": "rise of the mean absolute error on {rows}",
    "seen_advantage": "how much smaller the error{of} is on {rows} than on unseen ones",
    "prediction_shift": "how far the predictions of {rows} moved (Wasserstein distance)",
    "residual_ks": "largest difference of the residuals' distributions{of}, {rows} and unseen ones",
    "residual_attack": "share of {rows}{of} that the residual attack calls training data",
    "calibration_error": "calibration error{of} on {rows}",
    "entropy_attack": "share of {rows}{of} that the entropy attack calls training data",
    "weights_changed": "distance of the weights{of} from the original's",
}
_ROWS = {
    "test": "unseen examples",
    "train": "training examples",
    "forget": "forgotten examples",
    "retain": "retained examples",
}
_PARTS = {
    "class": {
        "forget": "{rows} of the forgotten classes",
        "retain": "{rows} of the other classes",
    },
    "rows": {
        "forget train": "the forgotten examples",
        "forget test": "unseen examples of the same kind",
        "retain train": "retained examples",
        "retain test": "unseen examples",
    },
}
"""Rows of a quantity that is named for what is forgotten or retained, by request."""
_MODELS = {
    "original": " of the original model",
    "unlearned": " of the unlearned model",
    "retrained": " of the retrained model",
}
_STATISTICS = {"entropy": " (entropy)", "loss": " (loss)", "confidence": " (confidence)", "residual": " (residual)"}
_SHARES = (
    "forget_error_gap",
    "retain_error_gap",
    "entropy_attack",
    "residual_attack",
    "retain_error_rise",
    "seen_advantage",
)
_FINDINGS = {
    "no_reference": "signs of a reference that is none",
    "not_finite": "signs of a broken model",
    "no_change": "signs of a model that did not change",
    "output_permuted": "signs of a mere renaming of outputs",
    "head_only": "signs of a change of the output layer alone",
    "randomised": "signs of a ruined model",
    "over_forgotten": "signs of forgetting too much",
}
_CONTROL_WORDS = {
    "positive": "whether these bounds would have refused the original",
    "negative": "whether the retrained model looks as if it never saw what is forgotten",
}
_FAILED_CONTROLS = {
    "control.positive": "the original would pass the same bounds: they cannot tell whether rows were learned",
    "control.negative": "the retrained model does not treat the forgotten examples like unseen ones either",
}
_OVERLAPS = {
    "forget_in_retain": "forgotten rows with {kind} among the retained ones",
    "forget_in_test": "forgotten rows with {kind} among the held-out ones",
    "test_in_train": "held-out rows with {kind} among the training rows",
    "looked": "rows looked at for near twins, {kind}",
}
_KINDS = {"exact": "an exact copy", "near": "a near twin", "share": "an exact copy", "test": "held-out"}
_AUDIT = {
    "relearned_few_shots": "accuracy relearned from a few forgotten rows",
    "relearned_retain_only": "accuracy relearned from retained rows",
    "relearning_area": "area between the relearning curves and the retrained model's",
    "probe": "AUC of a linear probe of the features",
    "prototype": "accuracy of nearest means of a few rows",
    "update_loss": "AUC by the rise of the loss from before to after",
    "update_divergence": "AUC by the change of the answer from before to after",
    "update_residual": "AUC by the rise of the residual from before to after",
    "update_shift": "AUC by the change of the prediction from before to after",
    "rmia": "AUC of RMIA",
    "lira": "AUC of U-LiRA",
    "inversion_confidence": "the original's confidence in inverted pictures",
    "inversion_similarity": "likeness of inverted pictures to the class",
    "anamnesis_index": "Anamnesis Index, 1 is ideal",
}
_ATTACKED = {
    "few_shots": ", a few forgotten rows",
    "retain_only": ", retained rows alone",
    "shadows": ", shadow by shadow",
    **_MODELS,
}
WHOSE = {
    "subject": " of the people who asked",
    "target": " in the range to forget",
    "period": " of the time to forget",
}
"""Which examples are forgotten, after their number; rows that were named one by one need no more."""
_RIGHT_TO_LEFT = ("R", "AL", "AN")


def label(metric: str, request: str = "class") -> str:
    """A metric in plain words; a name that is not known comes back as it is.

    Args:
        metric: Its name.
        request: What was forgotten: "class", "subject" or "sample".

    Example:
        >>> label("forget_accuracy.test.unlearned")
        'accuracy of the unlearned model on unseen examples of the forgotten classes'
        >>> label("forget_accuracy.train.unlearned", "sample")
        'accuracy of the unlearned model on the forgotten examples'
        >>> label("my_metric.x")
        'my_metric.x'
    """
    quantity, *parts = metric.split(".")
    if quantity == "finding" and len(parts) == 1:
        return _FINDINGS.get(parts[0], metric)
    if quantity == "audit":
        return _audit_label(parts) or metric
    if quantity == "control" and parts:
        rest = ".".join(parts)
        words = _CONTROL_WORDS.get(rest) or label(rest, request)
        return metric if words == rest else words if rest in _CONTROL_WORDS else f"of the original: {words}"
    if quantity == "overlap" and len(parts) == 2 and parts[0] in _OVERLAPS:
        share = "share of " if parts[1] == "share" else ""
        return share + _OVERLAPS[parts[0]].format(kind=_KINDS.get(parts[1], parts[1]))
    if quantity not in _QUANTITIES or not set(parts) <= {*_ROWS, *_MODELS, *_STATISTICS}:
        return metric
    rows = " and ".join(_ROWS[part] for part in parts if part in _ROWS) or "examples"
    part = quantity.partition("_")[0]
    if part in ("forget", "retain"):
        known = _PARTS["class" if request == "class" else "rows"]
        split = next((split for split in ("train", "test") if split in parts), "")
        rows = known.get(part, known.get(f"{part} {split}", rows)).format(rows=rows)
    of, by = ("".join(words[part] for part in parts if part in words) for words in (_MODELS, _STATISTICS))
    other = "other class" if request == "class" else "class"
    return _QUANTITIES[quantity].format(rows=rows, of=of, by=by, **{"class": other})


def _audit_label(parts: Sequence[str]) -> str:
    """Of "audit.probe_gap", "audit.probe_auc.unlearned", ...; empty for others."""
    name = parts[0].removesuffix("_auc").removesuffix("_accuracy") if parts else ""
    less = " less the retrained model's" if name.endswith("_gap") else ""
    words = _AUDIT.get(name.removesuffix("_gap"), "")
    known = words and all(part in _ATTACKED for part in parts[1:])
    return words + less + "".join(_ATTACKED[part] for part in parts[1:]) if known else ""


def amount(metric: str, value: float | None, *, against: float | None = None) -> str:
    """A metric's value with the digits and unit of its kind: accuracies in percent, losses of accuracy in points.

    Args:
        metric: Its name; decides the kind.
        value: None: not measured.
        against: A bound that the value is shown beside; digits are added until the two look different.

    Example:
        >>> amount("accuracy", 0.0501), amount("accuracy", 0.0501, against=0.05), amount("accuracy", 0.0001)
        ('5.0%', '5.01%', '<0.1%')
    """
    if value is None:
        return "not measured"
    quantity = metric.split(".")[0]
    if quantity == "finding":
        return "found" if value else "none"
    if metric in CONTROLS:
        return "yes" if value else "no"
    if quantity == "overlap":
        return percent(value, against=against) if metric.endswith(".share") else counted(round(value))
    if quantity == "control":
        return amount(metric.partition(".")[2], value, against=against)
    if quantity in _SHARES:
        return percent(value, against=against)
    if quantity.endswith(("_drop", "_gap")) and quantity != "membership_gap":
        return _apart(100 * value, against and 100 * against, "f", 1) + " points"
    if "accuracy" in quantity or "tpr" in quantity:
        return percent(value, against=against)
    if quantity.endswith("auc") or quantity == "membership_gap":
        return _apart(value, against, "f", 3)
    return _apart(value, against, "g", 4)


def percent(share: float | None, *, against: float | None = None) -> str:
    """A share in percent; what is only nearly nothing or nearly everything does not look like it; a dash for None."""
    if share is None:
        return DASH
    if against is None and 0 < share < 0.0005:
        return "<0.1%"
    if against is None and 0.9995 <= share < 1:
        return ">99.9%"
    return _apart(100 * share, against if against is None else 100 * against, "f", 1) + "%"


def points(before: float | None, after: float | None) -> str:
    """The signed change between two shares, in percentage points, with a true minus sign; a dash without both."""
    if before is None or after is None:
        return DASH
    return signed(100 * (after - before))


def signed(number: float) -> str:
    """A number with one decimal and its sign: a plus, a true minus, or none for what rounds to zero."""
    text = f"{abs(number):.1f}"
    return text if float(text) == 0 else f"{'+' if number > 0 else MINUS}{text}"


def _apart(value: float, other: float | None, kind: str, digits: int) -> str:
    text = f"{value:.{digits}{kind}}"
    while other is not None and value != other and digits < 12 and float(text) == float(f"{other:.{digits}{kind}}"):
        digits += 1
        text = f"{value:.{digits}{kind}}"
    return text.replace("-", MINUS)


def allowed(metric: str, low: float | None, high: float | None) -> str:
    """The range of a bound in words, both ends included: "at most 5%", "0.35 to 0.65"."""
    if metric.startswith("finding."):
        return "none"
    if metric in CONTROLS:
        return "yes"
    if low is not None and high is not None:
        return f"{_limit(metric, low)} to {_limit(metric, high)}"
    return f"at most {_limit(metric, high)}" if high is not None else f"at least {_limit(metric, low)}"


def _limit(metric: str, bound: float | None) -> str:
    if bound is None:
        return ""
    if metric.startswith("finding."):
        return "none"
    unit = next((unit for unit in (" points", "%") if amount(metric, 0.5).endswith(unit)), "")
    shown = 100 * bound if unit else bound
    exact = f"{shown:.6g}"
    # A bound that people chose is said as they chose it; one that was computed has no end of digits.
    return f"{exact if float(exact) == round(shown, 12) else f'{shown:.4g}'}{unit}".replace("-", MINUS)


def duration(seconds: float) -> str:
    """A time span in the units that a person would use.

    Example:
        >>> duration(0.42), duration(38.06), duration(200), duration(7510)
        ('0.42 s', '38.1 s', '3 min 20 s', '2 h 05 min')
    """
    if seconds < 120:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    whole = round(seconds)
    return (
        f"{whole // 60} min {whole % 60:02d} s" if whole < 7200 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    )


def clean(text: Any, most: int = NAME_LENGTH) -> str:
    """Any value as one line of at most `most` characters, without control or direction-changing characters."""
    # The cut comes before the work as well: the text may be far longer than what is shown of it.
    shown = _CONTROLS.sub("", str(text)[: 4 * most])
    shown = "".join("\ufffd" if unicodedata.category(c) in ("Cs", "Cn") else c for c in shown)
    shown = " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") else c for c in shown).split())
    longer = len(shown) > most or len(str(text)) > 4 * most
    return shown[: most - 1].rstrip() + "…" if longer else shown


def isolated(text: Any, most: int = NAME_LENGTH) -> str:
    """The same between marks that keep its reading direction to itself."""
    return f"{OPEN}{clean(text, most)}{CLOSE}"


def listed(names: Sequence[str], *, most: int = 5) -> str:
    """Class names as part of a sentence, each isolated: class 3; classes a, b and 7 more."""
    shown = [isolated(name) for name in names[:most]]
    if len(names) > most:
        shown.append(f"{len(names) - most} more")
    text = " and ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))
    return f"class{'es' if len(names) > 1 else ''} {text}" if names else "nothing"


def counted(number: int) -> str:
    """A count with thin blanks between its thousands."""
    return f"{number:,}".replace(",", "\u202f")


def plain(sentence: str) -> str:
    """A sentence without the isolation marks around names that read from left to right."""

    def bare(found: re.Match[str]) -> str:
        turns = any(unicodedata.bidirectional(c) in _RIGHT_TO_LEFT for c in found[1])
        return found[0] if turns else found[1]

    return re.sub(f"{OPEN}(.*?){CLOSE}", bare, sentence)


def finding(gate: Gate, request: str = "class") -> str:
    """What one gate found, without a full stop: "accuracy on ... is 12.0%, above the allowed 5%"."""
    if gate.metric.startswith("finding."):
        return clean(gate.reason, 400)
    words = label(gate.metric, request)
    what = isolated(words, 160) if words == gate.metric else words
    if gate.metric in CONTROLS and gate.outcome != "pass" and gate.value is not None:
        return _FAILED_CONTROLS[gate.metric]
    if gate.value is None:
        return f"{what} was not measured"
    low = gate.low is not None and gate.value < gate.low
    inside = not low and (gate.high is None or gate.value <= gate.high)
    bound = gate.low if low else gate.high
    text = f"{what} is {amount(gate.metric, gate.value, against=bound)}"
    if gate.outcome == "pass":
        return text
    if inside:
        error = amount(gate.metric, float(f"{gate.standard_error:.2g}"))
        return f"{text}, with a standard error of {error}: too few examples to tell"
    text += f", {'below' if low else 'above'} the allowed {_limit(gate.metric, bound)}"
    if gate.outcome == "inconclusive":
        text += f" by less than two standard errors ({_limit(gate.metric, float(f'{gate.standard_error:.2g}'))} each)"
    return text


def closing(verdict: Verdict, request: str = "class") -> str:
    """The first thing that kept a verdict from passing, and how many more there are; as sentences."""
    first, *others = [gate for gate in verdict.gates if gate.outcome == verdict.outcome]
    text = finding(first, request)
    text = text[0].upper() + text[1:] + "."
    if others:
        word = "failed" if verdict.outcome == "fail" else "cannot be told"
        text += f" {len(others)} more gates {word}." if len(others) > 1 else f" One more gate {word}."
    return text
