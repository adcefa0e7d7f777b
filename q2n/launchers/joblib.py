"""Launcher ``hydra/launcher=joblib``: cells side by side in the processes of one machine.

Joblib's pool breaks as a whole when one of its processes is killed, as the kernel does with a process that
takes too much memory. The cells that were running are then run again one at a time (from their checkpoints,
if there are any). A cell that is killed again while it runs alone is the cause and counts as lost; the others
continue.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn

from q2n.launchers.base import Job, Lost, WorkerLauncher, say
from q2n.launchers.workers import Share, share

_slots: dict[Path, tuple[int, Any]] = {}
"""Slot of this worker with its lock, by the pool's folder."""


class JoblibLauncher(WorkerLauncher):
    """Launcher of ``n_jobs`` workers, each with its share of the threads and one device."""

    package = "joblib"

    def __init__(
        self,
        n_jobs: int | None = None,
        threads: int | None = None,
        devices: Sequence[str | int] | None = None,
    ) -> None:
        self.asked = n_jobs, threads, devices

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, JobReturn | Lost]]:
        """Run the jobs in a pool; after a break, run the jobs that were running again, one at a time."""
        division = share(*self.asked)
        say(f"{len(jobs)} cells in {division.workers} workers, {division.threads} threads each")
        at_once = 1 if division.workers == 1 else len(jobs)
        with tempfile.TemporaryDirectory(prefix="q2n-joblib-") as folder:
            waiting = {job.number: job for job in jobs}
            while waiting:
                reason = ""
                for number, result in _pool(list(waiting.values())[:at_once], division, Path(folder)):
                    if isinstance(result, Lost):
                        reason = result.reason
                    else:
                        del waiting[number]
                        yield number, result
                suspects = [job for job in waiting.values() if _mark(Path(folder), job).exists()]
                if reason and not suspects:  # the workers die before they start a cell
                    yield from ((number, Lost(reason)) for number in waiting)
                    return
                for job in suspects:
                    del waiting[job.number]
                    say(f"a worker died ({reason}); running again, alone: {job.label}")
                    yield from _pool([job], division, Path(folder))


def _pool(jobs: list[Job], division: Share, folder: Path) -> Iterator[tuple[int, JobReturn | Lost]]:
    """Yield results as they come; if the pool breaks, also :class:`Lost` for one unfinished job."""
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.process_executor import BrokenProcessPool

    left = {job.number for job in jobs}
    # n_jobs=1 would run the cell in this process
    with parallel_config("loky", n_jobs=max(division.workers, 2), inner_max_num_threads=division.threads):
        results = Parallel(return_as="generator_unordered", pre_dispatch="n_jobs", batch_size=1)(
            delayed(_work)(job, division, folder) for job in jobs
        )
        try:
            for number, result in results:
                left.discard(number)
                yield number, result
        except BrokenProcessPool as error:
            codes = str(error).rpartition("exit codes of the workers are ")[2].strip("{}. ")
            yield min(left), Lost(f"worker ended with {codes or error}")


def _work(job: Job, division: Share, folder: Path) -> tuple[int, JobReturn]:
    """Run a cell in a worker."""
    _mark(folder, job).touch()
    return job.number, job.run(division.worker(_slot(folder, division.workers)))


def _mark(folder: Path, job: Job) -> Path:
    """Return the path of a file that exists once a worker has started the cell."""
    return folder / f"{job.number}.taken"


def _slot(folder: Path, slots: int) -> int:
    """Take the lowest free slot of this pool; the kernel frees a slot when its worker dies."""
    from filelock import FileLock, Timeout

    if folder not in _slots:
        for slot in range(slots):
            lock = FileLock(folder / f"{slot}.slot")
            try:
                lock.acquire(blocking=False)
            except Timeout:
                continue
            _slots[folder] = slot, lock
            break
        else:  # a worker that is ending still holds its slot
            return 0
    return _slots[folder][0]
