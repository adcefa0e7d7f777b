"""A cell as the trial of a search: what it reports while it runs, and how it learns that it is hopeless.

The study lives in a file that every worker can open, so it makes no difference which process runs the cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from q2n.exceptions import StoppedEarly

if TYPE_CHECKING:
    from q2n.types import LayerReport

STOPPED = "stopped"
"""Attribute of a trial that was stopped early: why."""


class Trial:
    """Reports to the study after every block.

    The value is the mean relative output error of the layers so far (after correction), which is known long
    before the perplexity is. It is not what the search is for: two settings are compared by it at the same
    block only, and how far it can be trusted depends on what is searched.
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
        """To be called after every block with the reports of all layers so far.

        Raises:
            StoppedEarly: the pruner says that the cell will not be among the best.
        """
        block = reports[-1].block
        errors = [report.error_after for report in reports if report.error_after is not None]
        if not errors:
            return  # of layers without a relative error nothing can be compared
        error = sum(errors) / len(errors)
        self._trial.report(self._sign * error, block)
        if self._trial.should_prune():
            reason = f"by the pruner after block {block + 1}, mean relative output error {error:.4g}"
            self._trial.set_user_attr(STOPPED, reason)
            raise StoppedEarly(reason)


def trial_of(sweeper: Any) -> Trial | None:
    """The trial that a cell is, by its section ``hydra.sweeper``, if it is one that may be stopped."""
    if OmegaConf.select(sweeper, "trial") is None or sweeper.pruner is None:
        return None
    return Trial(sweeper)


def open_storage(where: str) -> Any:
    """Optuna's storage at an URL (``postgresql://``), or in a journal file that any node may append to."""
    from optuna.storages import JournalStorage, get_storage
    from optuna.storages.journal import JournalFileBackend

    return get_storage(where) if "://" in where else JournalStorage(JournalFileBackend(where))
