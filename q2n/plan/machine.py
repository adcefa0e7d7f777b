"""How much memory this machine has."""

from __future__ import annotations

import os
from pathlib import Path


def host_memory() -> int | None:
    """Bytes a process can have: the machine's memory, or the limit of its group (containers, batch jobs)."""
    found = [size for size in (_physical(), *_group_limits()) if size]
    return min(found, default=None)


def device_memory(device: str) -> int | None:
    """Bytes of a CUDA device; None for any other, and where torch sees none."""
    if not device.startswith("cuda"):
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)


def _physical() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None  # Windows


def _group_limits() -> list[int]:
    """Limits of this process's control group and of those above it (Linux, version 2), or version 1's."""
    root = Path("/sys/fs/cgroup")
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("::")[2].strip().lstrip("/")
    except OSError:
        return []
    folders = [root / own, *(root / own).parents] if own else [root]
    files = [folder / "memory.max" for folder in folders if folder.is_relative_to(root)]
    limits = []
    for file in (*files, root / "memory" / "memory.limit_in_bytes"):
        try:
            text = file.read_text(encoding="utf-8").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < 2**60:
            limits.append(int(text))
    return limits
