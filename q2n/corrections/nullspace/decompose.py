"""Eigendecomposition of the inputs' second moment, by the configured method or the cheaper one."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from q2n.corrections.nullspace.moments import (
    Decomposition,
    Moment,
    Precision,
    activation_rows,
    second_moment,
)
from q2n.corrections.nullspace.partial import NotPartialError, leading_spectrum
from q2n.linalg.dense import Spectrum, converging, require_finite, symmetric_spectrum
from q2n.linalg.kernels.threads import steady

if TYPE_CHECKING:
    from q2n.corrections.nullspace.rank import RankRule
    from q2n.types import Statistics

AUTO_WIDTH = 2048
"""Columns from which ``auto`` tries the partial decomposition (timings in docs/LOG.md)."""
AUTO_FRACTION = 12
"""``auto`` abandons the partial decomposition at a 12th of all directions (timings in docs/LOG.md)."""
PARTIAL_FRACTION = 4
"""``partial`` abandons the partial decomposition at a 4th of all directions, with a warning."""


class FullDecompositionWarning(UserWarning):
    """A full decomposition was computed instead of the partial one; the record contains layer and reason."""


def decompose(
    stats: Statistics, moment: Moment, how: Decomposition, precision: Precision, rule: RankRule
) -> Spectrum:
    """Return the spectrum of the inputs' second moment; its ``method`` names the decomposition used.

    Args:
        stats: statistics of the layer's inputs.
        moment: second moment to decompose.
        how: configured decomposition.
        precision: floating-point type of the decomposition.
        rule: rank rule, which ends a partial decomposition.

    Raises:
        NumericalError: the statistic is not finite.
    """
    dtype = torch.float64 if precision == "float64" else torch.float32
    if how == "svd":
        return singular_spectrum(activation_rows(stats, moment).to(dtype))
    matrix = second_moment(stats, moment)
    size = len(matrix)
    if how != "eigh" and not rule.needs_all and (how == "partial" or size >= AUTO_WIDTH):
        matrix = matrix.to(dtype)
        require_finite(matrix, f"matrix to be decomposed in {precision}")
        limit = size // (PARTIAL_FRACTION if how == "partial" else AUTO_FRACTION)
        try:
            return leading_spectrum(matrix, rule, limit)
        except NotPartialError as reason:
            if how == "partial":
                warnings.warn(f"full decomposition: {reason}", FullDecompositionWarning, stacklevel=2)
            return replace(_full(stats, moment, matrix, precision), method=f"eigh ({reason})")
    return _full(stats, moment, matrix, precision)


def _full(stats: Statistics, moment: Moment, matrix: Tensor, precision: Precision) -> Spectrum:
    """Return the full decomposition, cached under one key for all methods that end here.

    In float64 it is computed by ``stats.decompose``, which may have the result of another cell.
    """

    def compute() -> Spectrum:
        if precision == "float32":
            return symmetric_spectrum(matrix, torch.float32)
        return (stats.decompose or symmetric_spectrum)(matrix)

    return stats.cached((moment, "eigh", precision, "full"), compute)


def singular_spectrum(rows: Tensor) -> Spectrum:
    """Return the spectrum of ``Z^T Z`` from the singular value decomposition of ``Z = rows`` ``(m, C)``.

    It has ``min(m, C)`` eigenvalues, the squared singular values; all others are zero.

    Raises:
        NumericalError: an entry is not finite, or the iteration does not converge.
    """
    require_finite(rows, "activations to be decomposed")
    with converging(f"singular value decomposition ({len(rows)} rows)"), steady(rows.shape[1]):
        _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    return Spectrum(values.double().square(), vectors.T, method="svd")
