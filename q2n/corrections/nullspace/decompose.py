"""Spectra of the inputs' second moment, by the decomposition that was asked for or the cheaper one."""

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
"""Columns below which ``auto`` does not try the partial decomposition."""
AUTO_FRACTION = 12
"""``auto`` gives the partial decomposition up at this part of all directions."""
PARTIAL_FRACTION = 4
"""The same of ``partial``."""


class FullDecompositionWarning(UserWarning):
    """A partial decomposition was asked for and the full one was made; the record says where and why."""


def decompose(
    stats: Statistics, moment: Moment, how: Decomposition, precision: Precision, rule: RankRule
) -> Spectrum:
    """The spectrum of the inputs' second moment; its ``method`` says how it was made.

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
    """Made once however it came to be asked for; in float64 by the statistics' own means, which may know the
    result already."""

    def compute() -> Spectrum:
        if precision == "float32":
            return symmetric_spectrum(matrix, torch.float32)
        return (stats.decompose or symmetric_spectrum)(matrix)

    return stats.cached((moment, "eigh", precision, "full"), compute)


def singular_spectrum(rows: Tensor) -> Spectrum:
    """Of ``Z`` ``(m, C)``: squared singular values ``(min(m, C),)`` and right singular vectors, which are the
    eigenvalues and eigenvectors of ``Z^T Z``; those that are missing have eigenvalue zero.

    Raises:
        NumericalError: not finite, or the iteration does not converge.
    """
    require_finite(rows, "activations to be decomposed")
    with converging(f"singular value decomposition ({len(rows)} rows)"), steady(rows.shape[1]):
        _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    return Spectrum(values.double().square(), vectors.T, method="svd")
