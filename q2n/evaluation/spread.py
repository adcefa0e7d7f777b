"""The mean of values and how far it may be off, over the whole range of floats."""

from __future__ import annotations

import math
from collections.abc import Sequence


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error (``s / sqrt(n)``, ``s`` with ``n - 1``); None for fewer than two values,
    or where one or the spread is not finite."""
    if not all(map(math.isfinite, values)):
        return sum(values) / len(values), None
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    try:
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    except OverflowError:
        return mean, None
    return mean, math.sqrt(variance / len(values))


def exp(value: float) -> float:
    """``e**value``, infinite where it is beyond the range of floats."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def expm1(value: float) -> float:
    """``e**value - 1``, infinite where it is beyond the range of floats."""
    try:
        return math.expm1(value)
    except OverflowError:
        return math.inf
