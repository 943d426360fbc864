"""What holds for all samples of a data set, and how its inputs are scaled."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, dataclass, fields
from typing import Literal, get_args

from unlearning.errors import DataError

SCHEMA = "unlearning-manifest/1"
Task = Literal["classification", "regression"]
MOST_CARD_BYTES = 4 << 20

# Control characters, line separators and those that turn the writing direction: they forge logs and reports.
UNSAFE = "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
_UNSAFE_TEXT = re.compile(f"{UNSAFE[:-1]}\ud800-\udfff]")
_SHA256 = re.compile(r"(?:[0-9a-f]{64})?")
_YOUNGER = ("features", "target_name", "target_unit", "horizon", "vocabulary", "fill")
"""Fields that are left out of the canonical text at their defaults, so that older cards keep their digest."""


@dataclass(frozen=True)
class Scaling:
    """How inputs become what a network sees: missing values filled, then (value - mean) / std.

    Attributes:
        mean: Per channel, feature or series, of values scaled to 0..1 where the inputs are uint8; one for all, or
            empty: nothing is scaled.
        std: Likewise; > 0.
        fill: What a missing value becomes, per feature; empty where none is missing.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    fill: tuple[float, ...] = ()


@dataclass(frozen=True)
class DataCard:
    """What holds for all samples of a data set; checked when made.

    Attributes:
        source: Where the samples lie, as `make_manifest` takes it: "digits", "npz:/data/set.npz".
        task: "classification" or "regression".
        classes: Class names in the order of their indices, at least two; none for regression.
        input_shape: (C, H, W) of images, (D,) of features, (steps, values) of sequences, (2, L) of token pairs.
        mean: Per channel, feature or value, of values scaled to 0..1 where the inputs are uint8; fitted on the train
            split. Empty for tokens, which are not scaled.
        std: Likewise; > 0.
        source_sha256: Of the source as it was listed, or "" when unknown.
        name: For people; may be "".
        features: Names of what `mean` and `std` are of; may be empty.
        target_name: What is predicted; "" when unknown or for classes.
        target_unit: Its unit; likewise.
        horizon: Numbers to predict for a sample: 1 gives targets (N,), H gives (N, H).
        vocabulary: Token ids are below this number; 0 for inputs that are no tokens.
        fill: What a missing value of each feature becomes; empty where none is missing.
    """

    source: str
    task: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source_sha256: str = ""
    name: str = ""
    features: tuple[str, ...] = ()
    target_name: str = ""
    target_unit: str = ""
    horizon: int = 1
    vocabulary: int = 0
    fill: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        kinds = {"classes": str, "input_shape": int, "mean": float, "std": float, "features": str, "fill": float}
        for field, kind in kinds.items():
            object.__setattr__(self, field, tuple(kind(value) for value in getattr(self, field)))
        self._check_task()
        texts = (("source", self.source, 4096), *(("class", name, 256) for name in self.classes))
        texts += (("name", self.name, 256), ("target", self.target_name, 256), ("unit", self.target_unit, 256))
        for what, text, longest in (*texts, *(("feature", feature, 256) for feature in self.features)):
            optional = what in ("name", "target", "unit")
            if len(text) > longest or _UNSAFE_TEXT.search(text) or (not text and not optional):
                raise DataError(f"a {what} name has 1 to {longest} characters and no control characters, one differs")
        self._check_scaling()
        if not _SHA256.fullmatch(self.source_sha256):
            raise DataError("source_sha256 must be 64 lower-case hexadecimal digits or empty")
        if len(self.as_json()) > MOST_CARD_BYTES:
            raise DataError(f"the data card may have {MOST_CARD_BYTES} bytes: use fewer classes or features")

    def _check_task(self) -> None:
        if self.task not in get_args(Task):
            raise DataError(f'the task must be "classification" or "regression", got {self.task[:40]!r}')
        named = len(self.classes)
        if self.task == "classification" and (named < 2 or len(set(self.classes)) != named):
            raise DataError(f"a data card needs two or more different class names, got {named} names")
        if self.task == "classification" and (self.target_name or self.target_unit or self.horizon != 1):
            raise DataError("classes have no target_name, target_unit or horizon: leave them out")
        if self.task == "regression" and named:
            raise DataError(f"numbers to predict have no classes, the data card names {named}: leave them out")
        if not (1 <= self.horizon <= 10_000 and 0 <= self.vocabulary <= 10_000_000):
            raise DataError(f"horizon must be 1 to 10000, vocabulary 0 to 10000000, got {self.horizon} and more")

    def _check_scaling(self) -> None:
        shape = self.input_shape
        if len(shape) not in (1, 2, 3) or min(shape) < 1:
            raise DataError(f"the input shape must be (C, H, W), (steps, values) or (features,), got {shape}")
        wanted = len(self.features) or (shape[-1] if len(shape) == 2 else shape[0])
        sizes = f"{len(self.mean)} means and {len(self.std)} deviations"
        if self.vocabulary and (len(shape) != 2 or self.mean or self.std or self.features):
            raise DataError(f"tokens have the shape (2, length) and are not scaled, got {shape}, {sizes}")
        if not self.vocabulary and not len(self.mean) == len(self.std) == wanted:
            raise DataError(f"{wanted} channels or features need as many, got {sizes}")
        if not all(map(math.isfinite, (*self.mean, *self.std, *self.fill))) or min(self.std, default=1) <= 0:
            raise DataError("means must be finite and deviations finite and above 0: make the manifest again")
        if len(self.fill) not in (0, wanted):
            raise DataError(f"{wanted} features need as many fill values or none, got {len(self.fill)}")

    @property
    def scaling(self) -> Scaling:
        """As it was fitted on the train split when the manifest was made."""
        return Scaling(self.mean, self.std, self.fill)

    def as_json(self) -> bytes:
        """The canonical text: sorted keys, no spaces, UTF-8."""
        defaults = {field.name: field.default for field in fields(self) if field.name in _YOUNGER}
        record = {key: value for key, value in asdict(self).items() if key not in defaults or value != defaults[key]}
        record["schema"] = SCHEMA
        return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
