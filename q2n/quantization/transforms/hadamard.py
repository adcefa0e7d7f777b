"""Hadamard transforms of any width ``n = K 2^m``: ``x -> x H^T / sqrt(n)``, ``H = H_K (x) Sylvester(2^m)``.

``H_K`` is orthogonal but not symmetric, so the transform and its inverse differ. The power of two goes by
products with one or two small Sylvester matrices: more multiplications than butterflies, but three passes
over memory instead of ``m``.

QuaRot's official code multiplies with particular matrices (from N. J. A. Sloane's library); another matrix of
the same order is as orthogonal but gives other weights. All of them follow from three constructions, whose
signs and arrangement are chosen here so that the result is the tabulated matrix, entry by entry:

* Paley I, order ``q + 1`` with a prime ``q = 3 mod 4``: 12, 20, 60, 108, 140, and 40 as ``H_2 (x) H_20``;
* Paley II, order ``2 (q + 1)`` with a prime ``q = 1 mod 4``: 28, 36, 148;
* Williamson, four symmetric circulant blocks found by computer search: 52, 156, 172.

Orders outside this list are made by Paley's constructions where those exist.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from q2n.quantization.transforms.hadamard_orders import is_prime, require_hadamard

DIRECT = 128
"""Largest order of a Sylvester matrix multiplied at once; a larger one is a product of two smaller ones."""

WILLIAMSON_ROWS = {
    52: "1010011 1000111 1101001 1000010",
    156: "11100101000001001100 11110001001100001010 11100110100010100100 10001101010000011101",
    172: "1000110011110101110110 1101111110000101001101 1110101100101011110100 1100011110100100110000",
}
"""First half of the first row of each block (1 is +1, 0 is -1); the rows are palindromes after entry 0."""

WILLIAMSON_PATTERN = ((1, 2, 3, 4), (-2, 1, -4, 3), (-3, 4, 1, -2), (-4, -3, 2, 1))
"""Block row of the matrix: number and sign of the circulant block in each place."""


def hadamard_transform(rows: Tensor, *, inverse: bool = False) -> Tensor:
    """Compute ``x H^T / sqrt(n)`` of every row along the last axis, in the tensor's dtype.

    With ``inverse``, ``x H / sqrt(n)``.

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
    """Return ``H_order (x) Sylvester(size / order)``, orthonormal."""
    matrix: Tensor = (hadamard_matrix(order) if order > 1 else torch.ones(1, 1)).to(torch.float64)
    while len(matrix) < size:
        matrix = torch.kron(matrix, torch.tensor([[1, 1], [1, -1]], dtype=torch.float64))
    matrix = matrix / size**0.5
    return (matrix.T if transpose else matrix).contiguous().to(device, dtype)


@lru_cache(maxsize=16)
def hadamard_matrix(order: int) -> Tensor:
    """Return a Hadamard matrix, ``(order, order)`` int8 of +1 and -1; do not write into it.

    Raises:
        ValueError: the order is neither tabulated nor constructed; ask ``hadamard_orders.is_known`` first.
    """
    if order in WILLIAMSON_ROWS:
        return _williamson(WILLIAMSON_ROWS[order].split())
    if order == 40:
        smaller = _paley_first(19)
        return torch.kron(torch.tensor([[1, 1], [1, -1]], dtype=torch.int8), smaller)
    if is_prime(order - 1) and order % 4 == 0:
        return _paley_first(order - 1)
    if order % 4 == 0 and order // 2 % 4 == 2 and is_prime(order // 2 - 1):
        return _paley_second(order // 2 - 1)
    raise ValueError(f"no Hadamard matrix of order {order} is tabulated or constructed here")


def _residues(prime: int) -> Tensor:
    """Return the quadratic character of ``0 .. prime-1``, int8: 0, +1 for squares, -1 for others."""
    character = torch.full((prime,), -1, dtype=torch.int8)
    character[torch.arange(1, prime).square() % prime] = 1
    character[0] = 0
    return character


def _circulant(row: Tensor) -> Tensor:
    """Return the circulant matrix whose row ``i`` is ``row`` moved ``i`` places to the right."""
    places = torch.arange(len(row))
    return row[(places[None, :] - places[:, None]) % len(row)]


def _paley_first(prime: int) -> Tensor:
    matrix = torch.ones(prime + 1, prime + 1, dtype=torch.int8)
    matrix[0, 1:] = -1
    matrix[1:, 1:] = -_circulant(_residues(prime))
    matrix.diagonal().fill_(1)
    return matrix


def _paley_second(prime: int) -> Tensor:
    """Return ``[[S + I, S - I], [S - I, -S - I]]`` with ``S`` the bordered symmetric conference matrix."""
    conference = torch.ones(prime + 1, prime + 1, dtype=torch.int8)
    conference[1:, 1:] = _circulant(_residues(prime))
    conference[0, 0] = 0
    identity = torch.eye(prime + 1, dtype=torch.int8)
    plus, minus = conference + identity, conference - identity
    return torch.cat([torch.cat([plus, minus], dim=1), torch.cat([minus, -plus], dim=1)])


def _williamson(halves: list[str]) -> Tensor:
    blocks = []
    for half in halves:
        row = torch.tensor([1 if bit == "1" else -1 for bit in half + half[:0:-1]], dtype=torch.int8)
        blocks.append(_circulant(row))
    rows = [
        torch.cat([blocks[abs(place) - 1] * (1 if place > 0 else -1) for place in line], dim=1)
        for line in WILLIAMSON_PATTERN
    ]
    return torch.cat(rows)
