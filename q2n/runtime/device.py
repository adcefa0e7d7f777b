"""Device and dtype of a cell: the meaning of ``auto`` on this machine."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from q2n.exceptions import ConfigurationError

DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Files of which Linux has one wherever it has a CUDA or ROCm device; asking torch takes a second or more."""


def resolve_device(device: str) -> str:
    """Resolve ``auto`` to the first CUDA device if there is one, else to the CPU.

    Raises:
        ConfigurationError: torch sees no such device.
    """
    surely_none = sys.platform == "linux" and not any(os.path.exists(path) for path in DRIVERS)
    if device == "cpu" or (device == "auto" and surely_none):
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
    """Resolve ``auto`` to bfloat16 where the device multiplies bfloat16 natively, else to float32 or float16.

    A CPU without such instructions emulates them and is several times slower in bfloat16 than in float32.
    """
    if dtype != "auto":
        return dtype
    if device == "cpu" and "flags" in (
        fields := processor_fields()
    ):  # x86: other processors call this field otherwise
        return "bfloat16" if {"amx_tile", "avx512_bf16"} & {*fields["flags"].split()} else "float32"
    import torch

    if device.startswith("cuda"):
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    native = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    if device == "cpu" and any(getattr(torch.cpu, probe, lambda: False)() for probe in native):
        return "bfloat16"
    return "float32"


@cache
def processor_fields() -> dict[str, str]:
    """Return the first non-empty value of each field of ``/proc/cpuinfo``; empty where it does not exist."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if value.strip():
            fields.setdefault(key.strip(), value.strip())
    return fields
