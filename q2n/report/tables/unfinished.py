"""Cells without a result that a table shows all the same, in the place where their value would be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from q2n.records.notes import State
from q2n.records.schema import Cell, RunRecord

if TYPE_CHECKING:
    from q2n.records.failure import Failure


@dataclass(frozen=True)
class Unfinished:
    """``word`` stands in the table (``failed``, ``not run``); ``cell`` and ``config`` say where, ``failure``
    why, where that is known."""

    cell: Cell
    config: Mapping[str, Any]
    word: str
    failure: Failure | None = field(default=None, compare=False)


def failed(failures: Iterable[Failure]) -> list[Unfinished]:
    """Cells whose last try left a failure."""
    return [Unfinished(item.ref.axes, item.ref.configuration, State.FAILED.word, item) for item in failures]


def by_group(
    groups: Sequence[Sequence[RunRecord]], unfinished: Iterable[Unfinished]
) -> list[tuple[list[RunRecord], list[Unfinished]]]:
    """Each group of records with the unfinished cells of its models; models without any record at the end."""
    result: list[tuple[list[RunRecord], list[Unfinished]]] = [(list(group), []) for group in groups]
    homes = {record.cell.model: index for index, group in enumerate(groups) for record in group}
    for item in unfinished:
        if item.cell.model not in homes:
            homes[item.cell.model] = len(result)
            result.append(([], []))
        result[homes[item.cell.model]][1].append(item)
    return result
