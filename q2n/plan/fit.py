"""Checks that the parts of a cell fit each other and the cell this machine's memory, with advice if not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from q2n.config import RunConfig
from q2n.exceptions import UnsupportedError
from q2n.models.shapes import Skeleton
from q2n.plan.memory import Memory, predict
from q2n.plan.workload import Workload

GIB = 2**30
"""Bytes per GiB."""


def misfit(config: RunConfig) -> UnsupportedError | None:
    """Return the error if model, baseline and correction are incompatible, or None if none is known yet."""
    try:
        config.correction.bind(config.baseline)
        skeleton: Any = Skeleton(config.model.shapes())
        config.baseline.check(skeleton)
    except UnsupportedError as error:
        return error
    except Exception:
        # The model's sizes are unknown, or the method checks more than sizes: the same check is repeated with
        # the model loaded.
        return None
    return None


def host_memory() -> int:
    """Return the bytes available to a process: the machine's memory, or less in containers and batch jobs."""
    import psutil

    return min([int(psutil.virtual_memory().total), *_group_limits()])


def device_memory(device: str) -> int | None:
    """Return the bytes of a CUDA device, or None for any other device or if torch finds none."""
    if device.startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    return None


def _group_limits() -> Iterator[int]:
    """Yield the memory limits (bytes) of this process's control groups (Linux, cgroups version 2 or 1)."""
    root = Path("/sys/fs/cgroup")
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("::")[2].strip()
    except OSError:
        return  # not Linux
    group = root / own.lstrip("/")
    files = [folder / "memory.max" for folder in (group, *group.parents) if folder.is_relative_to(root)]
    for file in (*files, root / "memory" / "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such file, or "max": no limit
            yield int(file.read_text(encoding="utf-8"))


def shortages(memory: Memory, host: int | None, device: int | None) -> list[str]:
    """Return a phrase for each kind of memory that is too small; unknown amounts (None) are not compared."""
    found = []
    if host is not None and memory.needed > host:
        found.append(f"{size(memory.needed)} of memory (peak in {memory.phase}; available: {size(host)})")
    if device is not None and memory.device is not None and memory.device > device:
        found.append(f"{size(memory.device)} of device memory (available: {size(device)})")
    return found


def advice(work: Workload, host: int | None, device: int | None) -> str:
    """Return one sentence: settings that would make the cell fit, the fewest first, and its memory then.

    Args:
        work: the cell.
        host: bytes of host memory, or None if unknown.
        device: bytes of device memory, or None if unknown.
    """
    changes = [(settings, predict(changed)) for settings, changed in _changes(work)]
    fitting = [
        f"{' '.join(settings)} ({size(memory.needed)})"
        for settings, memory in changes
        if not shortages(memory, host, device)
    ]
    if fitting:
        return f"settings that would make it fit: {' or '.join(fitting[:3])}"
    smallest = min(memory.needed for _, memory in changes)
    return (
        f"no setting makes it fit (minimum: {size(smallest)}); a lower calibration.nsamples or "
        "calibration.seqlen saves memory, but changes the result"
    )


def _changes(work: Workload) -> Iterator[tuple[list[str], Workload]]:
    """Yield settings that change storage or batches but not the result: single ones, then all together."""
    one_by_one = tuple(replace(windows, batch=1) for windows in work.windows)
    every: dict[str, dict[str, Any]] = {
        "calibration.batch_size=1": {"micro_batch": 1},
        "evaluation.batch_size=1": {"windows": one_by_one},
        "calibration.activations=disk": {"on_disk": True},
    }
    if work.streamable:
        every["streaming=on"] = {"streamed": True}
    useful = {setting: fields for setting, fields in every.items() if replace(work, **fields) != work}
    for setting, fields in useful.items():
        yield [setting], replace(work, **fields)
    together = {name: value for fields in useful.values() for name, value in fields.items()}
    yield [*useful], replace(work, **together)


def size(number: float) -> str:
    """Return a number of bytes as text, for example ``3.2 GiB``."""
    return f"{number / GIB:.1f} GiB"
