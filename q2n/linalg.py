"""Dense linear algebra the solvers and corrections stand on: pure functions of tensors.

Factorisations run in float64: at the sizes of a decoder layer they cost little beside the Gram matrix,
and a damped Hessian of 16k correlated tokens has a condition number that float32 does not survive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from q2n.exceptions import NumericalError


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues ``(C,)`` descending and eigenvectors ``(C, C)`` (columns), float64."""

    values: Tensor
    vectors: Tensor


@dataclass(frozen=True)
class InverseFactor:
    """``upper`` is ``U`` with ``(H + damping * mean(diag H) * I)^{-1} = U^T U``, float32 ``(C, C)``."""

    upper: Tensor
    damping: float


def require_finite(tensor: Tensor, what: str) -> None:
    """Raise :class:`NumericalError` naming ``what`` unless every entry is finite."""
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise NumericalError(f"{what}: {bad} of {tensor.numel()} entries are not finite")


def symmetric_spectrum(matrix: Tensor) -> Spectrum:
    """Full eigendecomposition of a symmetric ``(C, C)`` matrix in float64, largest first.

    Raises:
        NumericalError: the matrix is not finite.
    """
    require_finite(matrix, "matrix to be decomposed")
    values, vectors = torch.linalg.eigh(matrix.double())
    return Spectrum(values.flip(0), vectors.flip(1))


def damped_inverse_factor(hessian: Tensor, damping: Sequence[float]) -> InverseFactor:
    """Upper triangular ``U`` with ``U^T U = (H + d mean(diag H) I)^{-1}`` for the first ``d`` that works.

    With ``J`` the reversal and ``J H J = L L^T``, ``A = J L J`` is upper triangular and ``H = A A^T``, so
    ``U = A^{-1}``: one Cholesky and one triangular inverse, where inverting ``H`` and factorising again
    needs three factor-sized operations.

    Args:
        hessian: ``(C, C)`` symmetric; every diagonal entry positive.
        damping: fractions of the mean diagonal, tried in order.

    Raises:
        NumericalError: not finite, or no damping of the schedule makes it positive definite.
    """
    require_finite(hessian, "Hessian")
    reversed_hessian = hessian.double().flip(0, 1)
    mean_diagonal = reversed_hessian.diagonal().mean()
    for fraction in damping:
        damped = reversed_hessian.clone()
        damped.diagonal().add_(fraction * mean_diagonal)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
            inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
            return InverseFactor(inverse.flip(0, 1).float().contiguous(), fraction)
    tried = ", ".join(f"{fraction:g}" for fraction in damping)
    raise NumericalError(
        f"Hessian ({len(hessian)} columns) is not positive definite with damping {tried} of its mean diagonal; "
        "use more calibration text or extend baseline.percdamp_schedule"
    )


def quadratic_rows(rows: Tensor, gram: Tensor) -> Tensor:
    """``(row_i^T H row_i)_i``: for ``rows = W - Q`` the squared output error of every row; ``(R,)`` float64."""
    return ((rows @ gram) * rows).sum(dim=1, dtype=torch.float64)
