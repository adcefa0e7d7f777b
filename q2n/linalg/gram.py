"""Gram matrix of a layer's inputs: half of the work of calibration besides the forward passes.

The matrix is symmetric, so only blocks that reach below the diagonal are computed: the matrix is halved down
to a few hundred columns, and one of four quarters is left out. bfloat16 inputs are not converted where oneDNN
can add their products up in float32 (:mod:`q2n.linalg.bf16_product`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from q2n.linalg import bf16_product as onednn

SMALLEST = 192
"""Columns at which halving stops: smaller products cost more time than halving saves."""

SMALLEST_TILES = 576
"""Columns at which halving stops on processors with AMX: tiles are slow to start."""

CHUNK = 512
"""Rows per product of bfloat16 matrices: round-off grows with the number of rows per product."""

STRIP = 1024
"""Rows per strip of a packed triangle; a strip has the columns up to its last row."""

AddProduct = Callable[[Tensor, Tensor, Tensor], None]
"""Function of ``total, left, right`` that adds ``left^T right`` to ``total``."""


def add_gram(total: Tensor, rows: Tensor) -> None:
    """Add ``rows^T rows`` to the lower triangle of ``total``; entries above it are undefined.

    Args:
        total: ``(C, C)`` float32.
        rows: ``(n, C)`` of any float dtype.
    """
    for part, add_product, smallest in _products(rows):
        _halves(total, part, add_product, smallest)


def triangle(width: int, like: Tensor) -> Tensor:
    """Return zeros for the packed lower triangle of a ``(width, width)`` matrix; float32 ``(n,)``.

    The triangle takes half the memory: strips of :data:`STRIP` rows, each up to the last column of its square
    on the diagonal. ``like`` gives the device.
    """
    count = sum(
        (min(first + STRIP, width) - first) * min(first + STRIP, width) for first in range(0, width, STRIP)
    )
    return like.new_zeros(count, dtype=torch.float32)


def strips(packed: Tensor, width: int) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of each strip of :func:`triangle`, and a view of the strip ``(rows, columns)``."""
    offset = 0
    for first in range(0, width, STRIP):
        last = min(first + STRIP, width)
        end = offset + (last - first) * last
        yield slice(first, last), packed[offset:end].view(last - first, last)
        offset = end


def add_triangle(packed: Tensor, rows: Tensor) -> None:
    """Add ``rows^T rows`` to a packed triangle; squares on the diagonal get their lower triangle only."""
    for part, add_product, smallest in _products(rows):
        for own, strip in strips(packed, rows.shape[1]):
            if own.start:
                add_product(strip[:, : own.start], part[:, own], part[:, : own.start])
            _halves(strip[:, own], part[:, own], add_product, smallest)


def complete_triangle(packed: Tensor, width: int) -> Tensor:
    """Make the squares on the diagonal of a packed triangle symmetric, in place."""
    for own, strip in strips(packed, width):
        complete(strip[:, own])
    return packed


def diagonal(form: Tensor, width: int) -> Tensor:
    """Return the diagonal ``(width,)`` of a Gram matrix, full or packed by :func:`triangle`."""
    if form.ndim == 2:
        return form.diagonal()
    return torch.cat([strip[:, own].diagonal() for own, strip in strips(form, width)])


def _products(rows: Tensor) -> Iterator[tuple[Tensor, AddProduct, int]]:
    """Yield parts of ``rows``, the function that adds their products, and the columns where halving stops."""
    if rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and onednn.available():
        smallest = SMALLEST_TILES if onednn.has_amx() else SMALLEST
        for part in rows.contiguous().split(CHUNK):
            yield part, onednn.add_product, smallest
    else:
        yield rows.float(), _add_product, SMALLEST


def complete(lower: Tensor) -> Tensor:
    """Copy the lower triangle of ``lower`` to the upper one, in place.

    There is no memory for a second matrix of a wide layer.
    """
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
