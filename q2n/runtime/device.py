"""Which device and dtype a cell runs in: what ``auto`` means on this machine."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from q2n.exceptions import ConfigurationError

DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""One of these is there where Linux can have a CUDA (or ROCm) device; asking torch takes a second or more."""


MEMORY_SHARE = 0.5
"""With ``streaming='auto'``: a larger model is streamed. What is left is for activations and the solver."""


def resolve_device(device: str) -> str:
    """``auto`` is the first CUDA device if there is one, else the CPU.

    Raises:
        ConfigurationError: the device asked for is not there.
    """
    if device == "cpu" or (device == "auto" and _surely_none()):
        return "cpu"
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        count = torch.cuda.device_count()
        if int(device.partition(":")[2] or 0) >= count:
            raise ConfigurationError(
                f"device={device}: torch sees {count} CUDA devices; use device=cpu or auto"
            )
    if device == "mps" and not torch.backends.mps.is_available():
        raise ConfigurationError("device=mps: torch sees no such device; use device=cpu or auto")
    return device


def resolve_dtype(dtype: str, device: str) -> str:
    """``auto`` is bfloat16 where the device multiplies bfloat16 natively, else float32.

    A CPU without such instructions emulates them and is several times slower in bfloat16 than in float32.
    """
    if dtype != "auto":
        return dtype
    flags = _processor_flags() if device == "cpu" else None
    if flags is not None:
        return "bfloat16" if {"amx_tile", "avx512_bf16"} & flags else "float32"
    import torch

    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    native = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    if device == "cpu" and any(getattr(torch.cpu, probe, lambda: False)() for probe in native):
        return "bfloat16"
    return "float32"


def _surely_none() -> bool:
    return sys.platform == "linux" and not any(os.path.exists(path) for path in DRIVERS)


def _processor_flags() -> set[str] | None:
    """What a processor of Intel's family says it can do; None where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    lines = [line for line in text.splitlines() if line.startswith("flags")]
    return set(lines[0].partition(":")[2].split()) if lines else None


def available_memory() -> int:
    """Bytes of memory this process may still fill: what the machine has free, or less where a control group
    (a container, a batch system's job) or a limit of the process allows less."""
    import psutil

    free = [psutil.virtual_memory().available, *_room_in_groups(), *_room_in_limits()]
    return max(0, int(min(free)))


def _room_in_groups() -> Iterator[int]:
    try:
        entries = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return  # not Linux
    for _, controllers, place in entries:
        root, limit, usage = (
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes")
            if controllers
            else ("/sys/fs/cgroup", "memory.max", "memory.current")
        )
        if controllers and "memory" not in controllers.split(","):
            continue
        # a container sees its own group as the root of the tree
        for folder in (Path(root + place), Path(root)):
            with contextlib.suppress(OSError, ValueError):  # no such group here; "max": no limit
                yield int((folder / limit).read_text()) - int((folder / usage).read_text())


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
