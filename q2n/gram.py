"""The Gram matrix of a layer's inputs: half of what calibration computes beside the forward passes.

It is symmetric, so only blocks that reach below the diagonal are computed: the matrix is halved down to
:data:`SMALLEST` columns, and of four quarters one is left out. Where inputs are bfloat16 and oneDNN can add
products of such numbers up in float32 (:mod:`q2n.onednn`), they are not converted.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from q2n import onednn

SMALLEST = 192
"""Columns at which halving stops: smaller products run slower than they save."""

CHUNK = 512
"""Rows a product of bfloat16 matrices adds up before it goes into the sum: round-off grows with them."""

AddProduct = Callable[[Tensor, Tensor, Tensor], None]


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add ``rows^T rows`` to the lower triangle of ``total``; what lies above is left undefined.

    Args:
        total: ``(C, C)`` float32.
        rows: ``(n, C)`` of any float dtype.
    """
    if rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and onednn.available():
        for part in rows.contiguous().split(CHUNK):
            _halves(total, part, onednn.add_product)
    else:
        _halves(total, rows.float(), _add_product)


def complete(lower: Tensor) -> Tensor:
    """Make ``lower`` the symmetric matrix whose lower triangle it holds, in place: of a wide layer there is
    no room for a second one."""
    for first in range(0, len(lower), SMALLEST):
        last = min(first + SMALLEST, len(lower))
        square = lower[first:last, first:last]
        square.copy_(square.tril() + square.tril(-1).T)
        lower[:first, first:last] = lower[first:last, :first].T
    return lower


def _halves(total: Tensor, rows: Tensor, add_product: AddProduct) -> None:
    width = rows.shape[1]
    if width <= SMALLEST:
        add_product(total, rows, rows)
        return
    first, last = slice(width // 2), slice(width // 2, width)
    _halves(total[first, first], rows[:, first], add_product)
    _halves(total[last, last], rows[:, last], add_product)
    add_product(total[last, first], rows[:, last], rows[:, first])


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    total.addmm_(left.T, right)
