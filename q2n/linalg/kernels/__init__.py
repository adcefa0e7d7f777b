"""Loops over single numbers, compiled by numba; torch would need thousands of small operations for them.

Each kernel repeats a torch implementation elsewhere in the package, for contiguous float32 tensors on a CPU.
That implementation runs on other devices and where numba is missing, and tests compare the kernel with it.
Modules of this package compile when they are imported (numba takes a second to load), so they are imported
inside the functions that call them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

FloatBits = npt.NDArray[np.uint32]
"""Bits of float32 numbers."""

HalfBits = npt.NDArray[np.uint16]
"""Bits of bfloat16 numbers."""

StripArrays = tuple[Floats, Floats, Floats, Floats, Floats, Floats]
"""Columns that the column loop passes to a kernel: see :mod:`q2n.linalg.kernels.columns`."""

GroupedCodes = tuple[Floats, Floats, Floats, Places]
"""Codes ``(n, R)`` of columns, two parameters ``(G, R)`` per group, and the group of each column ``(n,)``."""


def usable(*tensors: Tensor) -> bool:
    """Return True if numba is installed and all tensors are float32 on a CPU."""
    return _installed() and all(
        tensor.device.type == "cpu" and tensor.is_floating_point() and tensor.element_size() == 4
        for tensor in tensors
    )


def usable_halves(tensor: Tensor) -> bool:
    """Return True if numba is installed and the tensor is bfloat16 on a CPU."""
    return _installed() and tensor.device.type == "cpu" and str(tensor.dtype) == "torch.bfloat16"


@cache
def _installed() -> bool:
    return find_spec("numba") is not None


def jit(function: F) -> F:
    """Compile at the first call and cache the machine code on disk; other threads run meanwhile.

    Every operation rounds as written, so that a kernel agrees with torch's operations in the same order. A
    kernel and the functions it calls belong in one file: the cache is renewed only when that file changes.

    Indices are not checked: a wrong one reads or overwrites other memory. A float that becomes an index is
    clamped before it is converted, as a float and with the bounds first: ``min(high, max(low, x))`` is
    ``low`` for a NaN, where ``max(x, low)`` would be the NaN.
    """
    return _compile(function, fastmath=False)


def jit_fused(function: F) -> F:
    """Compile like :func:`jit`, with fused multiply-add: for sums whose order is free."""
    return _compile(function, fastmath={"contract"})


def jit_summed(function: F) -> F:
    """Compile like :func:`jit_fused`, with sums in any order, so that several terms are added at a time."""
    return _compile(function, fastmath={"contract", "reassoc"})


def _compile(function: F, fastmath: bool | set[str]) -> F:
    import numba

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        return cast(F, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # numba finds no writable cache folder
        return cast(F, numba.njit(**options)(function))
