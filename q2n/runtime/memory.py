"""Memory that was freed stays with the process, so that its pages need not be cleared again.

The C library gives every large block back to the system when it is freed. A forward pass frees and takes the
same few megabytes thousands of times, and a page that comes from the system is zeroed first.
"""

from __future__ import annotations

import ctypes
import sys
from functools import cache

MAPPED = 32 << 20
"""Bytes from which a block is still mapped by itself and given back at once; the most the library takes."""

TRIMMED = 256 << 20
"""Bytes that stay at the end of the heap."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


@cache
def keep_freed_memory() -> bool:
    """Set the limits above for this process; whether they could be set (glibc only)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # Either limit alone would switch off that the library adapts the other.
    return bool(mallopt(_MMAP_THRESHOLD, MAPPED)) and bool(mallopt(_TRIM_THRESHOLD, TRIMMED))
