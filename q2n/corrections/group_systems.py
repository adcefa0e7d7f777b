"""Least squares over the scales of a row, for all rows at once.

Let ``Q_g`` be the part of a row that scale ``g`` multiplies. With scales ``1 + d`` the row is
``Q + sum_g d_g Q_g`` and its output error ``E H E^T - 2 b d + d^T A d`` with

    A_gh = Q_g H Q_h^T,    b_g = E H Q_g^T.

With the penalty ``lam sum_g d_g^2 A_gg``, which keeps scales near one, the minimiser solves
``(A + lam diag A) d = b``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from q2n.corrections.output_error import ROUND_OFF, magnitudes
from q2n.linalg.dense import require_finite

ENTRIES = 1 << 24
"""Entries of the largest intermediate tensor (128 MiB in float64): rows are processed in parts."""


def output_factors(
    error: Tensor, scaled: Tensor, index: Tensor, count: int, gram: Tensor, lam: float
) -> Tensor:
    """Return the scales ``1 + d`` ``(R, G)`` float64 of least output error.

    A row whose computed error would not fall (round-off, singular system) keeps scales of one.

    Args:
        error: ``E = W - Q`` ``(R, C)``.
        scaled: ``Q`` ``(R, C)``, zeros in columns that are not scaled.
        index: index of the scale of each weight, ``(C,)`` or ``(R, C)``; ``-1`` if it has none.
        count: ``G``, scales per row.
        gram: ``H`` ``(C, C)``.
        lam: weight of the penalty.

    Raises:
        NumericalError: an input is not finite, or a product overflows.
    """
    rows, columns = scaled.shape
    part = max(1, ENTRIES // max(columns, count * count))
    factors = []
    for first in range(0, rows, part):
        some = slice(first, min(first + part, rows))
        place = index[some] if index.ndim == 2 else index
        matrix, right = normal_equations(error[some], scaled[some], place, count, gram)
        floor = ROUND_OFF * group_sums(magnitudes(scaled[some], gram), place, count).square()
        factors.append(1 + _steps(matrix, right, floor, lam))
    return torch.cat(factors)


def normal_equations(
    error: Tensor, scaled: Tensor, index: Tensor, count: int, gram: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``A`` ``(R, G, G)`` and ``b`` ``(R, G)`` in float64; products in the precision of ``gram``.

    Raises:
        NumericalError: an input is not finite, or a product overflows.
    """
    matrix = scaled.new_empty(len(scaled), count, count, dtype=torch.float64)
    for group in range(count):
        held, later = index == group, index.masked_fill(index < group, -1)
        columns, rest = _columns(held), _columns(later >= 0)
        part = scaled[:, columns] if held.ndim == 1 else scaled[:, columns] * held[:, columns]
        image = part @ gram[columns][:, rest] * scaled[:, rest]
        products = group_sums(image, later[..., rest], count)[:, group:]
        matrix[:, group, group:] = matrix[:, group:, group] = products
    right = group_sums(error @ gram * scaled, index, count)
    require_finite(
        matrix, "output energy of the groups (quantized weight or Gram matrix, or a product exceeds float32)"
    )
    require_finite(
        right,
        "output error of the groups (weight, quantized weight or Gram matrix, or a product exceeds float32)",
    )
    return matrix, right


def _columns(held: Tensor) -> Tensor:
    """Indices of the columns in which ``(C,)``, or any row of ``(R, C)``, is true."""
    return (held if held.ndim == 1 else held.any(dim=0)).nonzero()[:, 0]


def null_space_factors(
    error: Tensor, scaled: Tensor, index: Tensor, count: int, basis: Tensor, lam: float
) -> Tensor:
    """Return the scales ``(R, G)`` float64 that minimise ``||B - Q(s)||^2`` with ``B - Q = E V V^T``.

    Groups do not interact: ``d_g = <E V V^T, Q>_g / ((1 + lam) ||Q_g||^2)``.

    Args:
        error: see :func:`output_factors`, as the other arguments.
        scaled: ``Q`` ``(R, C)``.
        index: index of the scale of each weight.
        count: ``G``.
        basis: ``V`` ``(C, k)``, orthonormal basis of the input subspace.
        lam: weight of the penalty.

    Raises:
        NumericalError: an input is not finite, or a product overflows.
    """
    wanted = (error.double() @ basis) @ basis.T
    cross = group_sums(wanted * scaled, index, count)
    norms = group_sums(scaled.double().square(), index, count)
    require_finite(
        cross, "share of the groups in the target (weight or quantized weight, or a product exceeds float32)"
    )
    return 1 + cross / ((1 + lam) * norms + torch.finfo(torch.float64).tiny)


def group_sums(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Sum ``values`` ``(R, C)`` over the weights of each scale; ``(R, G)`` float64."""
    values = values.double()
    if index.ndim == 1:
        return values @ (index[:, None] == torch.arange(count, device=index.device)).double()
    sums = values.new_zeros(len(values), count + 1)
    return sums.scatter_add_(1, index + 1, values)[:, 1:]


def _steps(matrix: Tensor, right: Tensor, floor: Tensor, lam: float) -> Tensor:
    """Solve for ``d`` ``(R, G)``; zero for rows whose system is singular or whose error would not fall."""
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    system = matrix + torch.diag_embed(lam * diagonal + floor + torch.finfo(torch.float64).tiny)
    steps, failed = torch.linalg.solve_ex(system, right)
    change = (steps * (torch.einsum("rgh,rh->rg", matrix, steps) - 2 * right)).sum(dim=1)
    improves = (failed == 0) & (change < 0)
    return torch.where(improves[:, None], steps, 0.0)
