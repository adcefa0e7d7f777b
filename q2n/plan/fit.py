"""Checks that the parts of a cell fit each other and its memory this machine, and what would make it fit."""

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


def misfit(config: RunConfig) -> UnsupportedError | None:
    """Return why the cell can never run, or None if nothing speaks against it before its model is loaded."""
    try:
        config.correction.bind(config.baseline)
        skeleton: Any = Skeleton(config.model.shapes())
        config.baseline.check(skeleton)
    except UnsupportedError as error:
        return error
    except Exception:
        # The model's sizes are not at hand, or the method looks at more than sizes: the same check follows
        # with the model loaded.
        return None
    return None


def host_memory() -> int:
    """Bytes a process can have: the machine's memory, or the limit of its group (containers, batch jobs)."""
    import psutil

    return min([int(psutil.virtual_memory().total), *_group_limits()])


def device_memory(device: str) -> int | None:
    """Bytes of a CUDA device; None for any other, and where torch sees none."""
    if device.startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            return int(torch.cuda.get_device_properties(torch.device(device)).total_memory)
    return None


def _group_limits() -> Iterator[int]:
    """Limits of this process's control group and of those above it (Linux, version 2), or version 1's."""
    root = Path("/sys/fs/cgroup")
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("::")[2].strip()
    except OSError:
        return  # not Linux
    group = root / own.lstrip("/")
    files = [folder / "memory.max" for folder in (group, *group.parents) if folder.is_relative_to(root)]
    for file in (*files, root / "memory" / "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no such group here; "max": no limit
            yield int(file.read_text(encoding="utf-8"))


def shortages(memory: Memory, host: int | None, device: int | None) -> list[str]:
    """Return in words what the prediction exceeds of what there is (where that is known)."""
    found = []
    if host is not None and memory.needed > host:
        found.append(f"{size(memory.needed)} of memory (most in: {memory.phase}), and there are {size(host)}")
    if device is not None and memory.device is not None and memory.device > device:
        found.append(f"{size(memory.device)} of the device's memory, and there are {size(device)}")
    return found


def advice(work: Workload, host: int | None, device: int | None) -> str:
    """Return one sentence: settings that would make the cell fit, the fewest first, and the memory it then
    needs; or that no setting would."""
    changes = [(settings, predict(changed)) for settings, changed in _changes(work)]
    fitting = [
        f"{' '.join(settings)} ({size(memory.needed)})"
        for settings, memory in changes
        if not shortages(memory, host, device)
    ]
    if fitting:
        return f"what would make it fit: {' or '.join(fitting[:3])}"
    smallest = min(memory.needed for _, memory in changes)
    return (
        f"no setting makes it fit (the least is {size(smallest)}); fewer calibration.nsamples or a "
        "shorter calibration.seqlen change what is computed"
    )


def _changes(work: Workload) -> Iterator[tuple[list[str], Workload]]:
    """Settings that change where things are, not what is computed; single ones, then together."""
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
    """Return a number of bytes as text, ``3.2 GiB``."""
    return f"{number / GIB:.1f} GiB"
