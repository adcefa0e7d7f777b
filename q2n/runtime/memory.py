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
"""Share of free memory above which ``streaming=auto`` streams a model; activations and the solver need the
rest."""

MAPPED = 32 << 20
"""Bytes from which malloc maps a block separately and returns it when freed: glibc's largest threshold."""

TRIMMED = 256 << 20
"""Free bytes at the end of the heap that malloc keeps rather than return."""

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


@cache
def keep_freed_memory() -> bool:
    """Keep freed memory in the process, so that its pages are not zeroed again; False if that is impossible.

    The C library (glibc) returns every large block to the system when it is freed. A forward pass frees and
    takes the same few megabytes thousands of times, and the system zeroes each page it hands out. The setting
    saves time and changes nothing else (speed only, see :mod:`q2n.linalg`).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # Both limits: setting either one stops glibc from adapting the other.
    return bool(mallopt(_MMAP_THRESHOLD, MAPPED)) and bool(mallopt(_TRIM_THRESHOLD, TRIMMED))


def available_memory() -> int:
    """Return the bytes of memory that this process may still fill.

    That is the machine's free memory, or less where a control group (a container, a batch system's job) or a
    limit of the process allows less.
    """
    import psutil

    free = [psutil.virtual_memory().available, *_room_in_groups(), *_room_in_limits()]
    return max(0, int(min(free)))


def control_groups() -> Iterator[tuple[Path, bool]]:
    """Yield the folders of the control groups that may count this process's memory; none except on Linux.

    Yields:
        ``(folder, is_version_1)``. A container sees its own group as the root of the tree, so the root
        follows each group.
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
