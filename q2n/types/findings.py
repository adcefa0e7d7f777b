"""What the record keeps of a layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


def share(part: float, whole: float) -> float | None:
    """``part / whole``; 0 if both are zero, or None if the quotient does not exist or is not finite."""
    if part == 0 == whole:
        return 0.0
    quotient = part / whole if whole else math.inf
    return quotient if math.isfinite(quotient) else None


@dataclass(frozen=True)
class NullSpaceReport:
    """Measures of the null space of a layer's inputs, from their Gram matrix in the layer's own basis
    (:mod:`q2n.corrections.nullspace.measures` defines each). ``spectrum`` holds eigenvalues over the largest
    at ``spectrum_places``, counted from 1. Names with ``half`` compare two halves of the calibration
    sequences."""

    spectrum: tuple[float, ...]
    spectrum_places: tuple[int, ...]
    rank: int
    effective_rank: float
    projection_error: float
    heldout_projection_error: float | None = None
    half_ranks: tuple[int, int] | None = None
    half_projection_error: float | None = None
    half_angles: tuple[float, ...] = ()
    reach: float | None = None
    reached: float | None = None
    error_sources: tuple[float, float, float] | None = None
    error_sources_after: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class LayerReport:
    """What the record keeps of one linear layer. Errors are relative squared output errors
    ``||(W - Q) X||^2 / ||W X||^2`` on the calibration inputs, before and after the correction; ``heldout_``
    on inputs from held-out sequences, ``None`` without any. An error is ``None`` where there is none: the
    output is zero and that of the quantized layer is not, or a product exceeds float32 (:func:`share`).
    ``decomposition`` says how the spectrum was made
    and why not as asked, ``decomposition_residual`` how exact an iteration was."""

    block: int
    name: str
    shape: tuple[int, int]
    bits_per_weight: float
    error_before: float | None = None
    error_after: float | None = None
    alpha_min: float | None = None
    alpha_max: float | None = None
    null_rank: int | None = None
    damping: float | None = None
    solve_seconds: float = 0.0
    correct_seconds: float = 0.0
    heldout_error_before: float | None = None
    heldout_error_after: float | None = None
    decomposition: str | None = None
    decomposition_residual: float | None = None
    null_space: NullSpaceReport | None = None
    extra: Mapping[str, float] = field(default_factory=dict)
