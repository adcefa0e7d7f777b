"""Hydra's grid sweep without cells that are equal or cannot run.

A grid is the product of its axes. A setting that only some options of a group have (``q2n=off,on
q2n.t=0.1,0.2``), or that a cell does not read (``baseline=gptq,quip group_size=32,64``), is removed from the
other cells, which are then equal and run once. A cell whose values exclude each other is left out, if other
cells use each of these values. No job is started for cells that are known not to run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf

from q2n.config import RunConfig, key_of
from q2n.exceptions import ConfigurationError
from q2n.launchers.base import BatchSweeper
from q2n.launchers.space import by_key

Combination = list[str]
"""Overrides of one job."""


class GridSweeper(BatchSweeper):
    """Sweeper ``hydra/sweeper=grid``: jobs for the cells that were chosen before, in batches.

    Settings: ``conf/hydra/sweeper/grid.yaml``.

    Raises:
        ConfigurationError: ``max_batch_size`` is below 1.
    """

    chosen: ClassVar[Sequence[Combination] | None] = None
    """Cells to run, or None for every combination.

    An attribute of the class, because Hydra creates the sweeper from its configuration alone. The cells were
    composed when they were chosen, so that they need not be composed again before the first one starts.
    """

    def __init__(self, max_batch_size: int | None = None, params: Mapping[str, Any] | None = None) -> None:
        if max_batch_size is not None and max_batch_size < 1:
            raise ConfigurationError(f"hydra.sweeper.max_batch_size={max_batch_size}: must be at least 1")
        self.max_batch_size, self.params = max_batch_size, params or {}

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Launch the batches one after the other; a job that raises ends the sweep after its batch."""
        cells = self.chosen
        if cells is None:
            cells = combinations(self.params, arguments, self._loader)
        folder = Path(self._config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self._config, folder / "multirun.yaml")
        size = self.max_batch_size or max(1, len(cells))
        batches = []
        for first in range(0, len(cells), size):
            batch = self.launch(cells[first : first + size])
            for job in batch:
                _ = job.return_value  # raises what the job raised
            batches.append(batch)
        return batches


def combinations(
    params: Mapping[str, Any], overrides: Sequence[str], loader: ConfigLoader
) -> list[Combination]:
    """Return the product of the values of all keys in ``params`` and on the command line, which wins.

    Args:
        params: the sweeper's axes (values as text, by key).
        overrides: the command line's.
        loader: Hydra's, to resolve ``glob()``.

    Raises:
        ConfigurationError: the values of a key cannot be listed.
        HydraException: an override cannot be parsed.
    """
    axes: dict[str, list[str]] = {}
    for key, item in by_key(params, overrides, loader).items():
        if not item.is_sweep_override():
            axes[key] = [f"{key}={item.get_value_element_as_str()}"]
        elif item.is_discrete_sweep():
            axes[key] = [f"{key}={value}" for value in item.sweep_string_iterator()]
        else:
            raise ConfigurationError(
                f"{item.input_line}: a grid needs values that can be listed; hydra/sweeper=optuna searches"
            )
    return [list(cell) for cell in itertools.product(*axes.values())]


def task_overrides(overrides: Iterable[str]) -> frozenset[str]:
    """Return the overrides that distinguish the cells of one sweep: all but those for Hydra itself."""
    return frozenset(item for item in overrides if not item.lstrip("+~").startswith(("hydra.", "hydra/")))


def foreign_settings(
    product: Sequence[Combination], groups: Iterable[str], has: Callable[[str, str], bool]
) -> dict[str, frozenset[str]]:
    """Return, by option of a sweep (``q2n=off``), the settings that only other options of its group have.

    Args:
        product: the combinations.
        groups: names of the configuration's groups.
        has: tells whether an option of a group has a setting, ``has("q2n=off", "q2n.t")``.
    """
    items = dict.fromkeys(item for cell in product for item in cell)
    found: dict[str, frozenset[str]] = {}
    for group in groups:
        options = [item for item in items if key_of(item) == group]
        keys = {key_of(item) for item in items if item.startswith(f"{group}.")}
        if keys and len(options) > 1:
            own = {option: {key for key in keys if has(option, key)} for option in options}
            known = set.union(*own.values())  # a key of none is a mistake
            found |= {option: frozenset(known - own[option]) for option in options if known - own[option]}
    return found


@dataclass(frozen=True)
class Grid:
    """Combinations of a product that are no cell, or equal to another cell."""

    foreign: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Settings that an option does not have (:func:`foreign_settings`)."""
    unread: Sequence[str] = ()
    """Reasons why cells do not read some of their settings."""
    left_out: Mapping[frozenset[str], str] = field(default_factory=dict)
    """Cells whose values exclude each other, with the rule."""

    def cells(self, product: Iterable[Combination]) -> list[Combination]:
        """Return the cells without foreign settings, each once, in the order of the product."""
        unique: dict[frozenset[str], Combination] = {}
        for cell in product:
            foreign = {key for item in cell for key in self.foreign.get(item, ())}
            fitting = [item for item in cell if key_of(item) not in foreign]
            unique.setdefault(task_overrides(fitting), fitting)
        return list(unique.values())

    def judged(
        self, configs: Sequence[RunConfig], faults: Sequence[tuple[Combination, ConfigurationError]]
    ) -> Grid:
        """Return the grid with what composing its cells has shown: settings not read, and cells left out.

        Args:
            configs: the cells that can be configured.
            faults: the cells that cannot, with the error; other cells must use each of their values.

        Raises:
            ConfigurationError: a cell has a value that no cell can use, which is a mistake.
        """
        used = {item for config in configs for item in config.asked}
        for cell, error in faults:
            if not used or not task_overrides(cell) <= used:
                raise error
        unread = dict.fromkeys(why for config in configs for why in config.unread_settings().values())
        left_out = {task_overrides(cell): str(error) for cell, error in faults}
        return replace(self, unread=tuple(unread), left_out=left_out)

    @property
    def remarks(self) -> list[str]:
        """Lines for the user about the combinations that were changed or left out."""
        dropped = [
            f"{option}: without {', '.join(sorted(keys))}, which it does not have"
            for option, keys in self.foreign.items()
        ]
        if self.unread:
            dropped.append(f"not set where it is not read (equal cells run once): {'; '.join(self.unread)}")
        return dropped + [f"left out: {' '.join(sorted(cell))}: {why}" for cell, why in self.left_out.items()]
