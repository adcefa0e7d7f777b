"""Sweeper ``hydra/sweeper=optuna``: search settings instead of running every combination, with any launcher.

The study is a file below the results folder, named by a digest of everything that could change a value: the
same command resumes its study, and the trials of other commands are never mixed in. Every worker can open the
file: a cell is a trial that reports an intermediate value while it runs and may be pruned, in any process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf

from q2n.exceptions import ConfigurationError, StoppedEarly
from q2n.launchers.base import BatchSweeper, say
from q2n.launchers.space import Search, search
from q2n.records.fingerprint import fingerprint, library_versions
from q2n.records.source_code import CHECKOUT

if TYPE_CHECKING:
    import optuna

    from q2n.types import LayerReport

RESULTS = "optimization_results.yaml"
"""File in the sweep's folder, with the keys that Hydra's sweepers use."""

STOPPED = "stopped"
"""Attribute of a trial that was stopped early, with the reason."""


class OptunaSweeper(BatchSweeper):
    """Sweeper of ``n_trials`` cells, ``n_jobs`` at a time; settings: ``conf/hydra/sweeper/optuna.yaml``.

    Raises:
        ConfigurationError: a setting is out of range.
    """

    package = "optuna"

    def __init__(
        self,
        direction: str,
        n_trials: int,
        n_jobs: int,
        sampler: DictConfig,
        pruner: DictConfig | None,
        storage: str | None = None,
        study_name: str | None = None,
        params: Mapping[str, Any] | None = None,
        trial: int | None = None,
    ) -> None:
        if direction not in ("minimize", "maximize"):
            raise ConfigurationError(f"hydra.sweeper.direction={direction}: must be minimize or maximize")
        for key, value in {"n_trials": n_trials, "n_jobs": n_jobs}.items():
            if value < 1:
                raise ConfigurationError(f"hydra.sweeper.{key}={value}: must be at least 1")
        self.direction, self.n_trials, self.n_jobs = direction, n_trials, n_jobs
        self.sampler, self.pruner = sampler, pruner
        self.params = params or {}
        self.storage, self.study_name = storage, study_name

    def sweep(self, arguments: list[str]) -> None:
        """Open or resume the study of the command, run its trials, and report the best one.

        Raises:
            ConfigurationError: nothing is searched, or another command runs this study.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = search(self.params, arguments)
        name = self.study_name or self._name_of(space)
        where = self.storage or str(self._folder() / f"{name}.journal")
        with _alone(where):
            study = self._study(name, where)
            _give_up_what_was_running(study)
            self._search(study, space, where)
        self._report(study)

    def _search(self, study: optuna.Study, space: Search, where: str) -> None:
        distributions = space.distributions()
        complete, stopped = _trials(study, "COMPLETE"), _trials(study, "PRUNED")
        there = len(complete) + len(stopped)
        left = self.n_trials - there
        if there:
            say(f"study {study.study_name}: {there} of {self.n_trials} trials exist already")
        if complete:  # reused from their records, for the table
            self.launch([[*space.fixed, *_overrides(trial.params)] for trial in complete])
        while left > 0:
            trials = [study.ask(distributions) for _ in range(min(left, self.n_jobs))]
            left -= len(trials)
            cells = [
                [*space.fixed, *_overrides(trial.params), *_handle(trial.number, study.study_name, where)]
                for trial in trials
            ]
            for trial, result in zip(trials, self.launch(cells), strict=True):
                _tell(study, trial.number, result)

    def _study(self, name: str, where: str) -> optuna.Study:
        import optuna
        from hydra.utils import instantiate

        study = optuna.create_study(
            study_name=name,
            storage=open_storage(where),
            pruner=instantiate(self.pruner) if self.pruner else optuna.pruners.NopPruner(),
            direction=self.direction,
            load_if_exists=True,
        )
        seed = self.sampler.get("seed")
        # With the same seed the sampler would propose its first points once more.
        again = {} if seed is None else {"seed": int(seed) + len(study.trials)}
        study.sampler = instantiate(self.sampler, **again)
        return study

    def _name_of(self, space: Search) -> str:
        cells = [self._loader.load_sweep_config(self._config, cell) for cell in space.extremes()]
        identity = {
            "axes": [axis.input_line for axis in space.axes],
            "fixed": [item for item in space.fixed if not item.lstrip("+~").startswith("hydra")],
            "objective": self._config.get("objective"),
            "direction": self.direction,
            "sampler": OmegaConf.to_container(self.sampler, resolve=True),
            "pruner": OmegaConf.to_container(self.pruner, resolve=True) if self.pruner else None,
            "code": CHECKOUT.of_cell({"cells": [OmegaConf.to_container(cell) for cell in cells]}).key,
            "versions": library_versions(),
        }
        return f"study-{fingerprint(identity)}"

    def _folder(self) -> Path:
        results = Path(str(self._config.results_dir)).expanduser()
        folder = (results / str(self._config.name) / "studies").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _report(self, study: optuna.Study) -> None:
        complete, stopped = _trials(study, "COMPLETE"), _trials(study, "PRUNED")
        say(f"study {study.study_name}: {len(complete)} trials complete, {len(stopped)} stopped early")
        if not complete:
            return
        best = study.best_trial
        say(f"best ({self.direction}): {best.value:.6g} with {' '.join(_overrides(best.params))}")
        results = {"name": "optuna", "best_params": dict(best.params), "best_value": best.value}
        OmegaConf.save(OmegaConf.create(results), Path(str(self._config.hydra.sweep.dir)) / RESULTS)


def _overrides(params: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in params.items()]


def _handle(number: int, study: str, where: str) -> list[str]:
    """Return the overrides by which a cell finds its trial, in any process."""
    quoted = where.replace("\\", "\\\\").replace("'", "\\'")
    return [
        f"hydra.sweeper.trial={number}",
        f"hydra.sweeper.study_name={study}",
        f"hydra.sweeper.storage='{quoted}'",
    ]


def _trials(study: optuna.Study, state: str) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in study.get_trials() if trial.state.name == state]


def _tell(study: optuna.Study, number: int, result: JobReturn) -> None:
    """Tell the study the result of a trial: complete with a value, stopped early, or failed."""
    from optuna.trial import TrialState

    value = result.return_value
    if isinstance(value, float):
        study.tell(number, value)
    elif STOPPED in study.get_trials(deepcopy=False)[number].user_attrs:
        study.tell(number, state=TrialState.PRUNED)
    else:
        study.tell(number, state=TrialState.FAIL)


def _give_up_what_was_running(study: optuna.Study) -> None:
    """Mark the trials of a killed command as failed, and enqueue their settings again."""
    from optuna.trial import TrialState

    for trial in _trials(study, "RUNNING"):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


@contextlib.contextmanager
def _alone(where: str) -> Iterator[None]:
    """Let one command at a time use a journal: another's running trials would look like a dead command's."""
    from filelock import FileLock, Timeout

    if "://" in where:
        yield
        return
    lock = FileLock(f"{where}.command")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ConfigurationError(
            f"{where}: another command runs this study; wait for its end, or start another study with "
            "hydra.sweeper.study_name=NAME"
        ) from None
    with lock:
        yield


class Trial:
    """Trial of a study, which reports an intermediate value after every block.

    The value is the mean relative output error (MSE) of the layers so far, after correction, which is known
    long before the perplexity. It is not the objective: two settings are compared by it at the same block
    only, and its reliability depends on the settings that are searched.
    """

    def __init__(self, sweeper: Any) -> None:
        import optuna
        from hydra.utils import instantiate

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = open_storage(str(sweeper.storage))
        study = optuna.load_study(
            study_name=str(sweeper.study_name),
            storage=storage,
            sampler=optuna.samplers.RandomSampler(),  # nothing is sampled here
            pruner=instantiate(sweeper.pruner),
        )
        number = storage.get_trial_id_from_study_id_trial_number(study._study_id, int(sweeper.trial))
        self._trial = optuna.trial.Trial(study, number)
        self._sign = -1.0 if sweeper.direction == "maximize" else 1.0

    def __call__(self, reports: Sequence[LayerReport]) -> None:
        """Report the mean error; called after every block with the reports of all layers so far.

        Raises:
            StoppedEarly: the pruner expects that the cell will not be among the best.
        """
        block = reports[-1].block
        errors = [report.error_after for report in reports if report.error_after is not None]
        if not errors:
            return  # without a relative error nothing can be compared
        error = sum(errors) / len(errors)
        self._trial.report(self._sign * error, block)
        if self._trial.should_prune():
            reason = f"by the pruner after block {block + 1}, mean relative output error {error:.4g}"
            self._trial.set_user_attr(STOPPED, reason)
            raise StoppedEarly(reason)


def trial_of(sweeper: Any) -> Trial | None:
    """Return a cell's trial by its section ``hydra.sweeper``, or None if the cell cannot be stopped early."""
    if OmegaConf.select(sweeper, "trial") is None or sweeper.pruner is None:
        return None
    return Trial(sweeper)


def open_storage(where: str) -> Any:
    """Open Optuna's storage: a URL (``postgresql://``), or a journal file that all nodes may append to."""
    from optuna.storages import JournalStorage, get_storage
    from optuna.storages.journal import JournalFileBackend

    return get_storage(where) if "://" in where else JournalStorage(JournalFileBackend(where))
