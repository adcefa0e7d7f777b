"""Hydra's grid sweep without the cells that are known not to run: no job is started for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins


def task_overrides(overrides: Iterable[str]) -> frozenset[str]:
    """What tells cells of one sweep apart: their overrides without those for Hydra itself."""
    return frozenset(item for item in overrides if not item.lstrip("+~").startswith(("hydra.", "hydra/")))


@contextmanager
def leaving_out(cells: Iterable[Iterable[str]]) -> Iterator[None]:
    """Inside the block a grid sweep of this process skips ``cells``, given by their overrides.

    (Not a sweeper of our own: Hydra takes plugins only from packages named ``hydra_plugins``.)
    """
    Plugins.instance()  # it imports the sweeper's module anew: only from then on is the class the one in use
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    left_out = {task_overrides(cell) for cell in cells}
    split = BasicSweeper.split_arguments

    def filtered(overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:
        batches = split(overrides, None)
        kept = [cell for batch in batches for cell in batch if task_overrides(cell) not in left_out]
        size = max_batch_size or max(1, len(kept))
        return [kept[first : first + size] for first in range(0, len(kept), size)]

    BasicSweeper.split_arguments = staticmethod(filtered)  # type: ignore[method-assign]
    try:
        yield
    finally:
        BasicSweeper.split_arguments = staticmethod(split)  # type: ignore[method-assign]
