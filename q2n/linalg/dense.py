"""Dense linear algebra for solvers and corrections: pure functions of tensors.

Factorisations run in float64: at the sizes of a decoder layer they cost little beside the Gram matrix,
and float32 is too narrow for the condition number of a damped Hessian of 16k correlated tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from q2n.exceptions import NumericalError
from q2n.linalg.gram import strips
from q2n.linalg.kernels.threads import steady
from q2n.runtime.clock import timed

SMALL_TRIANGLE = 192
"""Largest number of columns that is factorised directly, not by halves."""

ROW_BLOCK = 2**18
"""Entries per block of :func:`row_dots`, whose products then stay in the cache."""


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues ``(m,)`` descending, float64, and eigenvectors ``(C, m)`` (columns) of a symmetric matrix.

    ``m`` is ``C`` unless only the leading ones were computed. ``total`` is the sum of all ``C`` eigenvalues,
    or None if it is the sum of ``values``. ``method`` names the algorithm. ``residual`` is the accuracy of an
    iterative method, ``max ||H v - sigma v|| / sigma_1``.
    """

    values: Tensor
    vectors: Tensor
    total: float | None = None
    method: str = "eigh"
    residual: float | None = None


@dataclass(frozen=True)
class InverseFactor:
    """Upper triangular ``U``, float32 ``(C, C)``, with ``U^T U = (H + damping mean(diag H) I)^{-1}``."""

    upper: Tensor
    damping: float


SMALL_GRAM, LARGE_GRAM = 1e-25, 1e25
"""Bounds of the largest entry of a Gram matrix: between them its trace, its inverse and a hundredth of its
mean diagonal are all well inside float32's range."""

NO_GRAM = 1e-36
"""Bound of the largest entry below which the others are subnormal: such a matrix need not be positive
definite, not even with a hundredth of its mean diagonal added."""

ENTRIES_AT_ONCE = 2**20
"""Entries of a large matrix per block (4 MiB of float32 per temporary)."""


def require_finite(tensor: Tensor, what: str) -> None:
    """Check that every entry is finite.

    Raises:
        NumericalError: an entry is NaN or infinite; the message begins with ``what``.
    """
    # One pass without a copy: entries are looked at one by one only if their sum is not finite.
    if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise NumericalError(f"{what}: {bad} of {tensor.numel()} entries are not finite")


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype's name as messages and the configuration spell it: ``float32``."""
    return str(dtype).removeprefix("torch.")


@contextmanager
def converging(what: str) -> Iterator[None]:
    """Turn torch's own error inside the block into a :class:`NumericalError` that says ``what`` failed."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise NumericalError(f"{what} failed: {str(error).splitlines()[0]}") from error


def within_range(gram: Tensor) -> Tensor:
    """Return a Gram matrix ``(C, C)`` within float32's range, for solvers that do not depend on its scale.

    ``gram`` itself in most cases; divided by its largest entry if sums over it would leave float32's range;
    the identity if the matrix is zero or its entries have lost their digits. Inputs that are always zero
    prefer no rounding to another, so with the identity each weight counts the same.
    """
    largest = gram.diagonal().max()
    size = float(largest)
    if size < NO_GRAM:
        return torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return gram if SMALL_GRAM < size < LARGE_GRAM else gram / largest


def alive(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Set the diagonal of dead columns, whose input is always zero, to one.

    Returns:
        The matrix ``(C, C)``, a copy if there are dead columns, and the mask of dead columns ``(C,)`` bool.
    """
    dead = hessian.diagonal() == 0
    return hessian + torch.diag(dead.to(hessian)) if bool(dead.any()) else hessian, dead


def symmetric_spectrum(matrix: Tensor, dtype: torch.dtype = torch.float64) -> Spectrum:
    """Compute all eigenvalues and eigenvectors of a symmetric ``(C, C)`` matrix in ``dtype``, largest first.

    Raises:
        NumericalError: the matrix is not finite in ``dtype``, or the iteration does not converge.
    """
    matrix = matrix.to(dtype)
    require_finite(matrix, f"matrix to be decomposed in {dtype_name(dtype)}")
    what = f"eigendecomposition ({len(matrix)} columns, {dtype_name(dtype)})"
    with converging(what), steady(len(matrix)):
        values, vectors = torch.linalg.eigh(matrix)
    return Spectrum(values.flip(0).double(), vectors.flip(1))


def damped_inverse_factor(hessian: Tensor, damping: Sequence[float]) -> InverseFactor:
    """Factorise the damped inverse Hessian as ``U^T U = (H + d mean(diag H) I)^{-1}``.

    With ``J`` the reversal and ``J H J = L L^T``, ``A = J L J`` is upper triangular and ``H = A A^T``, so
    ``U = A^{-1}``: one factorisation, where inverting ``H`` and factorising again would need two.

    Args:
        hessian: ``(C, C)`` symmetric; every diagonal entry positive.
        damping: fractions ``d`` of the mean diagonal, tried in order; the first that works is used.

    Raises:
        NumericalError: the Hessian is not finite, or not positive definite with any damping of the schedule.
    """
    require_finite(hessian, "Hessian")
    with timed("factorise"):
        for fraction in damping:
            matrix = hessian.flip(0, 1).double()
            matrix.diagonal().add_(fraction * matrix.diagonal().mean())
            if invert_factor(matrix):
                matrix = matrix.float()  # frees the float64 matrix before the next copy is made
                return InverseFactor(matrix.flip(0, 1), fraction)
    tried = ", ".join(f"{fraction:g}" for fraction in damping)
    raise NumericalError(
        f"Hessian ({len(hessian)} columns) is not positive definite with damping {tried} of its mean "
        "diagonal; use more calibration text or extend baseline.percdamp_schedule"
    )


def invert_factor(matrix: Tensor) -> bool:
    """Overwrite ``matrix = L L^T`` ``(C, C)`` with ``L^{-1}``; return False if it is not positive definite.

    If False is returned, the contents of ``matrix`` are undefined.

    The matrix is divided into halves: with ``matrix = [[A, .], [B, D]]`` and ``L_A`` the factor of ``A``, the
    blocks of ``L`` are ``L_A``, ``M = B L_A^{-T}`` and the factor ``L_S`` of ``S = D - M M^T``; those of the
    inverse are ``L_A^{-1}``, ``-L_S^{-1} M L_A^{-1}`` and ``L_S^{-1}``. Nearly all the work is matrix
    products, which run several times faster than the library's factorisation followed by a triangular solve
    against the identity.
    """
    return _factorise(matrix, None, matrix)


def lower_factor(matrix: Tensor) -> Tensor | None:
    """Return ``L`` of :func:`invert_factor`, bit for bit, or None if ``matrix`` is not positive definite."""
    lower = torch.zeros_like(matrix)
    return lower if _factorise(matrix, lower, torch.zeros_like(matrix), whole=False) else None


def _factorise(matrix: Tensor, lower: Tensor | None, inverse: Tensor, whole: bool = True) -> bool:
    """Write ``L`` into ``lower`` and its inverse into ``inverse``; return False if it does not exist.

    Args:
        matrix: ``(C, C)``; overwritten if ``lower`` is None.
        lower: zeros ``(C, C)``, or None if ``L`` is not wanted.
        inverse: ``(C, C)``; is ``matrix`` itself if ``lower`` is None.
        whole: compute all of the inverse; if False, only the blocks that ``lower`` depends on.
    """
    size = len(matrix)
    if size <= SMALL_TRIANGLE:
        with steady(size):
            factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            return False
        if lower is not None:
            lower.copy_(factor)
        if whole:
            identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
            inverse.copy_(torch.linalg.solve_triangular(factor, identity, upper=False))
        return True
    first, last = slice(size // 2), slice(size // 2, size)
    above = inverse[first, first]
    if not _factorise(matrix[first, first], None if lower is None else lower[first, first], above):
        return False
    # middle = matrix[last, first] @ above.T
    turned = matrix.new_empty(size // 2, size - size // 2)
    middle = _lower_times(above, matrix[last, first].T, turned).T
    rest = matrix[last, last] if lower is None else matrix[last, last].clone()
    _subtract_square(rest, middle)
    if not _factorise(rest, None if lower is None else lower[last, last], inverse[last, last], whole):
        return False
    if lower is not None:
        lower[last, first] = middle
    if whole:
        # inverse[last, first] = -inverse[last, last] @ middle @ above
        product = _times_lower(middle, above, torch.empty_like(middle, memory_format=torch.contiguous_format))
        _lower_times(inverse[last, last], product, inverse[last, first]).neg_()
        inverse[first, last] = 0
    return True


def _lower_times(lower: Tensor, dense: Tensor, out: Tensor) -> Tensor:
    """Compute ``out = lower @ dense`` by halves, without the zeros above the diagonal of ``lower``."""
    size = len(lower)
    if size <= SMALL_TRIANGLE:
        return torch.mm(lower, dense, out=out)
    first, last = slice(size // 2), slice(size // 2, size)
    _lower_times(lower[first, first], dense[first], out[first])
    _lower_times(lower[last, last], dense[last], out[last])
    out[last].addmm_(lower[last, first], dense[first])
    return out


def _times_lower(dense: Tensor, lower: Tensor, out: Tensor) -> Tensor:
    """Compute ``out = dense @ lower`` by halves, without the zeros above the diagonal of ``lower``."""
    size = len(lower)
    if size <= SMALL_TRIANGLE:
        return torch.mm(dense, lower, out=out)
    first, last = slice(size // 2), slice(size // 2, size)
    _times_lower(dense[:, first], lower[first, first], out[:, first])
    _times_lower(dense[:, last], lower[last, last], out[:, last])
    out[:, first].addmm_(dense[:, last], lower[last, first])
    return out


def _subtract_square(matrix: Tensor, factor: Tensor) -> None:
    """Compute ``matrix -= factor @ factor.T`` on and below the diagonal; entries above it are undefined."""
    size = len(matrix)
    if size <= SMALL_TRIANGLE:
        matrix.addmm_(factor, factor.T, alpha=-1)
        return
    first, last = slice(size // 2), slice(size // 2, size)
    _subtract_square(matrix[first, first], factor[first])
    _subtract_square(matrix[last, last], factor[last])
    matrix[last, first].addmm_(factor[last], factor[first].T, alpha=-1)


def kth_smallest(values: Tensor, rank: int) -> Tensor:
    """Return the entry at position ``rank`` (from 0) of all entries sorted; a scalar tensor.

    On a CPU, NumPy's selection is several times faster than :func:`torch.kthvalue`, which also returns the
    index.
    """
    flat = values.flatten()
    if flat.device.type != "cpu":
        return flat.kthvalue(rank + 1).values
    return torch.from_numpy(np.partition(flat.numpy(), rank)[rank : rank + 1])[0]


QUADRATIC_BLOCK = 288
"""Columns of the matrix per block in :func:`quadratic_rows`."""


def quadratic_rows(rows: Tensor, gram: Tensor) -> Tensor:
    """Compute ``row_i^T H row_i`` for every row: the squared output error of each row if ``rows = W - Q``.

    Blocks above the diagonal of ``H`` count twice, those below it are not computed.

    Args:
        rows: ``(R, C)``.
        gram: symmetric ``H`` ``(C, C)``, or its lower triangle packed by :func:`q2n.linalg.gram.triangle`.

    Returns:
        ``(R,)`` float64.
    """
    total = rows.new_zeros(len(rows), dtype=torch.float64)
    for own, block in _upper_blocks(gram, rows.shape[1]):
        image = rows[:, own] @ block[own]
        if own.start:
            image.addmm_(rows[:, : own.start], block[: own.start], alpha=2)
        total += image.mul_(rows[:, own]).sum(dim=1, dtype=torch.float64)
    return total


def _upper_blocks(gram: Tensor, width: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield runs of columns of a symmetric matrix with their entries down to the diagonal block."""
    for part, strip in [(slice(0, width), gram)] if gram.ndim == 2 else strips(gram, width):
        for first in range(part.start, part.stop, QUADRATIC_BLOCK):
            last = min(first + QUADRATIC_BLOCK, part.stop)
            columns = (
                strip[:last, first:last]
                if gram.ndim == 2
                else strip[first - part.start : last - part.start, :last].T
            )
            yield slice(first, last), columns


def row_dots(one: Tensor, other: Tensor) -> Tensor:
    """Return the scalar products of the rows of two ``(R, C)`` matrices, summed in float64; ``(R,)``.

    A block of rows is multiplied at a time, so that the products stay in the cache: ten times as fast on a
    large layer.
    """
    count = max(1, ROW_BLOCK // max(1, one.shape[1]))
    parts = zip(one.split(count), other.split(count), strict=True)
    return torch.cat([(ours * theirs).sum(dim=1, dtype=torch.float64) for ours, theirs in parts])


def row_parts(matrix: Tensor) -> list[slice]:
    """Divide the rows of ``matrix`` ``(R, C)`` into runs of at most :data:`ENTRIES_AT_ONCE` entries.

    Temporaries as large as a large matrix itself would dominate the peak memory.
    """
    rows, columns = matrix.shape
    step = max(1, ENTRIES_AT_ONCE // columns)
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]
