"""Second moments and rows of activations from which a null space is estimated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from q2n.types import Statistic, Statistics

if TYPE_CHECKING:
    from torch import Tensor

Moment = Literal["gram", "covariance", "position_mean"]
Decomposition = Literal["auto", "eigh", "partial", "svd"]
Precision = Literal["float64", "float32"]

_MOMENT_NEEDS = {
    "gram": frozenset({Statistic.GRAM}),
    "covariance": frozenset({Statistic.GRAM, Statistic.MEAN}),
    "position_mean": frozenset({Statistic.POSITION_MEAN}),
}
_ROWS_NEED = {
    "gram": frozenset({Statistic.TOKEN_SAMPLE}),
    "covariance": frozenset({Statistic.TOKEN_SAMPLE, Statistic.MEAN}),
    "position_mean": frozenset({Statistic.POSITION_MEAN}),
}


def needed(moment: Moment, rows: bool) -> frozenset[Statistic]:
    """Return the statistics for :func:`second_moment` or, with ``rows``, for :func:`activation_rows`."""
    return (_ROWS_NEED if rows else _MOMENT_NEEDS)[moment]


def second_moment(stats: Statistics, moment: Moment) -> Tensor:
    """Return the second moment ``(C, C)`` in float64.

    It is the Gram matrix ``H``, the Gram matrix of the inputs minus their mean, or ``A^T A`` of the position
    mean ``A``.
    """
    if moment == "gram":
        return stats.gram.double()
    if moment == "covariance":
        return stats.centred_gram
    mean = stats[Statistic.POSITION_MEAN].double()
    return mean.T @ mean


def activation_rows(stats: Statistics, moment: Moment) -> Tensor:
    """Return ``Z`` ``(m, C)`` float64 with ``Z^T Z`` equal to, or an estimate of, :func:`second_moment`.

    For the position mean, ``Z`` is the mean itself. Otherwise ``Z`` contains the ``m`` evenly spaced tokens
    of ``TOKEN_SAMPLE`` (64 per sequence), minus the mean of all tokens for the covariance. It is scaled by
    ``sqrt(2 N / (n m))`` to the Gram matrix' normalisation: an estimate from ``m`` of ``N`` tokens.
    """
    if moment == "position_mean":
        return stats[Statistic.POSITION_MEAN].double()
    rows = stats[Statistic.TOKEN_SAMPLE].double()
    if moment == "covariance":
        rows = rows - stats[Statistic.MEAN].double()
    scale: float = (2 * stats.tokens / (stats.sequences * len(rows))) ** 0.5
    return rows * scale
