"""The Gram matrix of a layer's inputs: half of what calibration computes beside the forward passes.

It is symmetric, so only blocks that reach below the diagonal are computed: the matrix is halved down to a few
hundred columns, and of four quarters one is left out. Where inputs are bfloat16 and oneDNN can add
products of such numbers up in float32 (:mod:`q2n.linalg.bf16_product`), they are not converted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from q2n.linalg import bf16_product as onednn

SMALLEST = 192
"""Columns at which halving stops: smaller products run slower than they save."""

SMALLEST_TILES = 576
"""The same where the processor multiplies tiles: these are slow to start."""

CHUNK = 512
"""Rows a product of bfloat16 matrices adds up before it goes into the sum: round-off grows with them."""

STRIP = 1024
"""Rows of a packed triangle that lie together: all columns up to the last of them."""

AddProduct = Callable[[Tensor, Tensor, Tensor], None]


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add ``rows^T rows`` to the lower triangle of ``total``; what lies above is left undefined.

    Args:
        total: ``(C, C)`` float32.
        rows: ``(n, C)`` of any float dtype.
    """
    for part, add_product, smallest in _products(rows):
        _halves(total, part, add_product, smallest)


def triangle(width: int, like: Tensor) -> Tensor:
    """Zeros for the lower triangle of a ``(width, width)`` matrix, packed into half the memory: strips of
    :data:`STRIP` rows, each up to the last column of its square on the diagonal; float32 ``(n,)``."""
    count = sum(
        (min(first + STRIP, width) - first) * min(first + STRIP, width) for first in range(0, width, STRIP)
    )
    return like.new_zeros(count, dtype=torch.float32)


def strips(packed: Tensor, width: int) -> Iterator[tuple[slice, Tensor]]:
    """The rows of every strip of :func:`triangle`, and the strip ``(rows, columns)``."""
    offset = 0
    for first in range(0, width, STRIP):
        last = min(first + STRIP, width)
        end = offset + (last - first) * last
        yield slice(first, last), packed[offset:end].view(last - first, last)
        offset = end


def add_triangle(packed: Tensor, rows: Tensor) -> None:
    """:func:`add_gram` into a packed triangle; of squares on the diagonal, the lower triangle."""
    for part, add_product, smallest in _products(rows):
        for own, strip in strips(packed, rows.shape[1]):
            if own.start:
                add_product(strip[:, : own.start], part[:, own], part[:, : own.start])
            _halves(strip[:, own], part[:, own], add_product, smallest)


def complete_triangle(packed: Tensor, width: int) -> Tensor:
    """:func:`complete` for the squares on the diagonal."""
    for own, strip in strips(packed, width):
        complete(strip[:, own])
    return packed


def diagonal(form: Tensor, width: int) -> Tensor:
    """The diagonal ``(width,)`` of a Gram matrix, whole or packed by :func:`triangle`."""
    if form.ndim == 2:
        return form.diagonal()
    return torch.cat([strip[:, own].diagonal() for own, strip in strips(form, width)])


def _products(rows: Tensor) -> Iterator[tuple[Tensor, AddProduct, int]]:
    """Parts of ``rows``, what adds up their products, and the columns at which halving stops."""
    if rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and onednn.available():
        smallest = SMALLEST_TILES if onednn.has_amx() else SMALLEST
        for part in rows.contiguous().split(CHUNK):
            yield part, onednn.add_product, smallest
    else:
        yield rows.float(), _add_product, SMALLEST


def complete(lower: Tensor) -> Tensor:
    """Make ``lower`` the symmetric matrix whose lower triangle it holds, in place: of a wide layer there is
    no room for a second one."""
    for first in range(0, len(lower), SMALLEST):
        last = min(first + SMALLEST, len(lower))
        square = lower[first:last, first:last]
        square.copy_(square.tril() + square.tril(-1).T)
        lower[:first, first:last] = lower[first:last, :first].T
    return lower


def _halves(total: Tensor, rows: Tensor, add_product: AddProduct, smallest: int) -> None:
    width = rows.shape[1]
    if width <= smallest:
        add_product(total, rows, rows)
        return
    first, last = slice(width // 2), slice(width // 2, width)
    _halves(total[first, first], rows[:, first], add_product, smallest)
    _halves(total[last, last], rows[:, last], add_product, smallest)
    add_product(total[last, first], rows[:, last], rows[:, first])


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    total.addmm_(left.T, right)
