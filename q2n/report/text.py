"""A table as text: what stands in each place, the same for the terminal, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from q2n.report.columns import Column
from q2n.report.lines import Row
from q2n.report.tables import Table

EMPTY = "\u2013"


@dataclass(frozen=True)
class Grid:
    """A printable table: ``stubs`` head the label columns, ``heads`` the others (bits, then lines);
    each row is labels, texts, which texts are bold, and whether a rule comes before it."""

    stubs: tuple[str, ...]
    heads: tuple[tuple[str, tuple[str, ...]], ...]
    rows: tuple[GridRow, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class GridRow:
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    bold: tuple[bool, ...]
    rule: bool


def to_grid(table: Table) -> Grid:
    """The table's texts. A label equal to the one above it is left blank; the column of settings is left
    out where there are none."""
    settled = any(row.settings for row in table.rows)
    stubs = ("model", "baseline", *(("settings",) if settled else ()), "q2n")
    most = int(table.seeds.to_numpy().max(initial=0))
    rows: list[GridRow] = []
    above: tuple[str, ...] = ("",) * len(stubs)
    for i, row in enumerate(table.rows):
        model, baseline, settings, line = row.key
        full = (model, baseline, *((settings,) if settled else ()), line)
        texts = tuple(_cell(table, i, j, most) for j in range(len(table.columns)))
        bold = tuple(bool(table.bold.iat[i, j]) for j in range(len(table.columns)))
        changed = full[:-1] != above[:-1]
        rows.append(GridRow(_without_repeats(full, above), texts, bold, rule=bool(rows) and changed))
        above = full
    spread = (f"value ± standard deviation over {most} seeds",) if most > 1 else ()
    legend = ("lines '- off': corrected minus uncorrected; negative is better where the header has ↓",)
    compared = legend if any(row.kind == "difference" for row in table.rows) else ()
    return Grid(stubs, _heads(table.columns), tuple(rows), (*spread, *compared, *table.notes))


def select_columns(grid: Grid, positions: Sequence[int]) -> Grid:
    """The grid with only these value columns, for a terminal too narrow for all."""
    rows = tuple(
        replace(row, texts=tuple(row.texts[j] for j in positions), bold=tuple(row.bold[j] for j in positions))
        for row in grid.rows
    )
    return replace(grid, heads=tuple(grid.heads[j] for j in positions), rows=rows)


def _heads(columns: tuple[Column, ...]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    plain = [(column.bits, column.header(ambiguous=False)) for column in columns]
    return tuple(
        (f"{column.bits} bit", column.header(ambiguous=plain.count(head) > 1))
        for column, head in zip(columns, plain, strict=True)
    )


def _without_repeats(labels: tuple[str, ...], above: tuple[str, ...]) -> tuple[str, ...]:
    shown = list(labels)
    for position in range(len(labels) - 1):
        if labels[: position + 1] == above[: position + 1]:
            shown[position] = ""
    return tuple(shown)


def _cell(table: Table, i: int, j: int, most: int) -> str:
    row, column = table.rows[i], table.columns[j]
    value, spread, seeds = (
        float(frame.to_numpy()[i, j]) for frame in (table.mean, table.spread, table.seeds)
    )
    if seeds == 0:
        return EMPTY
    number = difference(value, column.lower_is_better, spread) if _compares(row) else amount(value)
    constant = column.protocol is None and spread == 0  # storage does not depend on the seed
    if seeds > 1 and not _compares(row) and not constant:
        number += f" ± {amount(spread)}"
    # fewer seeds than elsewhere in the table is said where it happens; the reference has no seeds
    return f"{number} (n={seeds:.0f})" if seeds < most and row.kind != "reference" else number


def _compares(row: Row) -> bool:
    return row.kind == "difference"


def amount(value: float) -> str:
    """A number for a person: two decimals where that is informative, more for small, fewer for large."""
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.2e}"
    return (
        f"{value:,.0f}" if size >= 1000 else f"{value:.2f}" if size >= 0.0995 or size == 0 else f"{value:.4f}"
    )


def difference(value: float, lower_is_better: bool, spread: float = math.nan) -> str:
    """A signed number and what its sign means: ``-1.50 better``."""
    if math.isnan(value):
        return "nan"
    if value == 0:
        return "0 same"
    sign = "+" if value > 0 else ""
    around = "" if math.isnan(spread) else f" ± {amount(spread)}"
    return f"{sign}{amount(value)}{around} {'better' if (value < 0) == lower_is_better else 'worse'}"
