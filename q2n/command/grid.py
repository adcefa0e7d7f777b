"""Hydra's grid sweep without what makes no sense in it.

A grid is a plain product of its axes, and has cells that a person would not have written down. A setting
that only some options of a group have (``q2n=off,on q2n.t=0.1,0.2``), or that a cell does not read
(``baseline=gptq,quip group_size=32,64``), is taken from the cells of the others, which then are equal and run
once. A cell whose values exclude each other is left out, if other cells use each
of them. No job is started for cells that are known not to run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins

from q2n.exceptions import ConfigurationError

Cell = list[str]
"""The overrides of one job."""


def task_overrides(overrides: Iterable[str]) -> frozenset[str]:
    """What tells cells of one sweep apart: their overrides without those for Hydra itself."""
    return frozenset(item for item in overrides if not item.lstrip("+~").startswith(("hydra.", "hydra/")))


def foreign_settings(
    product: Sequence[Cell], groups: Iterable[str], has: Callable[[str, str], bool]
) -> dict[str, frozenset[str]]:
    """For options of a sweep (``q2n=off``) the settings (``q2n.t``) that only others of the same group have.

    Args:
        has: whether an option of a group has a setting, ``has("q2n=off", "q2n.t")``.
    """
    items = dict.fromkeys(item for cell in product for item in cell)
    found: dict[str, frozenset[str]] = {}
    for group in groups:
        options = [item for item in items if _key(item) == group]
        keys = {_key(item) for item in items if item.startswith(f"{group}.")}
        if keys and len(options) > 1:
            own = {option: {key for key in keys if has(option, key)} for option in options}
            known = set.union(*own.values())  # a key of none is a mistake
            found |= {option: frozenset(known - own[option]) for option in options if known - own[option]}
    return found


@dataclass(frozen=True)
class Grid:
    """Which cells of a product run, and with which of its settings."""

    foreign: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """See :func:`foreign_settings`."""
    unread: Mapping[frozenset[str], Mapping[str, str]] = field(default_factory=dict)
    """By cell, the settings that it does not read, and why."""
    left_out: Mapping[frozenset[str], str] = field(default_factory=dict)
    """Cells whose values exclude each other, and how."""
    silent: frozenset[frozenset[str]] = frozenset()
    """Cells left out of which others speak."""
    late: Mapping[frozenset[str], str] = field(default_factory=dict)
    """Cells that run after all others, and when they were last tried."""

    def cells(self, product: Iterable[Sequence[str]]) -> list[Cell]:
        """The cells to run, each once, in the order of the product but for late ones."""
        unique: dict[frozenset[str], Cell] = {}
        for cell in product:
            foreign = {key for item in cell for key in self.foreign.get(item, ())}
            fitting = without(cell, foreign)
            fitting = without(fitting, self.unread.get(task_overrides(fitting), ()))
            unique.setdefault(task_overrides(fitting), fitting)
        chosen = {
            key: it for key, it in unique.items() if key not in self.left_out and key not in self.silent
        }
        return [chosen[key] for key in sorted(chosen, key=lambda key: self.late.get(key, ""))]

    def without(self, cells: Iterable[Iterable[str]]) -> Grid:
        """The grid without cells that are accounted for elsewhere."""
        return replace(self, silent=self.silent | {task_overrides(cell) for cell in cells})

    def with_last(self, cells: Mapping[tuple[str, ...], str]) -> Grid:
        """The grid with cells at its end, in the order of when they were last tried."""
        return replace(self, late={task_overrides(cell): tried for cell, tried in cells.items()})

    def without_corners(self, faults: Sequence[tuple[Cell, ConfigurationError]], used: set[str]) -> Grid:
        """The grid without cells that cannot be configured although other cells use each of their values.

        Raises:
            ConfigurationError: a cell has a value that no cell can use: a mistake.
        """
        for cell, error in faults:
            if not used or not task_overrides(cell) <= used:
                raise error
        return replace(self, left_out={task_overrides(cell): str(error) for cell, error in faults})

    @property
    def remarks(self) -> list[str]:
        """What was made of the product, a line each."""
        dropped = [
            f"{option}: without {', '.join(sorted(keys))}, which it does not have"
            for option, keys in self.foreign.items()
        ]
        reasons = dict.fromkeys(why for settings in self.unread.values() for why in settings.values())
        if reasons:
            dropped.append(f"not set where it is not read (equal cells run once): {'; '.join(reasons)}")
        # of pydantic's complaint about a whole option only the rule: its values are the line's beginning
        rules = {cell: why.rpartition("value error, ")[2] for cell, why in self.left_out.items()}
        return dropped + [f"left out: {' '.join(sorted(cell))}: {why}" for cell, why in rules.items()]

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Inside the block a grid sweep of this process runs these cells. They have been composed before, so
        that Hydra need not compose each of them once more before it starts the first.

        (Not a sweeper of our own: Hydra takes plugins only from packages named ``hydra_plugins``.)
        """
        Plugins.instance()  # imports the sweeper's module anew: only from then on is the class the one in use
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

        split, validate = BasicSweeper.split_arguments, BasicSweeper.validate_batch_is_legal

        def chosen(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
            cells = self.cells(cell for batch in split(overrides, None) for cell in batch)
            size = max_batch_size or max(1, len(cells))
            return [cells[first : first + size] for first in range(0, len(cells), size)]

        def validated(_sweeper: object, _batch: object) -> None:
            pass

        BasicSweeper.split_arguments = staticmethod(chosen)  # type: ignore[method-assign]
        BasicSweeper.validate_batch_is_legal = validated  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            BasicSweeper.split_arguments = staticmethod(split)  # type: ignore[method-assign]
            BasicSweeper.validate_batch_is_legal = validate  # type: ignore[method-assign]


def without(cell: Sequence[str], keys: Collection[str]) -> Cell:
    """The overrides of a cell that set none of ``keys``."""
    return [item for item in cell if _key(item) not in keys]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
