"""Random orthogonal matrices as Kronecker products of small factors, never formed (QuIP).

Source: arXiv 2307.13304.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from q2n.linalg.kernels.threads import steady


@dataclass(frozen=True)
class KroneckerOrthogonal:
    """Orthogonal map ``V x = ((first (x) second) x[entry])[leave]``: permute, rotate, permute.

    ``first`` ``(p, p)`` and ``second`` ``(q, q)`` orthogonal, ``entry`` and ``leave`` permutations of ``p
    q``.
    """

    first: Tensor
    second: Tensor
    entry: Tensor
    leave: Tensor

    def to(self, device: torch.device) -> KroneckerOrthogonal:
        """Return a copy on ``device``."""
        parts = (self.first, self.second, self.entry, self.leave)
        return KroneckerOrthogonal(*(part.to(device) for part in parts))

    def apply(self, columns: Tensor) -> Tensor:
        """Compute ``V X`` for ``X`` = ``columns`` ``(n, m)``, in ``n (p + q)`` products per column.

        Both permutations move whole rows of ``X``, which are contiguous.
        """
        p, q = len(self.first), len(self.second)
        rotated = self.second.to(columns) @ columns.contiguous().index_select(0, self.entry).view(p, q, -1)
        rotated = self.first.to(columns) @ rotated.view(p, -1)
        return rotated.view(columns.shape).index_select(0, self.leave)

    def undo(self, columns: Tensor) -> Tensor:
        """Compute ``V^T X``, the inverse of :meth:`apply`."""
        p, q = len(self.first), len(self.second)
        inner = columns.contiguous().index_select(0, torch.argsort(self.leave)).view(p, q, -1)
        rotated = self.first.to(columns).T @ (self.second.to(columns).T @ inner).view(p, -1)
        return rotated.view(columns.shape).index_select(0, torch.argsort(self.entry))


def random_kronecker(size: int, generator: torch.Generator) -> KroneckerOrthogonal:
    """Draw Haar-distributed factors and uniform permutations on the CPU from ``generator``."""
    p, q = factor_sizes(size)
    return KroneckerOrthogonal(
        first=special_orthogonal(p, generator),
        second=special_orthogonal(q, generator),
        entry=torch.randperm(size, generator=generator),
        leave=torch.randperm(size, generator=generator),
    )


def factor_sizes(size: int) -> tuple[int, int]:
    """Return ``(p, q)`` with ``p q = size``: the products of every other prime factor, in ascending order.

    Near-square for powers of two (4096 -> 64, 64), as far as the prime factors allow otherwise
    (14336 -> 64, 224); for a prime ``(size, 1)``.
    """
    primes, rest, divisor = [], size, 2
    while divisor * divisor <= rest:
        while rest % divisor == 0:
            primes.append(divisor)
            rest //= divisor
        divisor += 1
    if rest > 1:
        primes.append(rest)
    return math.prod(primes[0::2]), math.prod(primes[1::2])


def random_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """Draw a Haar-distributed matrix of ``O(size)``, float64.

    The QR decomposition of a Gaussian matrix with a positive diagonal of ``R`` is Haar on ``O(size)``.
    """
    gaussian = torch.randn(size, size, generator=generator, dtype=torch.float64)
    with steady(size):
        factor, triangle = torch.linalg.qr(gaussian)
    orthogonal: Tensor = factor * triangle.diagonal().sign()
    return orthogonal


def special_orthogonal(size: int, generator: torch.Generator) -> Tensor:
    """Draw a Haar-distributed rotation of ``SO(size)``, float64.

    Changing the sign of one column of the matrices of ``O(size)`` with determinant -1 keeps them Haar.
    """
    rotation = random_orthogonal(size, generator)
    if float(torch.linalg.det(rotation)) < 0:
        rotation[:, 0] = -rotation[:, 0]
    return rotation
