"""oneDNN's product of bfloat16 matrices with a float32 result, which torch does not offer on a CPU.

Speed only, see :mod:`q2n.linalg`.

The library comes with the package ``onednn-cpu-gomp`` (Linux on x86-64; optional) and runs in torch's own
threads. A product of two bfloat16 numbers is exact in float32, so the result is as accurate as after a
conversion to float32; the processor multiplies twice as many bfloat16 numbers at a time.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

PACKAGE = "onednn-cpu-gomp"
_LIBRARY = "libdnnl.so.3"

Gemm = Callable[..., int]


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left^T right`` to ``total`` in place; call only where :func:`available`.

    All matrices are on the CPU and contiguous along their last dimension.

    Args:
        total: ``(a, b)`` float32.
        left: ``(n, a)`` bfloat16.
        right: ``(n, b)`` bfloat16.

    Raises:
        RuntimeError: oneDNN reports an error.
    """
    gemm = _gemm()
    assert gemm is not None
    failed = gemm(
        b"T",
        b"N",
        *(left.shape[1], right.shape[1], left.shape[0]),
        1.0,
        *_matrix(left),
        *_matrix(right),
        1.0,
        *_matrix(total),
    )
    if failed:
        raise RuntimeError(f"oneDNN's product failed with status {failed}")


def _matrix(tensor: Tensor) -> tuple[int, int]:
    """Return the address and the row stride of a matrix.

    The stride that torch reports for a single row may be any number; oneDNN refuses a stride below the number
    of columns.
    """
    return tensor.data_ptr(), max(tensor.stride(0), tensor.shape[1])


@cache
def has_amx() -> bool:
    """Return True if the processor has AMX tiles, which multiply bfloat16 many times as fast as float32."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def available() -> bool:
    """Return True if the package is installed, the processor has bfloat16 and a test product is exact."""
    return _gemm() is not None


@cache
def _gemm() -> Gemm | None:
    if not (has_amx() or getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()):
        return None
    try:
        files = importlib.metadata.files(PACKAGE) or []
        path = next(file.locate() for file in files if file.name == _LIBRARY)
        gemm = ctypes.CDLL(str(path)).dnnl_gemm_bf16bf16f32
    except (importlib.metadata.PackageNotFoundError, StopIteration, OSError, AttributeError):
        return None
    size, pointer, scalar = ctypes.c_int64, ctypes.c_void_p, ctypes.c_float
    matrix = (pointer, size)
    shape = (ctypes.c_char, ctypes.c_char, size, size, size)
    gemm.argtypes = (*shape, scalar, *matrix, *matrix, scalar, *matrix)
    gemm.restype = ctypes.c_int
    return gemm if _is_right(gemm) else None


def _is_right(gemm: Gemm) -> bool:
    """Return True if a product of small integers is exact, as it must be."""
    left = (torch.arange(70).reshape(10, 7) % 11 - 5).bfloat16()
    right = (torch.arange(50).reshape(10, 5) % 7 - 3).bfloat16()
    total = torch.ones(7, 5)
    arguments = (b"T", b"N", 7, 5, 10, 1.0, left.data_ptr(), 7, right.data_ptr(), 5, 1.0, total.data_ptr(), 5)
    return gemm(*arguments) == 0 and torch.equal(total, 1 + left.float().T @ right.float())
