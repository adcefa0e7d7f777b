"""Share of a worker in its machine: threads, and one device.

Only these settings are put into a worker's environment, and no environment is ever written to disk, because
it may contain keys.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from q2n.exceptions import ConfigurationError
from q2n.runtime.progress import CellProgress

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
DEVICES = "CUDA_VISIBLE_DEVICES"
CORES_PER_WORKER = 4
"""Cores per worker by default, without devices: a forward pass gains little from more cores."""


@dataclass(frozen=True)
class Worker:
    """Share of one worker; ``device`` is its one CUDA device, or None if the launcher assigns the devices."""

    threads: int
    device: str | None = None

    def settle(self, folder: str) -> None:
        """Turn this process into the worker; to be called before any use of torch or a device.

        Raises:
            FileNotFoundError: ``folder`` does not exist on this machine.
        """
        CellProgress.bars = False
        os.environ.update(self.environment())
        if self.device is not None:
            os.environ[DEVICES] = self.device
        torch = sys.modules.get("torch")
        if torch is not None:  # torch has read the variables when it was imported
            torch.set_num_threads(self.threads)
        try:
            os.chdir(folder)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{folder}: the folder of the command is not on {os.uname().nodename}; "
                "the nodes of a sweep need a shared file system"
            ) from None

    def environment(self) -> dict[str, str]:
        """Return the variables from which libraries read their number of threads when they are loaded."""
        return dict.fromkeys(THREAD_VARIABLES, str(self.threads))


def cores() -> int:
    """Return the number of cores of this process (affinity mask and cpuset count, a quota does not)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_devices() -> tuple[str, ...]:
    """Return the identifiers of the CUDA devices this process may use, as in ``CUDA_VISIBLE_DEVICES``."""
    import torch

    count = torch.cuda.device_count()
    given = [item.strip() for item in os.environ.get(DEVICES, "").split(",") if item.strip()]
    return tuple(given[:count]) if given else tuple(str(index) for index in range(count))


@dataclass(frozen=True)
class Share:
    """Division of one machine: ``workers`` at a time, ``threads`` per worker, devices in turn."""

    workers: int
    threads: int
    devices: tuple[str, ...] = ()

    def worker(self, slot: int) -> Worker:
        """Return the worker in a slot ``0 <= slot < workers``."""
        return Worker(self.threads, self.devices[slot % len(self.devices)] if self.devices else None)


def share(workers: int | None, threads: int | None, devices: Sequence[str | int] | None = None) -> Share:
    """Divide this machine among workers.

    Args:
        workers: number of workers, or None for one per device; without devices one per
            :data:`CORES_PER_WORKER` cores, at least two where there are two cores.
        threads: threads per worker, or None for ``OMP_NUM_THREADS`` if the user has set it, else
            cores / workers, at least 1.
        devices: identifiers of CUDA devices, or None for those that torch sees.

    Raises:
        ConfigurationError: there would be no worker, or no thread.
    """
    for key, value in {"n_jobs": workers, "threads": threads}.items():
        if value is not None and value < 1:
            raise ConfigurationError(f"hydra.launcher.{key}={value}: must be at least 1, or null")
    found = visible_devices() if devices is None else tuple(str(device) for device in devices)
    available = cores()
    if workers is None:
        workers = len(found) or max(available // CORES_PER_WORKER, min(available, 2))
    if threads is None:
        asked = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(asked) if asked.isdigit() and int(asked) else max(available // workers, 1)
    return Share(workers, threads, found)
