"""Row scale ``alpha``: closed form and Adam on one objective.

The objective is

    ||B - diag(alpha) Q||^2 + sum_r lambda_r (alpha_r - 1)^2,   B = W (I - P) + Q P.

Rows do not interact. With ``f`` the row's least-squares scale and ``n = ||Q_r||^2`` the objective of a row is
``n (alpha - f)^2 + lambda (alpha - 1)^2`` up to a constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

TINY = 1e-8
"""Term in denominators, as in the official code: rows of zeros give ``alpha = 1``."""

ADAM_STEPS = 20
"""Steps of the official code's GPTQ."""
ADAM_RATE = 2e-3
"""Learning rate of the official code's GPTQ."""
ADAM_DECAY = 0.999
"""Factor of the rate per step when Adam runs to convergence; the rates add up to at most 2."""
ADAM_EPSILON = 1e-8
"""``eps`` of ``torch.optim.Adam``."""
ADAM_TOLERANCE = 1e-6
"""Distance of every row from the optimum at which Adam has converged."""
ADAM_LIMIT = 10_000
"""Largest number of steps of Adam to convergence."""


def row_scale(error: Tensor, scaled: Tensor, vectors: Tensor, rank: int, lam: float | Tensor) -> Tensor:
    """Return ``alpha_r = 1 + <E_r (I - P), Q_r> / (||Q_r||^2 + lambda_r)``, ``E = W - Q``; ``(R,)`` float64.

    Args:
        error: ``E`` ``(R, C)``.
        scaled: ``Q`` ``(R, C)``, with zeros in columns that ``alpha`` does not multiply.
        vectors: eigenvectors, largest eigenvalue first, ``(C, m)`` with ``m >= rank``.
        rank: ``k``, rank of the input subspace.
        lam: ``lambda``, one number for all rows or ``(R,)``.
    """
    return closed_form(reached(error, scaled, vectors, rank), row_norms(scaled), lam)


def closed_form(shared: Tensor, norms: Tensor, lam: float | Tensor) -> Tensor:
    """Return ``alpha`` for ``shared = <E_r (I - P), Q_r>`` and ``norms = ||Q_r||^2``; ``(R,)`` each."""
    return 1 + shared / (norms + lam + TINY)


def reached(error: Tensor, scaled: Tensor, vectors: Tensor, rank: int) -> Tensor:
    """Return ``<E_r (I - P), Q_r>``; ``(R,)`` float64.

    ``I - P = V V^T`` with ``V`` the ``rank`` leading columns of ``vectors``, so the projector is never
    formed: ``<E (I - P), Q> = <E V, Q V>``, with the basis of the input subspace or of the null space, the
    one with fewer columns. Products are in the precision of ``error``: float32 changes ``alpha`` by less
    than ``1e-7`` (docs/LOG.md).
    """
    from q2n.linalg.dense import row_dots

    columns, known = vectors.shape
    null = known == columns and rank > columns // 2
    basis = (vectors[:, rank:] if null else vectors[:, :rank]).to(error.dtype)
    shared = row_dots(error @ basis, scaled @ basis)
    return row_dots(error, scaled) - shared if null else shared


def row_norms(values: Tensor) -> Tensor:
    """Return ``||Q_r||^2`` of every row; ``(R,)`` float64."""
    from q2n.linalg.dense import row_dots

    return row_dots(values, values)


@dataclass(frozen=True)
class Descent:
    """Result of Adam.

    Attributes:
        alpha: row scales, ``(R,)``.
        steps: number of steps taken.
        distance: largest distance of a row from the optimum.
    """

    alpha: Tensor
    steps: int
    distance: float


def adam_row_scale(fit: Tensor, norms: Tensor, lam: float | Tensor) -> Tensor:
    """Take 20 steps of ``torch.optim.Adam`` (defaults, rate 2e-3) from one, as the official GPTQ; ``(R,)``.

    Args:
        fit: least-squares scales ``f`` ``(R,)``.
        norms: ``||Q_r||^2`` ``(R,)``.
        lam: ``lambda``, one number for all rows or ``(R,)``.
    """
    return _adam(fit, norms, lam, ADAM_STEPS, decay=1.0, tolerance=0.0).alpha


def adam_to_convergence(fit: Tensor, norms: Tensor, lam: float | Tensor) -> Descent:
    """Run Adam from one with a decaying rate until every row is within ``1e-6`` of its optimum.

    It stops after 10,000 steps at the latest. The objective is quadratic, so the distance from the optimum is
    gradient over curvature. Arguments as in :func:`adam_row_scale`.
    """
    return _adam(fit, norms, lam, ADAM_LIMIT, decay=ADAM_DECAY, tolerance=ADAM_TOLERANCE)


def _adam(
    fit: Tensor, norms: Tensor, lam: float | Tensor, limit: int, decay: float, tolerance: float
) -> Descent:
    """Run Adam with the ``betas`` 0.9 and 0.999 of ``torch.optim.Adam``; tolerance 0 takes all steps."""
    import torch

    alpha = torch.ones_like(fit)
    mean, square = torch.zeros_like(fit), torch.zeros_like(fit)
    curvature = 2 * (norms + lam) + TINY
    for step in range(1, limit + 1):
        gradient = 2 * norms * (alpha - fit) + 2 * lam * (alpha - 1)
        distance = float((gradient / curvature).abs().max()) if tolerance else 1.0
        if distance <= tolerance:
            return Descent(alpha, step - 1, distance)
        mean.lerp_(gradient, 1 - 0.9)
        square.mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
        denominator = (square / (1 - 0.999**step)).sqrt_().add_(ADAM_EPSILON)
        rate = ADAM_RATE * decay ** (step - 1)
        alpha = alpha - rate / (1 - 0.9**step) * mean / denominator
    gradient = 2 * norms * (alpha - fit) + 2 * lam * (alpha - 1)
    return Descent(alpha, limit, float((gradient / curvature).abs().max()))
