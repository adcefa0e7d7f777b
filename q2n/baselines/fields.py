"""Field types that several baselines share, with their ranges."""

from __future__ import annotations

import itertools
from typing import Annotated

from pydantic import AfterValidator, Field


def _group_size(value: int) -> int:
    if value != -1 and value < 1:
        raise ValueError("must be a positive number of columns, or -1 for the whole row")
    return value


def _schedule(value: list[float]) -> list[float]:
    if any(later <= earlier for earlier, later in itertools.pairwise(value)):
        raise ValueError("must increase")
    return value


def _activation_bits(value: int) -> int:
    if value != 16 and not 2 <= value <= 8:
        raise ValueError("must be 2 to 8, or 16 for no quantization")
    return value


Bits = Annotated[int, Field(ge=2, le=8)]
GroupSize = Annotated[int, AfterValidator(_group_size)]
Damping = Annotated[float, Field(gt=0, le=10)]
DampingSchedule = Annotated[list[Annotated[float, Field(gt=0, le=10)]], AfterValidator(_schedule)]
"""Fractions tried after ``percdamp`` when the Hessian does not factorise; empty: raise at once."""
ActivationBits = Annotated[int, AfterValidator(_activation_bits)]
ClipRatio = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
