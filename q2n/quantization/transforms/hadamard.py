"""Hadamard transforms of any width ``n = K 2^m``: ``x -> x H^T / sqrt(n)``, ``H = H_K (x) Sylvester(2^m)``.

``H_K`` is the matrix of :mod:`q2n.quantization.transforms.hadamard_matrices`; orthogonal but not symmetric,
so the transform and its inverse differ. The power of two goes by products with one or two small Sylvester
matrices: more multiplications than butterflies, but three passes over memory instead of ``m``.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from q2n.quantization.transforms.hadamard_matrices import hadamard_matrix
from q2n.quantization.transforms.hadamard_orders import require_hadamard

DIRECT = 128
"""Largest Sylvester matrix that is multiplied at once; a larger one is a product of two of half its bits."""


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
