"""How kernels are compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def jit(function: F) -> F:
    """Compile at the first call and keep the machine code on disk; other threads run meanwhile.

    Every operation rounds as it is written, so that a kernel gives what torch's operations in the same order
    give. A kernel and what it calls belong into one file: what is on disk is renewed when that file changes.

    Nothing stands between a wrong index and the memory it points to. A float that becomes an index is clamped
    before it is converted, as a float and with the bounds first: ``min(high, max(low, x))`` is ``low`` for a
    NaN, where ``max(x, low)`` would be the NaN.
    """
    return _compile(function, fastmath=False)


def jit_fused(function: F) -> F:
    """:func:`jit`, but a product and the sum it goes into may round once: for sums whose order is free."""
    return _compile(function, fastmath={"contract"})


def jit_summed(function: F) -> F:
    """:func:`jit_fused`, and terms of a sum may be added in another order: several at a time."""
    return _compile(function, fastmath={"contract", "reassoc"})


def _compile(function: F, fastmath: bool | set[str]) -> F:
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        return cast(F, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no folder that can be written
        return cast(F, numba.njit(**options)(function))
