"""Measures of a null space: spectrum, generalisation to other inputs, share of Q2N's target reached."""

from __future__ import annotations

import torch
from torch import Tensor

from q2n.corrections.nullspace.estimator import NullSpace
from q2n.linalg.dense import converging
from q2n.linalg.kernels.threads import steady
from q2n.types import Statistic, Statistics, share


def places(size: int, points: int) -> Tensor:
    """Return at most ``points`` of the indices ``0 ... size - 1``, evenly spaced in the logarithm.

    First and last index are included; ``(p,)`` int64.
    """
    spaced = torch.logspace(0, torch.log10(torch.tensor(float(size))).item(), points, dtype=torch.float64)
    chosen: Tensor = torch.unique(spaced.round().long().clamp(1, size)) - 1
    return chosen


def sampled(values: Tensor, points: int) -> tuple[float, ...]:
    """Return the eigenvalues at :func:`places`, relative to the largest, with four significant digits."""
    largest = float(values[0])
    chosen = values[places(len(values), points)] / (largest if largest > 0 else 1.0)
    return tuple(float(f"{value:.4g}") for value in chosen.tolist())


def effective_rank(values: Tensor) -> float:
    """Return ``exp`` of the entropy of the normalised eigenvalues (Roy and Vetterli, 2007); 0 for zeros."""
    total = values.sum()
    if total <= 0:
        return 0.0
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


def projection_error(null_space: NullSpace, gram: Tensor) -> float:
    """Return ``||X P|| / ||X||`` for inputs with Gram matrix ``X^T X = gram`` ``(C, C)``.

    The null space may come from other inputs than ``gram``. The error of zero inputs is 0.
    """
    matrix = gram.double()
    total = float(matrix.diagonal().sum())
    basis = null_space.spectrum.vectors[:, null_space.rank :].double()
    inside = (matrix @ basis) * basis
    with steady():
        left = float(inside.sum())
    return max(0.0, left / total) ** 0.5 if total > 0 else 0.0


def halves(stats: Statistics) -> tuple[Statistics, Statistics]:
    """Return the statistics of calibration sequences 1, 3, 5, ... and of sequences 2, 4, 6, ..."""
    half, whole = stats[Statistic.HALF_GRAM].double(), stats.gram.double()
    count, tokens = (stats.sequences + 1) // 2, stats.tokens // stats.sequences
    rest = stats.sequences - count
    other = (stats.sequences * whole - count * half) / rest
    return (
        Statistics({Statistic.GRAM: half}, count, count * tokens),
        Statistics({Statistic.GRAM: other}, rest, rest * tokens),
    )


def principal_angles(one: NullSpace, other: NullSpace, points: int) -> tuple[float, ...]:
    """Return principal angles between two null spaces in degrees, ascending.

    ``points`` evenly spaced quantiles of all ``min(dimension)`` angles are returned; none if a null space is
    empty. The angles are arc cosines of the singular values of ``N_1^T N_2`` with orthonormal bases ``N``.
    """
    first = one.spectrum.vectors[:, one.rank :].double()
    second = other.spectrum.vectors[:, other.rank :].double()
    if not first.shape[1] or not second.shape[1]:
        return ()
    product = first.T @ second
    with converging("singular value decomposition (principal angles)"), steady(max(product.shape)):
        cosines = torch.linalg.svdvals(product).clamp(max=1)
    angles = torch.rad2deg(torch.arccos(cosines))
    kept = torch.quantile(angles, torch.linspace(0, 1, points, dtype=torch.float64))
    return tuple(float(f"{angle:.4g}") for angle in kept.tolist())


def reach(
    original: Tensor, base: Tensor, corrected: Tensor, null_space: NullSpace
) -> tuple[float | None, float | None]:
    """Return the share of Q2N's target that row scales can reach, and the share the correction reached.

    With the target ``B = Q + E (I - P)`` a share is ``1 - ||B - Q'||^2 / ||B - Q||^2``. The best row scale is
    the least-squares scale, without penalty. A share is None if ``B = Q`` or a product exceeds float32.

    Args:
        original: ``W`` ``(R, C)``.
        base: ``Q`` ``(R, C)``, before the correction.
        corrected: ``Q'`` ``(R, C)``, after the correction.
        null_space: null space ``P`` projects onto.
    """
    basis = null_space.spectrum.vectors[:, : null_space.rank].to(original.dtype)
    aim = (original - base) @ basis
    wanted = float(aim.square().sum(dtype=torch.float64))
    if wanted <= 0:
        return None, None
    norms = base.square().sum(dim=1, dtype=torch.float64)
    shared = (aim * (base @ basis)).sum(dim=1, dtype=torch.float64)
    best = float((shared.square() / norms.clamp(min=1e-30)).sum())
    step = corrected - base
    gained = 2 * (aim * (step @ basis)).sum(dtype=torch.float64) - step.square().sum(dtype=torch.float64)
    return share(best, wanted), share(float(gained), wanted)


def error_sources(
    original: Tensor, error: Tensor, null_space: NullSpace
) -> tuple[float, float, float] | None:
    """Split the relative output error ``||E X||^2 / ||W X||^2`` by input directions.

    The parts come from the leading eigenvector, the rest of the input subspace and the null space.
    Eigenvectors do not mix in ``E H E^T = sum_i sigma_i (E v_i)(E v_i)^T``, so the parts add up to the
    relative output error. The result is None if that error does not exist.
    """
    values = null_space.spectrum.values.clamp(min=0)
    vectors = null_space.spectrum.vectors.to(original.dtype)

    def energies(rows: Tensor) -> Tensor:
        return (rows @ vectors).square().sum(dim=0, dtype=torch.float64) * values

    total = float(energies(original).sum())
    parts = energies(error)
    rank = max(null_space.rank, 1)
    sums = (parts[:1].sum(), parts[1:rank].sum(), parts[rank:].sum())
    first, second, third = (share(float(part), total) for part in sums)
    return None if first is None or second is None or third is None else (first, second, third)
