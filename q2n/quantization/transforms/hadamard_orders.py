"""Widths with a known Hadamard matrix; imports no torch, so that plans can check widths quickly."""

from __future__ import annotations

from functools import cache

from q2n.exceptions import UnsupportedError

TABULATED = (172, 156, 148, 140, 108, 60, 52, 36, 28, 40, 20, 12)
"""Orders with a matrix in QuaRot's official code, in the order in which divisors of a width are tried."""


def hadamard_order(width: int) -> int | None:
    """Return ``K`` of ``width = K 2^m``, or None if no Hadamard matrix of this width is known here.

    A tabulated order comes first, as in the official code; else the smallest that can be constructed.
    """
    odd = width // (width & -width)  # width & -width: the largest power of two that divides it
    if odd == 1:
        return 1
    candidates = [odd << power for power in range(width.bit_length()) if width % (odd << power) == 0]
    tabulated = [order for order in TABULATED if order in candidates]
    return next((order for order in (*tabulated, *candidates) if is_known(order)), None)


def require_hadamard(width: int, what: str, advice: str = "") -> int:
    """Return :func:`hadamard_order` of a width that must have one.

    Args:
        width: width of the transform.
        what: name of the width, the subject of the message.
        advice: end of the message.

    Raises:
        UnsupportedError: there is none; the message contains the nearest widths that fit.
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


def is_known(order: int) -> bool:
    """Return True if :func:`q2n.quantization.transforms.hadamard.hadamard_matrix` has this order."""
    if order in TABULATED:
        return True
    half = order // 2
    return order % 4 == 0 and (is_prime(order - 1) or (half % 4 == 2 and is_prime(half - 1)))


@cache
def is_prime(number: int) -> bool:
    """Return True if ``number`` is prime, by trial division."""
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
