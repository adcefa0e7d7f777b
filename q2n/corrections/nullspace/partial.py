"""Leading eigenpairs of a symmetric matrix until a rank rule is met, by ARPACK's Lanczos iteration.

The trace is the sum of all eigenvalues and costs nothing. A rule that compares leading energy with the rest
therefore needs the leading eigenpairs only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from q2n.exceptions import NumericalError
from q2n.linalg.dense import Spectrum, converging
from q2n.linalg.kernels.threads import steady

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator

    from q2n.corrections.nullspace.rank import RankRule

FIRST = 32
"""Eigenpairs of the first round, and margin above the lower bound in later rounds."""
TOLERANCE = 1e-10
"""Residual at which ARPACK stops, relative to each eigenvalue."""
ACCEPTED = 1e-7
"""Largest residual ``||H v - sigma v|| / sigma_1`` that counts as converged."""


class NotPartialError(Exception):
    """Leading eigenpairs do not suffice or cannot be computed; the message is the reason."""


def leading_spectrum(matrix: Tensor, rule: RankRule, limit: int) -> Spectrum:
    """Return the leading eigenpairs of a positive semi-definite ``(C, C)`` matrix, as many as ``rule`` needs.

    ARPACK (:func:`scipy.sparse.linalg.eigsh`) runs in rounds, each on the matrix minus the known eigenpairs.
    After each round the missing energy gives a lower bound of the rank. A Rayleigh-Ritz step in the span of
    all rounds makes the vectors orthonormal and gives the residuals; ``Spectrum.residual`` is the largest.

    Args:
        matrix: finite, float32 or float64, which is also the precision of the iteration.
        rule: rank rule that decides how many eigenpairs are needed.
        limit: largest number of eigenpairs.

    Raises:
        NotPartialError: more than ``limit`` pairs, no convergence, or a larger eigenvalue was missed.
    """
    size, total = len(matrix), float(matrix.diagonal().double().sum())
    limit = min(limit, size - 2)
    vectors = matrix.new_zeros(size, 0)
    values = matrix.new_zeros(0, dtype=torch.float64)
    count = FIRST
    while True:
        count = min(count, limit)
        if count <= len(values):
            raise NotPartialError(f"rank above {limit}")
        values, vectors = _extended(matrix, values, vectors, count - len(values))
        rank = rule.of(values.clamp(min=0), size, total)
        if rank is not None:
            break
        bound = rule.at_least(values.clamp(min=0), size, total)
        if bound > limit:
            raise NotPartialError(f"rank at least {bound}")
        count = max(2 * len(values), bound + FIRST)
    return _checked(matrix, values, vectors, total)


def _extended(matrix: Tensor, values: Tensor, vectors: Tensor, more: int) -> tuple[Tensor, Tensor]:
    """Return the known eigenpairs and the ``more`` next ones, joined by a Rayleigh-Ritz step."""
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, eigsh

    operator = _deflated(matrix, values, vectors)
    start = np.random.default_rng(0).standard_normal(len(matrix)).astype(operator.dtype)
    tolerance = max(TOLERANCE, 10 * torch.finfo(matrix.dtype).eps)
    try:
        _, found = eigsh(operator, k=more, v0=start, tol=tolerance)
    except (ArpackNoConvergence, ArpackError) as error:
        raise NotPartialError(f"ARPACK: {error}") from None
    joined = torch.cat([vectors, torch.from_numpy(found).to(vectors)], dim=1)
    try:
        with converging("Rayleigh-Ritz step"), steady(joined.shape[1]):
            basis = torch.linalg.qr(joined).Q
            small, turn = torch.linalg.eigh(basis.T @ (matrix @ basis))
    except NumericalError as error:
        raise NotPartialError(str(error)) from None
    return small.flip(0).double(), basis @ turn.flip(1)


def _deflated(matrix: Tensor, values: Tensor, vectors: Tensor) -> LinearOperator:
    """Return the operator ``x -> H x - V diag(values) V^T x`` for NumPy vectors."""
    from scipy.sparse.linalg import LinearOperator

    weighted = vectors * values.to(vectors)

    def apply(x: np.ndarray) -> np.ndarray:
        column = torch.from_numpy(x.reshape(-1)).to(matrix)
        image = matrix @ column
        if vectors.shape[1]:
            image = image - weighted @ (vectors.T @ column)
        result: np.ndarray = image.cpu().numpy()
        return result

    dtype = np.float32 if matrix.dtype == torch.float32 else np.float64
    return LinearOperator(matrix.shape, matvec=apply, dtype=dtype)


def _checked(matrix: Tensor, values: Tensor, vectors: Tensor, total: float) -> Spectrum:
    """Return the eigenpairs with their residual, if they are converged and no leading one is missing.

    The largest of the remaining eigenvalues is at least their sum of squares over their sum. Both sums are
    known, from the Frobenius norm and the trace. If this bound exceeds the smallest eigenvalue found, a
    leading eigenvalue was missed.

    Raises:
        NotPartialError: the residual is too large, or an eigenvalue was missed.
    """
    residuals = (matrix @ vectors - vectors * values.to(vectors)).norm(dim=0)
    largest = float(values[0].abs())
    residual = float(residuals.max())
    if largest != 0:
        residual /= largest
    accepted = max(ACCEPTED, 100 * torch.finfo(matrix.dtype).eps)
    if not residual <= accepted:  # `not <=` catches NaN: subnormal matrices
        raise NotPartialError(f"residual {residual:.1e} of the largest eigenvalue")
    with steady():
        squares = float(matrix.double().square().sum())
    rest, rest_squares = total - float(values.sum()), squares - float(values.square().sum())
    if rest > accepted * total and rest_squares / rest > float(values[-1]) + accepted * largest:
        raise NotPartialError("a leading eigenvalue was missed")
    return Spectrum(values, vectors, total, "partial", residual)
