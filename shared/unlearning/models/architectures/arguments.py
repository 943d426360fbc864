"""The types of builders' arguments, checked as JSON gives them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import ConfigDict, Field, validate_call

MAX_CHANNELS = 64
MAX_SIDE = 1024
MAX_FEATURES = 1_000_000
MAX_OUTPUTS = 100_000

Shape = tuple[int, ...]
Width = Annotated[float, Field(gt=0, le=8, allow_inf_nan=False)]
Size = Annotated[int, Field(ge=1, le=16_384)]
Hidden = Annotated[Sequence[Size], Field(max_length=16)]
Count = Annotated[int, Field(ge=1, le=16)]
Dropout = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]

checked = validate_call(config=ConfigDict(strict=True))
"""Decorator of a builder: arguments of another type or out of range raise pydantic's `ValidationError`."""
