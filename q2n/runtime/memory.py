"""Memory of this process: how much it may still fill, and whether freed memory stays with it."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")

MEMORY_SHARE = 0.5
"""With ``streaming='auto'``: a larger model is streamed. What is left is for activations and the solver."""

MAPPED = 32 << 20
"""Bytes from which a block is still mapped by itself and given back at once; the most the library takes."""

TRIMMED = 256 << 20
"""Bytes that stay at the end of the heap."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


@cache
def keep_freed_memory() -> bool:
    """Keep freed memory with the process, so that its pages need not be cleared again; whether that could be
    set (glibc only).

    The C library gives every large block back to the system when it is freed. A forward pass frees and takes
    the same few megabytes thousands of times, and a page that comes from the system is zeroed first. Without
    this, cells take more time and nothing else changes (speed only, see :mod:`q2n.linalg`).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # Either limit alone would switch off that the library adapts the other.
    return bool(mallopt(_MMAP_THRESHOLD, MAPPED)) and bool(mallopt(_TRIM_THRESHOLD, TRIMMED))


def available_memory() -> int:
    """Bytes of memory this process may still fill: what the machine has free, or less where a control group
    (a container, a batch system's job) or a limit of the process allows less."""
    import psutil

    free = [psutil.virtual_memory().available, *_room_in_groups(), *_room_in_limits()]
    return max(0, int(min(free)))


def control_groups() -> Iterator[tuple[Path, bool]]:
    """Folders of the control groups that may count this process's memory, and whether they are of version 1.

    A container sees its own group as the root of the tree, so the root follows each. None but on Linux.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CONTROL_GROUPS / "memory" if controllers else CONTROL_GROUPS
        for folder in (root / place.lstrip("/"), root):
            yield folder, bool(controllers)


def _room_in_groups() -> Iterator[int]:
    for folder, first in control_groups():
        limit = folder / ("memory.limit_in_bytes" if first else "memory.max")
        usage = folder / ("memory.usage_in_bytes" if first else "memory.current")
        with contextlib.suppress(OSError, ValueError):  # no such group here; "max": no limit
            yield int(limit.read_text()) - int(usage.read_text())


def _room_in_limits() -> Iterator[int]:
    if sys.platform == "win32":
        return
    import resource

    import psutil

    memory = psutil.Process().memory_info()
    for name, used in (("RLIMIT_AS", memory.vms), ("RLIMIT_DATA", getattr(memory, "data", 0))):
        limit, _ = resource.getrlimit(getattr(resource, name))
        if limit != resource.RLIM_INFINITY:
            yield limit - used
