"""Launchers ``submitit_slurm`` and ``submitit_local``: a cell is a Slurm job, or a process of its own.

Submitit pickles a job into its folder, runs it there, and writes the result beside it. Slurm's warning before
the time limit, and a preemption, put the job back into the queue, and the cell resumes from its checkpoint.
The state of jobs without a result is read from ``squeue``: ``sacct``, which submitit uses, needs an
accounting database that small clusters do not have.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from q2n.launchers.base import Job, Lost, WorkerLauncher, say
from q2n.launchers.workers import Worker, share

SHARED = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "stderr_to_stdout")
"""Parameters of submitit for every kind of cluster; the names of others begin with the kind."""

GONE_S = 30.0
"""Seconds out of the queue after which a job without a result is lost: shared file systems may lag."""


class Task:
    """Callable that submitit runs: the cell, and its resubmission."""

    def __call__(self, job: Job, worker: Worker) -> JobReturn:
        """Run the cell."""
        return job.run(worker)

    def checkpoint(self, job: Job, worker: Worker) -> Any:
        """Return the resubmission of the same job, which resumes from the cell's own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job, worker)


class SubmititLauncher(WorkerLauncher):
    """Common part of the two launchers; ``parameters`` are those of submitit and sbatch, with their names."""

    package = "submitit"
    cluster = ""

    def __init__(
        self, submitit_folder: str, max_num_timeout: int = 0, poll_s: float = 2.0, **parameters: Any
    ) -> None:
        self.folder, self.max_num_timeout, self.poll_s = submitit_folder, max_num_timeout, poll_s
        self.parameters: dict[str, Any] = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in parameters.items()
            if value is not None
        }

    def executor(self) -> Any:
        """Return a submitit executor with the configured parameters."""
        import submitit

        requeued = {f"{self.cluster}_max_num_timeout": self.max_num_timeout}
        executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster, **requeued)
        executor.update_parameters(
            **{
                key if key in SHARED else f"{self.cluster}_{key}": value
                for key, value in self.parameters.items()
            }
        )
        return executor


class LocalLauncher(SubmititLauncher):
    """Launcher of processes on this machine, ``n_jobs`` at a time; a dead process costs only its cell."""

    cluster = "local"

    def __init__(
        self,
        n_jobs: int | None = None,
        threads: int | None = None,
        devices: Sequence[str | int] | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__(**parameters)
        self.asked = n_jobs, threads, devices

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, JobReturn | Lost]]:
        """Run one process per job, and yield results as they come."""
        division = share(*self.asked)
        say(f"{len(jobs)} cells, {division.workers} at a time, {division.threads} threads each")
        executor, waiting = self.executor(), list(jobs)
        running: dict[int, tuple[Job, Any]] = {}  # by slot
        while waiting or running:
            for slot in set(range(division.workers)) - running.keys():
                if waiting:
                    job = waiting.pop(0)
                    running[slot] = job, executor.submit(Task(), job, division.worker(slot))
            for slot, (job, submitted) in list(running.items()):
                if submitted.done():
                    del running[slot]
                    yield job.number, _result(submitted)
            time.sleep(0.1)


class SlurmLauncher(SubmititLauncher):
    """Launcher of one job array, ``array_parallelism`` jobs at a time, with the resources given to sbatch."""

    cluster = "slurm"

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, JobReturn | Lost]]:
        """Submit the array, poll the queue, and yield results as they come."""
        worker = Worker(int(self.parameters.get("cpus_per_task", 1)))
        executor = self.executor()
        submitted = executor.map_array(Task(), jobs, [worker] * len(jobs))
        waiting = {item.job_id: (job, item) for job, item in zip(jobs, submitted, strict=True)}
        array = next(iter(waiting)).partition("_")[0]
        say(f"{len(jobs)} cells as job {array} of Slurm; logs: {Path(self.folder).parent}")
        seen = dict.fromkeys(waiting, time.monotonic())
        try:
            while waiting:
                time.sleep(self.poll_s)
                now, queued = time.monotonic(), _queued(array)
                seen.update({name: now for name in waiting if queued is None or name in queued})
                for name, (job, item) in list(waiting.items()):
                    if item.paths.result_pickle.exists() or now - seen[name] > GONE_S:
                        del waiting[name]
                        yield job.number, _result(item)
        except KeyboardInterrupt:
            say(
                f"{len(waiting)} cells stay in Slurm's queue (scancel {array} ends them); "
                "the same command, given again, reuses their results"
            )
            raise


def _queued(array: str) -> set[str] | None:
    """Return the jobs of the array that are waiting or running, or None if Slurm does not answer."""
    asked = ["squeue", "--noheader", "--array", f"--jobs={array}", "--format=%i"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return set(done.stdout.split())
    return (
        set() if "Invalid job id" in done.stderr else None
    )  # Slurm has forgotten the whole array, so it has ended


def _result(submitted: Any) -> JobReturn | Lost:
    """Return the result of a job that has ended, or the last line of its error."""
    from submitit.core.utils import pickle_load

    outcome, result = "error", "no result was written"
    if submitted.paths.result_pickle.exists():
        outcome, result = pickle_load(submitted.paths.result_pickle)
    if outcome == "error":
        last = str(result).strip().splitlines()[-1]
        return Lost(f"job {submitted.job_id}: {last}; its log: {submitted.paths.stderr}")
    assert isinstance(result, JobReturn)
    return result
