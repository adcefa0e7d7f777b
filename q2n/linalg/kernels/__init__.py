"""Loops over single numbers, compiled by numba; torch would need thousands of small operations for them.

Each kernel repeats what a torch implementation elsewhere in the package defines, for contiguous float32
tensors on a CPU. That implementation is what runs on other devices and where numba is missing, and what the
kernel is tested against. Modules of this package import numba, so they are imported where they are used.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]


def usable(*tensors: Tensor) -> bool:
    """Whether kernels can work on these tensors here."""
    return _installed() and all(tensor.device.type == "cpu" and _is_single(tensor) for tensor in tensors)


def usable_halves(tensor: Tensor) -> bool:
    """Whether a kernel for the bits of bfloat16 numbers can work on the tensor."""
    return _installed() and tensor.device.type == "cpu" and str(tensor.dtype) == "torch.bfloat16"


def _is_single(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.element_size() == 4


@cache
def _installed() -> bool:
    return find_spec("numba") is not None
