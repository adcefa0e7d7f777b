"""Loops over single numbers, compiled by numba; torch would need thousands of small operations for them.

Each kernel repeats what a torch implementation elsewhere in the package defines, for contiguous float32
tensors on a CPU. That implementation is what runs on other devices and where numba is missing, and what the
kernel is tested against. Modules of this package compile when they are imported (numba takes a second to
load), so they are imported where they are used.
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
"""Floats as their bits."""

HalfBits = npt.NDArray[np.uint16]
"""Bfloat16 numbers as their bits."""

StripArrays = tuple[Floats, Floats, Floats, Floats, Floats, Floats]
"""Columns as the column loop hands them to a kernel: see :mod:`q2n.linalg.kernels.columns`."""

GroupedCodes = tuple[Floats, Floats, Floats, Places]
"""Codes ``(n, R)`` of columns, two parameters ``(G, R)`` per group, and each column's group ``(n,)``."""


def usable(*tensors: Tensor) -> bool:
    """Whether kernels can work on these tensors here."""
    return _installed() and all(
        tensor.device.type == "cpu" and tensor.is_floating_point() and tensor.element_size() == 4
        for tensor in tensors
    )


def usable_halves(tensor: Tensor) -> bool:
    """Whether a kernel for the bits of bfloat16 numbers can work on the tensor."""
    return _installed() and tensor.device.type == "cpu" and str(tensor.dtype) == "torch.bfloat16"


@cache
def _installed() -> bool:
    return find_spec("numba") is not None


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
    import numba

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        return cast(F, numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no folder that can be written
        return cast(F, numba.njit(**options)(function))
