"""Records to tables: pure functions, nothing printed, nothing written.

Rows are model (:mod:`q2n.report.tables.models`) x baseline, a line without correction, a line for each
correction and below it their difference; columns are bits x metric. Only seeds are averaged: cells that
differ in anything else have lines of their own (:mod:`q2n.report.tables.settings`), evaluations by different
protocols columns of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from typing import Literal, TypeVar

import numpy as np
import pandas as pd

from q2n.records.store import RunRecord
from q2n.report.tables.columns import Column, column_of
from q2n.report.tables.comparisons import Difference, Place, differences
from q2n.report.tables.lines import (
    Row,
    Seeds,
    Values,
    arrange,
    measured,
    observations,
    origins,
    row_of,
    without_correction,
)
from q2n.report.tables.models import told_apart
from q2n.report.tables.select import (
    NO_CODES,
    Codes,
    allowed_notes,
    by_protocol,
    code_notes,
    latest,
    processor_notes,
    weights_notes,
)
from q2n.report.tables.unfinished import Unfinished, by_group

T = TypeVar("T")


@dataclass(frozen=True)
class Table:
    """Numbers of one table; all frames have the same index (:attr:`Row.key`, :attr:`Column.key`).

    ``mean`` over seeds, ``spread`` their standard deviation (NaN for one seed), ``seeds`` how many (0
    where nothing was measured), ``compared`` what is known of differences, ``unfinished`` the cells
    without a result and ``sources`` the fingerprints of the records behind a number by seed (of the line and
    of the one it is compared with), by row and column position.
    """

    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    mean: pd.DataFrame
    spread: pd.DataFrame
    seeds: pd.DataFrame
    compared: Mapping[Place, Difference]
    unfinished: Mapping[Place, tuple[Unfinished, ...]]
    sources: Mapping[Place, tuple[Mapping[int, str], Mapping[int, str]]]
    notes: tuple[str, ...]

    @cached_property
    def marks(self) -> Mapping[Place, str]:
        """Words for cells without a result."""
        return {place: items[-1].word for place, items in self.unfinished.items()}


def build_tables(
    records: Iterable[RunRecord],
    unfinished: Iterable[Unfinished] = (),
    superseded: int = 0,
    codes: Codes = NO_CODES,
) -> list[Table]:
    """All tables of a report; older records of a cell are left out and counted in a note (beside
    ``superseded`` that were left out before), cells without a result are marked in their place.

    Args:
        codes: see :func:`q2n.report.tables.select.code_notes`.

    Raises:
        RecordError: two different cells cannot be told apart by their configuration.
    """
    records, unfinished = told_apart(records, unfinished)
    current, older = latest(records)
    groups = by_group(by_protocol(current), unfinished)
    return [build_table(group, superseded + older, rest, codes) for group, rest in groups]


def build_table(
    records: Sequence[RunRecord],
    superseded: int = 0,
    unfinished: Sequence[Unfinished] = (),
    codes: Codes = NO_CODES,
) -> Table:
    """One table of records that may stand in one table.

    Raises:
        RecordError: two different cells cannot be told apart by their configuration.
    """
    labels, values = observations(records, unfinished)
    references, notes = _references(records)
    columns = tuple(_columns(values))
    rows = tuple(arrange(values, bool(references)))
    cells = [[_seeds(row, column, values, references) for column in columns] for row in rows]
    mean = _frame(rows, columns, [[_mean(seeds) for seeds in line] for line in cells], "float64")
    spread = _frame(rows, columns, [[_spread(seeds) for seeds in line] for line in cells], "float64")
    count = _frame(rows, columns, [[len(seeds) for seeds in line] for line in cells], "int64")
    left: dict[tuple[Row, int | float], tuple[Unfinished, ...]] = {}
    for item, settings in zip(unfinished, labels[len(records) :], strict=True):
        line = (row_of(item, settings), item.cell.bits)
        left[line] = (*left.get(line, ()), item)
    pairs = _sides(rows, columns, measured(records, labels))
    sides = _sides(rows, columns, origins(records, labels))
    compared = [sides[i, j] for i, j in pairs if rows[i].kind == "difference" and columns[j].protocol]
    return Table(
        rows,
        columns,
        mean,
        spread,
        count,
        differences({place: pair for place, pair in pairs.items() if rows[place[0]].kind == "difference"}),
        _unfinished(rows, columns, left),
        sides,
        (
            *notes,
            *allowed_notes(records),
            *code_notes(records, superseded, codes),
            *processor_notes(records, compared),
            *weights_notes(records),
        ),
    )


def _unfinished(
    rows: tuple[Row, ...],
    columns: tuple[Column, ...],
    left: Mapping[tuple[Row, int | float], tuple[Unfinished, ...]],
) -> dict[Place, tuple[Unfinished, ...]]:
    """Cells by row and column position: every column of the cell's bits."""
    return {
        (i, j): left[row, column.bits]
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
        if (row, column.bits) in left
    }


def _references(records: Sequence[RunRecord]) -> tuple[dict[tuple[str, Column], float], list[str]]:
    """The unquantized model's value by model and column (bits aside: it has the same in each)."""
    found: dict[tuple[str, Column], float] = {}
    notes: dict[str, None] = {}
    for record in sorted(records, key=lambda record: record.created):
        for metric in record.metrics:
            if metric.reference is None:
                continue
            place = (record.cell.model, column_of(metric, 0))
            before = found.get(place, metric.reference)
            if not np.isclose(before, metric.reference, rtol=1e-6, equal_nan=True):
                notes[
                    f"{place[0]}: records disagree on the unquantized {metric.name}; the newest is shown"
                ] = None
            found[place] = metric.reference
    return found, list(notes)


def _columns(values: Values) -> list[Column]:
    """By bits; metrics in the order they were first met, bits per weight last."""
    met = list(dict.fromkeys(column for _, column in values))
    return sorted(met, key=lambda column: (column.bits, column.protocol is None))


def _seeds(
    row: Row,
    column: Column,
    values: Values,
    references: Mapping[tuple[str, Column], float],
) -> Seeds:
    """What stands in one place of the table, by seed; a difference only for seeds that have both."""
    if row.kind == "reference":
        anywhere = replace(column, bits=0)
        return {0: references[row.model, anywhere]} if (row.model, anywhere) in references else {}
    if row.kind == "value":
        return values.get((row, column), {})
    if column.protocol is None:
        return {}
    on = values.get((replace(row, kind="value"), column), {})
    off = values.get((without_correction(row), column), {})
    both = [seed for seed in on if seed in off]
    # two infinite values have no difference
    return {seed: on[seed] - off[seed] for seed in both if on[seed] != off[seed] or isfinite(on[seed])}


def _mean(seeds: Seeds) -> float:
    with np.errstate(all="ignore"):  # inf - inf is a NaN on purpose
        return float(np.mean(list(seeds.values()))) if seeds else float("nan")


def _spread(seeds: Seeds) -> float:
    with np.errstate(all="ignore"):
        return float(np.std(list(seeds.values()), ddof=1)) if len(seeds) > 1 else float("nan")


def _frame(
    rows: tuple[Row, ...],
    columns: tuple[Column, ...],
    data: Sequence[Sequence[float]],
    dtype: Literal["float64", "int64"],
) -> pd.DataFrame:
    index = pd.MultiIndex.from_tuples(
        [row.key for row in rows], names=["model", "baseline", "settings", "line"]
    )
    heads = pd.MultiIndex.from_tuples(
        [column.key for column in columns], names=["bits", "metric", "unit", "protocol"]
    )
    return pd.DataFrame([list(line) for line in data], index=index, columns=heads).astype(dtype)


def _sides(
    rows: tuple[Row, ...], columns: tuple[Column, ...], found: Mapping[tuple[Row, Column], Mapping[int, T]]
) -> dict[Place, tuple[Mapping[int, T], Mapping[int, T]]]:
    """What is behind each place, by seed: the line's own, and that of the line it is compared with."""
    return {
        (i, j): (
            found.get((replace(row, kind="value"), column), {}),
            found.get((without_correction(row), column), {}) if row.kind == "difference" else {},
        )
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
        if row.kind != "reference"
    }
