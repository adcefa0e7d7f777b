"""Dense linear algebra the solvers and corrections stand on: pure functions of tensors.

Factorisations run in float64: at the sizes of a decoder layer they cost little beside the Gram matrix,
and a damped Hessian of 16k correlated tokens has a condition number that float32 does not survive.
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
"""Columns up to which the library's factorisation is used as it is."""

ROW_BLOCK = 2**18
"""Entries whose products are summed at a time."""


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues ``(m,)`` descending, float64, and eigenvectors ``(C, m)`` (columns) of a symmetric matrix.

    ``m`` is ``C`` unless only the leading ones were computed. Then ``total`` is the sum of all eigenvalues
    (``None``: that of ``values``). ``method`` says how it was made, ``residual`` how exact an iteration is:
    ``max ||H v - sigma v|| / sigma_1``.
    """

    values: Tensor
    vectors: Tensor
    total: float | None = None
    method: str = "eigh"
    residual: float | None = None


@dataclass(frozen=True)
class InverseFactor:
    """``upper`` is ``U`` with ``(H + damping * mean(diag H) * I)^{-1} = U^T U``, float32 ``(C, C)``."""

    upper: Tensor
    damping: float


SMALL_GRAM, LARGE_GRAM = 1e-25, 1e25
"""Largest entries of a Gram matrix between which its trace, its inverse and a hundredth of its mean diagonal
are all well inside float32's range."""

NO_GRAM = 1e-36
"""Largest entry below which the others are subnormal: such a matrix need not be positive definite, not even
with a hundredth of its mean diagonal."""

ENTRIES_AT_ONCE = 2**20
"""Entries of a large matrix that are worked on at a time (4 MiB of float32, several beside each other)."""


def require_finite(tensor: Tensor, what: str) -> None:
    """Raise :class:`NumericalError` naming ``what`` unless every entry is finite."""
    # One pass, and no copy in another dtype: only a sum that is not finite needs a look at every entry.
    if not bool(torch.isfinite(tensor.sum())) and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise NumericalError(f"{what}: {bad} of {tensor.numel()} entries are not finite")


def dtype_name(dtype: torch.dtype) -> str:
    """``float32``, as messages and the configuration say it."""
    return str(dtype).removeprefix("torch.")


@contextmanager
def converging(what: str) -> Iterator[None]:
    """Raise the :class:`NumericalError` that ``what`` failed where the library says so in its own way."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise NumericalError(f"{what} failed: {str(error).splitlines()[0]}") from error


def within_range(gram: Tensor) -> Tensor:
    """``gram`` ``(C, C)`` itself, unless its size alone would keep a solver that does not depend on it from
    working: divided by its largest entry where sums over it would leave float32's range, the identity if it
    is zero or has lost its digits. Inputs that are always zero prefer no rounding to another, so that each
    weight counts the same.
    """
    largest = gram.diagonal().max()
    size = float(largest)
    if size < NO_GRAM:
        return torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return gram if SMALL_GRAM < size < LARGE_GRAM else gram / largest


def alive(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """``hessian`` ``(C, C)`` with a one on the diagonal of dead columns (their input is always zero), and
    which columns these are, ``(C,)`` bool."""
    dead = hessian.diagonal() == 0
    return hessian + torch.diag(dead.to(hessian)) if bool(dead.any()) else hessian, dead


def symmetric_spectrum(matrix: Tensor, dtype: torch.dtype = torch.float64) -> Spectrum:
    """Full eigendecomposition of a symmetric ``(C, C)`` matrix in ``dtype``, largest first.

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
    """Upper triangular ``U`` with ``U^T U = (H + d mean(diag H) I)^{-1}`` for the first ``d`` that works.

    With ``J`` the reversal and ``J H J = L L^T``, ``A = J L J`` is upper triangular and ``H = A A^T``, so
    ``U = A^{-1}``: one factorisation, where inverting ``H`` and factorising again would need two.

    Args:
        hessian: ``(C, C)`` symmetric; every diagonal entry positive.
        damping: fractions of the mean diagonal, tried in order.

    Raises:
        NumericalError: not finite, or no damping of the schedule makes it positive definite.
    """
    require_finite(hessian, "Hessian")
    with timed("factorise"):
        for fraction in damping:
            matrix = hessian.flip(0, 1).double()
            matrix.diagonal().add_(fraction * matrix.diagonal().mean())
            if invert_factor(matrix):
                matrix = matrix.float()  # the wide one is gone before the next copy is made
                return InverseFactor(matrix.flip(0, 1), fraction)
    tried = ", ".join(f"{fraction:g}" for fraction in damping)
    raise NumericalError(
        f"Hessian ({len(hessian)} columns) is not positive definite with damping {tried} of its mean "
        "diagonal; use more calibration text or extend baseline.percdamp_schedule"
    )


def invert_factor(matrix: Tensor) -> bool:
    """Put ``L^{-1}`` in the place of ``matrix = L L^T`` ``(C, C)``; whether that is positive definite. If
    not, nothing of it is left either.

    By halves: with ``matrix = [[A, .], [B, D]]`` and ``L_A`` the factor of ``A``, the blocks of ``L`` are
    ``L_A``, ``M = B L_A^{-T}`` and the factor ``L_S`` of ``S = D - M M^T``; those of the inverse are
    ``L_A^{-1}``, ``-L_S^{-1} M L_A^{-1}`` and ``L_S^{-1}``. Nearly all of it is matrix products, which run
    several times faster than the library's own factorisation followed by a triangular solve against the
    identity.
    """
    return _factorise(matrix, None, matrix)


def lower_factor(matrix: Tensor) -> Tensor | None:
    """``L`` of :func:`invert_factor`, bit for bit; ``None`` if ``matrix`` is not positive definite."""
    lower = torch.zeros_like(matrix)
    return lower if _factorise(matrix, lower, torch.zeros_like(matrix), whole=False) else None


def _factorise(matrix: Tensor, lower: Tensor | None, inverse: Tensor, whole: bool = True) -> bool:
    """``L`` into ``lower``, zeros before, and its inverse into ``inverse``; whether it worked. Unless
    ``whole``, ``inverse`` has only what ``lower`` is made with. Without ``lower`` it is ``matrix``."""
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
    """``out = lower @ dense`` by halves, leaving out what ``lower`` has above its diagonal."""
    size = len(lower)
    if size <= SMALL_TRIANGLE:
        return torch.mm(lower, dense, out=out)
    first, last = slice(size // 2), slice(size // 2, size)
    _lower_times(lower[first, first], dense[first], out[first])
    _lower_times(lower[last, last], dense[last], out[last])
    out[last].addmm_(lower[last, first], dense[first])
    return out


def _times_lower(dense: Tensor, lower: Tensor, out: Tensor) -> Tensor:
    """``out = dense @ lower``, likewise."""
    size = len(lower)
    if size <= SMALL_TRIANGLE:
        return torch.mm(dense, lower, out=out)
    first, last = slice(size // 2), slice(size // 2, size)
    _times_lower(dense[:, first], lower[first, first], out[:, first])
    _times_lower(dense[:, last], lower[last, last], out[:, last])
    out[:, first].addmm_(dense[:, last], lower[last, first])
    return out


def _subtract_square(matrix: Tensor, factor: Tensor) -> None:
    """``matrix -= factor @ factor.T`` below the diagonal; what is above it is nobody's."""
    size = len(matrix)
    if size <= SMALL_TRIANGLE:
        matrix.addmm_(factor, factor.T, alpha=-1)
        return
    first, last = slice(size // 2), slice(size // 2, size)
    _subtract_square(matrix[first, first], factor[first])
    _subtract_square(matrix[last, last], factor[last])
    matrix[last, first].addmm_(factor[last], factor[first].T, alpha=-1)


def kth_smallest(values: Tensor, rank: int) -> Tensor:
    """The entry that would be at place ``rank`` (from 0) of all entries sorted; a scalar tensor.

    NumPy selects in a CPU tensor several times faster than :func:`torch.kthvalue`, which also finds the
    place.
    """
    flat = values.flatten()
    if flat.device.type != "cpu":
        return flat.kthvalue(rank + 1).values
    return torch.from_numpy(np.partition(flat.numpy(), rank)[rank : rank + 1])[0]


QUADRATIC_BLOCK = 288
"""Columns of the matrix taken at a time by :func:`quadratic_rows`."""


def quadratic_rows(rows: Tensor, gram: Tensor) -> Tensor:
    """``(row_i^T H row_i)_i`` with a symmetric ``H``: for ``rows = W - Q`` the squared output error of every
    row; ``(R,)`` float64. Blocks above the diagonal of ``H`` count twice, those below are not computed.

    ``gram`` is ``H`` ``(C, C)``, or its lower triangle as :func:`q2n.linalg.gram.triangle` packs it.
    """
    total = rows.new_zeros(len(rows), dtype=torch.float64)
    for own, block in _upper_blocks(gram, rows.shape[1]):
        image = rows[:, own] @ block[own]
        if own.start:
            image.addmm_(rows[:, : own.start], block[: own.start], alpha=2)
        total += image.mul_(rows[:, own]).sum(dim=1, dtype=torch.float64)
    return total


def _upper_blocks(gram: Tensor, width: int) -> Iterator[tuple[slice, Tensor]]:
    """Runs of columns of a symmetric matrix, and what they hold down to the diagonal."""
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
    """Scalar products of the rows of two ``(R, C)`` matrices, summed in float64; ``(R,)``.

    Some rows at a time, so that their products stay in the cache: ten times as fast on a large layer.
    """
    count = max(1, ROW_BLOCK // max(1, one.shape[1]))
    parts = zip(one.split(count), other.split(count), strict=True)
    return torch.cat([(ours * theirs).sum(dim=1, dtype=torch.float64) for ours, theirs in parts])


def row_parts(matrix: Tensor) -> list[slice]:
    """The rows of ``matrix`` ``(R, C)`` in runs of at most :data:`ENTRIES_AT_ONCE` entries: scratch as large
    as a large matrix itself would be most of the memory."""
    rows, columns = matrix.shape
    step = max(1, ENTRIES_AT_ONCE // columns)
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]
