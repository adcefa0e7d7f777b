"""Results per layer that the record contains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


def share(part: float, whole: float) -> float | None:
    """Return ``part / whole``, 0 if both are zero, or None if the quotient is undefined or not finite."""
    if part == 0 == whole:
        return 0.0
    quotient = part / whole if whole else math.inf
    return quotient if math.isfinite(quotient) else None


@dataclass(frozen=True)
class NullSpaceReport:
    """Measures of the null space of a layer's inputs, from their Gram matrix in the layer's own basis.

    :mod:`q2n.corrections.nullspace.measures` defines each measure.

    Attributes:
        spectrum: eigenvalues relative to the largest, at ``spectrum_places``.
        spectrum_places: indices of these eigenvalues, counted from 1.
        rank: rank of the input subspace.
        effective_rank: ``exp`` of the entropy of the eigenvalues.
        projection_error: ``||X P|| / ||X||`` on the calibration inputs.
        heldout_projection_error: the same on held-out inputs, or None without any.
        half_ranks: ranks from two halves of the calibration sequences, or None if not measured.
        half_projection_error: projection error of the first half's null space on the second half.
        half_angles: quantiles of the principal angles between the two null spaces, in degrees.
        reach: share of Q2N's target that row scales can reach.
        reached: share that the correction reached.
        error_sources: relative output error before the correction by input directions: leading eigenvector,
            rest of the input subspace, null space.
        error_sources_after: the same after the correction.
    """

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
    """Results of one linear layer in the record.

    Errors are relative output errors ``||(W - Q) X||^2 / ||W X||^2`` on the calibration inputs, before and
    after the correction. An error is None if it does not exist (:func:`share`): the output is zero and the
    quantized layer's output is not, or a product exceeds float32.

    Attributes:
        block: index of the decoder block, from 0.
        name: name of the layer inside the block.
        shape: ``(R, C)``.
        bits_per_weight: storage of the corrected layer in bits per weight.
        error_before: relative output error of the solver's result.
        error_after: relative output error after the correction.
        alpha_min: smallest scale of the correction, or None if it has no scales.
        alpha_max: largest scale of the correction.
        null_rank: dimension of the null space.
        damping: damping that the solver used.
        solve_seconds: wall time of the solver in seconds.
        correct_seconds: wall time of the correction in seconds.
        heldout_error_before: error on held-out inputs, or None without held-out sequences.
        heldout_error_after: the same after the correction.
        decomposition: decomposition used, with the reason if it is not the configured one.
        decomposition_residual: relative residual of an iterative decomposition.
        null_space: measures of ``diagnostics=null_space``.
        extra: further numbers of the correction by name.
    """

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
