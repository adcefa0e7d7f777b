"""Measures of a null space: how sharp it is, how well it carries over, how much of the aim is reached."""

from __future__ import annotations

import torch
from torch import Tensor

from q2n.corrections.nullspace.estimator import NullSpace
from q2n.linalg.dense import converging
from q2n.linalg.kernels.threads import steady
from q2n.types import Statistic, Statistics, share


def places(size: int, points: int) -> Tensor:
    """Up to ``points`` places among ``size``, from the first to the last, evenly spaced in their logarithm;
    ``(p,)`` int64, from 0."""
    spaced = torch.logspace(0, torch.log10(torch.tensor(float(size))).item(), points, dtype=torch.float64)
    chosen: Tensor = torch.unique(spaced.round().long().clamp(1, size)) - 1
    return chosen


def sampled(values: Tensor, points: int) -> tuple[float, ...]:
    """Eigenvalues over the largest, at :func:`places`, four significant digits."""
    largest = float(values[0])
    chosen = values[places(len(values), points)] / (largest if largest > 0 else 1.0)
    return tuple(float(f"{value:.4g}") for value in chosen.tolist())


def effective_rank(values: Tensor) -> float:
    """``exp`` of the entropy of the eigenvalues as shares of their sum (Roy and Vetterli, 2007), or 0."""
    total = values.sum()
    if total <= 0:
        return 0.0
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


def projection_error(null_space: NullSpace, gram: Tensor) -> float:
    """``||X P|| / ||X||`` of inputs with Gram matrix ``X^T X = gram`` ``(C, C)``, whichever inputs the null
    space was estimated from; 0 of inputs that are zero."""
    matrix = gram.double()
    total = float(matrix.diagonal().sum())
    basis = null_space.spectrum.vectors[:, null_space.rank :].double()
    inside = (matrix @ basis) * basis
    with steady():
        left = float(inside.sum())
    return max(0.0, left / total) ** 0.5 if total > 0 else 0.0


def halves(stats: Statistics) -> tuple[Statistics, Statistics]:
    """Statistics of every other calibration sequence, from the first, and of those between."""
    half, whole = stats[Statistic.HALF_GRAM].double(), stats.gram.double()
    count, tokens = (stats.sequences + 1) // 2, stats.tokens // stats.sequences
    rest = stats.sequences - count
    other = (stats.sequences * whole - count * half) / rest
    return (
        Statistics({Statistic.GRAM: half}, count, count * tokens),
        Statistics({Statistic.GRAM: other}, rest, rest * tokens),
    )


def principal_angles(one: NullSpace, other: NullSpace, points: int) -> tuple[float, ...]:
    """Principal angles between two null spaces in degrees, ascending: ``points`` evenly spaced quantiles of
    the ``min(dimension)`` there are; none if one of them is empty.

    They are arc cosines of the singular values of ``N_1^T N_2`` with orthonormal bases ``N``.
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
    """How much of the way from ``Q`` to the projected target ``B = Q + E (I - P)`` a row scale can go, and
    how much the correction went: ``1 - ||B - Q'||^2 / ||B - Q||^2``.

    The best row scale is the least-squares one, without regulariser. ``None`` where ``B = Q``, or where a
    product exceeds float32.
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
    """The relative squared output error ``||E X||^2 / ||W X||^2`` by the directions of the inputs it comes
    from: the leading eigenvector, the rest of the range, the null space.

    Eigenvectors do not mix in ``E H E^T = sum_i sigma_i (E v_i)(E v_i)^T``, so that the three add up to the
    layer's error; ``None`` where that has none.
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
