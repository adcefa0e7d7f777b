"""What the engines that spread the cells of a sweep over workers have in common.

An engine is a Hydra launcher. It only decides where a cell runs: what came of it is read back from disk by
:mod:`q2n.command.outcomes`, whoever ran it, so a worker that dies costs its cell and nothing else.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from q2n.launchers.extras import own_names
from q2n.launchers.loss import record_loss
from q2n.launchers.workers import Worker
from q2n.records.notes import UNWRITTEN

_NOTES = "notes"
"""What a job brings home, where the disk had no room for it."""


@dataclass(frozen=True)
class Job:
    """A cell on its way to a worker; all of it can be pickled."""

    context: HydraContext
    config: DictConfig
    task: TaskFunction
    overrides: tuple[str, ...]
    number: int
    singletons: dict[Any, Any]
    folder: str
    """Where the command was given: relative paths are meant from here."""
    label: str
    """``#3 bits=2 q2n=on``: what tells it from the other cells."""

    def composed(self) -> DictConfig:
        """The cell's configuration, with its ``hydra`` section."""
        composed = self.context.config_loader.load_sweep_config(self.config, list(self.overrides))
        with open_dict(composed):
            composed.hydra.job.id = f"{composed.hydra.job.name}_{self.number}"
            composed.hydra.job.num = self.number
        return composed

    def run(self, worker: Worker) -> JobReturn:
        """Run the cell in this process, as Hydra's own launcher would.

        Raises:
            FileNotFoundError: the folder of the command is not there (no shared file system).
        """
        worker.settle(self.folder)
        setup_globals()
        Singleton.set_state(self.singletons)
        own_names()
        composed = self.composed()
        HydraConfig.instance().set_config(composed)
        returned = run_job(
            hydra_context=self.context,
            task_function=self.task,
            config=composed,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        setattr(returned, _NOTES, dict(UNWRITTEN))
        return returned


@dataclass(frozen=True)
class Lost:
    """Why a cell did not come back."""

    reason: str


class Engine(Launcher):
    """A launcher whose cells run in other processes."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all cells and wait for them; one that is lost returns no objective and stops no other."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        jobs = self._jobs(job_overrides, initial_job_idx)
        returned: dict[int, JobReturn] = {}
        for number, result in self.run(jobs):
            job = jobs[number - initial_job_idx]
            if isinstance(result, Lost):
                say(f"lost: {job.label}: {result.reason}")
                record_loss(job.composed(), result.reason)
                returned[number] = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
            else:
                returned[number] = result
                UNWRITTEN.update(getattr(result, _NOTES, {}))
            say(f"{len(returned)} of {len(jobs)} cells have come back: {job.label}")
        return [returned[job.number] for job in jobs]

    def _jobs(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Job]:
        singletons, folder = Singleton.get_state(), str(Path.cwd())
        common = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set()
        jobs = []
        for number, overrides in enumerate(job_overrides, first):
            own = [item for item in filter_overrides(overrides) if item not in common]
            label = f"#{number} {' '.join(own)}"
            jobs.append(
                Job(self.context, self.config, self.task, tuple(overrides), number, singletons, folder, label)
            )
        return jobs

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, JobReturn | Lost]]:
        """Each job's number with what came of it, in the order in which they end."""


def say(message: str) -> None:
    """A line for the person who waits; standard output is for the table."""
    print(message, file=sys.stderr, flush=True)
