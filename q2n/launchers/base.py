"""Common parts of this project's launchers and sweepers.

A launcher spreads the cells of a sweep over workers. It only decides where a cell runs: outcomes are read
back from disk by :mod:`q2n.command.outcomes`, wherever the cell ran, so a worker that dies costs its cell and
nothing else.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from q2n.config import RunConfig
from q2n.exceptions import ConfigurationError
from q2n.launchers.workers import Worker
from q2n.records.killed import ERROR_TYPE, give_up
from q2n.records.notes import UNWRITTEN, VARIABLE, Note, State, leave_note, read_note

PLUGINS = "hydra_plugins.q2n_engines"
PACKAGES = {"joblib": "joblib", "ray": "ray", "submitit": "slurm", "optuna": "optuna"}
"""Extra of q2n that installs a package, by package."""

OPTIONS = {
    "launcher": ("joblib", "ray", "submitit_local", "submitit_slurm"),
    "sweeper": ("basic", "grid", "optuna"),
}
"""Options of this project below ``conf/hydra``, by group."""

_NOTES = "notes"
"""Attribute of a job's result with the notes for which the disk had no room."""


@dataclass(frozen=True)
class Job:
    """Cell on its way to a worker; all fields can be pickled."""

    context: HydraContext
    config: DictConfig
    task: TaskFunction
    overrides: tuple[str, ...]
    number: int
    singletons: dict[Any, Any]
    folder: str
    """Folder of the command, to which relative paths refer."""
    label: str
    """``#3 bits=2 q2n=on``: number and overrides that distinguish the cell from the others."""

    def composed(self) -> DictConfig:
        """Compose the cell's configuration, with its ``hydra`` section."""
        composed = self.context.config_loader.load_sweep_config(self.config, list(self.overrides))
        with open_dict(composed):
            composed.hydra.job.id = f"{composed.hydra.job.name}_{self.number}"
            composed.hydra.job.num = self.number
        return composed

    def run(self, worker: Worker) -> JobReturn:
        """Run the cell in this process, as Hydra's own launcher would.

        Raises:
            FileNotFoundError: the folder of the command does not exist here (no shared file system).
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
    """Result of a cell whose worker died, with the reason."""

    reason: str


class BatchSweeper(Sweeper):
    """Sweeper that gives its launcher one batch of cells after the other."""

    _number = 0

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep Hydra's configuration and create the chosen launcher."""
        self._config, self._loader = config, hydra_context.config_loader
        self._launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def launch(self, cells: Sequence[Sequence[str]]) -> Sequence[JobReturn]:
        """Run the next cells, numbered from where the last batch ended, and wait for them."""
        returned = self._launcher.launch(cells, initial_job_idx=self._number)
        self._number += len(cells)
        return returned


class WorkerLauncher(Launcher):
    """Launcher whose cells run in other processes."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra passes on for the jobs."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all cells and wait for them; a lost cell returns no objective and does not stop the others."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        singletons, here = Singleton.get_state(), str(Path.cwd())
        common = set.intersection(*map(set, job_overrides)) if len(job_overrides) > 1 else set()
        jobs = []
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            own = [item for item in filter_overrides(overrides) if item not in common]
            label = f"#{number} {' '.join(own)}"
            jobs.append(
                Job(self.context, self.config, self.task, tuple(overrides), number, singletons, here, label)
            )
        returned: dict[int, JobReturn] = {}
        for number, result in self.run(jobs):
            job = jobs[number - initial_job_idx]
            if isinstance(result, Lost):
                say(f"lost: {job.label}: {result.reason}")
                _record_loss(job.composed(), result.reason)
                returned[number] = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
            else:
                returned[number] = result
                UNWRITTEN.update(getattr(result, _NOTES, {}))
            say(f"{len(returned)} of {len(jobs)} cells done: {job.label}")
        return [returned[job.number] for job in jobs]

    @abstractmethod
    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[int, JobReturn | Lost]]:
        """Yield each job's number with its result, in the order in which the jobs end."""


def check(hydra: Mapping[str, Any]) -> None:
    """Check that the packages of the chosen launcher and sweeper are installed, before anything starts.

    Args:
        hydra: the composed ``hydra`` section.

    Raises:
        ConfigurationError: a package is not installed; the message has the command that installs it.
    """
    for part in OPTIONS:
        module, _, name = hydra[part].get("_target_", "").rpartition(".")
        if module != PLUGINS:
            continue
        package = getattr(getattr(import_module(module), name), "package", None)
        if package is not None and find_spec(package) is None:
            choice, extra = hydra["runtime"]["choices"][f"hydra/{part}"], PACKAGES[package]
            raise ConfigurationError(
                f"hydra/{part}={choice}: needs the package {package}, which is not installed: "
                f"pip install 'q2n[{extra}]' "
                f"(in a checkout: .venv/bin/pip install -c constraints.txt -e '.[{extra}]')"
            )


def own_names() -> None:
    """Use this project's options where Hydra's plugins of the same names are installed.

    Hydra would validate ``conf/hydra/launcher/joblib.yaml`` against the option ``joblib`` that the package
    hydra-joblib-launcher puts into its store, and refuse it.
    """
    Plugins.instance()  # finds the plugins, which fill the store
    stored = ConfigStore.instance().repo.get("hydra", {})
    for part, names in OPTIONS.items():
        for name in names:
            stored.get(part, {}).pop(f"{name}.yaml", None)


def _record_loss(composed: DictConfig, reason: str) -> None:
    """Write the outcome of a cell whose worker died.

    A cell that was started gets a failure, a cell that was not started gets a note, and a cell that had ended
    gets nothing.

    Args:
        composed: the cell's configuration with its ``hydra`` section.
        reason: the launcher's reason for the loss.
    """
    sweep = OmegaConf.select(composed, f"hydra.job.env_set.{VARIABLE}")
    config = RunConfig.from_hydra(composed, composed.hydra)
    folder = config.scalars.results_dir
    if sweep is None:
        return
    note = read_note(folder, sweep, config.key)
    if note is None:
        why = f"{ERROR_TYPE}: {reason}"
        leave_note(folder, sweep, Note(ref=config.ref(), decision=State.FAILED, reason=why, exit_code=1))
    elif note.decision is State.STARTED:
        give_up(note, folder, sweep, f"ended without an error message: {reason}")


def say(message: str) -> None:
    """Print a line of progress to standard error; standard output is for the table."""
    print(message, file=sys.stderr, flush=True)
