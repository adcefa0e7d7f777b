"""Hadamard transforms of any width ``n = K 2^m``: ``x -> x H^T / sqrt(n)``, ``H = H_K (x) Sylvester(2^m)``.

``H_K`` is the matrix of :mod:`q2n.transforms.hadamard_matrices`; orthogonal but not symmetric, so the
transform and its inverse differ. The power of two goes by products with one or two small Sylvester matrices:
more multiplications than butterflies, but three passes over memory instead of ``m``.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from q2n.exceptions import UnsupportedError
from q2n.transforms.hadamard_matrices import TABULATED, hadamard_matrix, is_known

DIRECT = 128
"""Largest Sylvester matrix that is multiplied at once; a larger one is a product of two of half its bits."""


def hadamard_order(width: int) -> int | None:
    """``K`` of ``width = K 2^m``, or None where no Hadamard matrix of this width is known here.

    A tabulated order comes first, as in the official code; else the smallest that can be constructed.
    """
    odd = width
    while odd > 1 and odd % 2 == 0:
        odd //= 2
    if odd == 1:
        return 1
    candidates = [odd << power for power in range(width.bit_length()) if width % (odd << power) == 0]
    tabulated = [order for order in TABULATED if order in candidates]
    return next((order for order in (*tabulated, *candidates) if is_known(order)), None)


def require_hadamard(width: int, what: str, advice: str = "") -> int:
    """:func:`hadamard_order`.

    Raises:
        UnsupportedError: there is none; names the nearest widths that would fit, and gives ``advice``.
    """
    order = hadamard_order(width)
    if order is None:
        below = next(size for size in range(width, 0, -1) if hadamard_order(size) is not None)
        above = next(size for size in range(width, 2 * width + 1) if hadamard_order(size) is not None)
        raise UnsupportedError(
            f"{what} is {width}: no Hadamard matrix of that size is known here (nearest that would fit: "
            f"{below} and {above}; in general a power of two, times 12, 20, 28, 36, ...){advice}"
        )
    return order


def hadamard_transform(rows: Tensor, *, inverse: bool = False) -> Tensor:
    """``x H^T / sqrt(n)`` of every row along the last axis, in the tensor's dtype; ``inverse``: ``x H /
    sqrt(n)``.

    Raises:
        UnsupportedError: no Hadamard matrix of this width is known.
    """
    width = rows.shape[-1]
    order = require_hadamard(width, "the width to be transformed")
    power = width // order
    inner = power if power <= DIRECT else 1 << -(-(power.bit_length() - 1) // 2)
    result = rows.reshape(-1, inner) @ _scaled(1, inner, rows.dtype, rows.device, False)
    if inner < power:
        outer = power // inner
        result = _scaled(1, outer, rows.dtype, rows.device, False) @ result.view(-1, outer, inner)
    if order > 1:
        result = _scaled(order, order, rows.dtype, rows.device, inverse) @ result.view(-1, order, power)
    return result.reshape(rows.shape)


@lru_cache(maxsize=64)
def _scaled(order: int, size: int, dtype: torch.dtype, device: torch.device, transpose: bool) -> Tensor:
    """``H_order (x) Sylvester(size / order)``, orthonormal."""
    matrix: Tensor = (hadamard_matrix(order) if order > 1 else torch.ones(1, 1)).to(torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(matrix, torch.tensor([[1, 1], [1, -1]], dtype=torch.float64))
    matrix = matrix / size**0.5
    return (matrix.T if transpose else matrix).contiguous().to(device, dtype)
