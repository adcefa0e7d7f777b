"""A table as text: what stands in each place, the same for the terminal, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from q2n.report.tables.columns import Column
from q2n.report.tables.comparisons import FEWEST_SEEDS, LEVEL, Difference
from q2n.report.tables.lines import NO_CORRECTION, Row
from q2n.report.tables.table import Table

EMPTY = "\u2013"
INTERVAL = "95 % interval"
P_VALUE = "p"
HUGE = 1e9
"""Size from which on a difference has an exponent: with collapsed models it has hundreds of digits."""


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
    out where there are none. Below a difference stand its interval and its p-value, where there are any."""
    settled = any(row.settings for row in table.rows)
    stubs = ("model", "baseline", *(("settings",) if settled else ()), "q2n")
    most = int(table.seeds.to_numpy().max(initial=0))
    rows: list[GridRow] = []
    above: tuple[str, ...] = ("",) * len(stubs)
    for i, row in enumerate(table.rows):
        model, baseline, settings, line = row.key
        full = (model, baseline, *((settings,) if settled else ()), line)
        texts = tuple(_cell(table, i, j, most) for j in range(len(table.columns)))
        found = [table.compared.get((i, j)) for j in range(len(table.columns))]
        bold = tuple(item is not None and item.established for item in found)
        changed = full[:-1] != above[:-1]
        rows.append(GridRow(_without_repeats(full, above), texts, bold, rule=bool(rows) and changed))
        rows += _certainty(found, len(stubs))
        above = full
    return Grid(stubs, _heads(table.columns), tuple(rows), (*legend(table, most), *table.notes))


def line_grid(
    lines: Sequence[tuple[Row, tuple[str, ...], bool]],
    heads: Sequence[str],
    bold: int,
    notes: tuple[str, ...],
) -> Grid:
    """A printable list: each line's row, its texts below ``heads``, and whether the text at ``bold`` is."""
    settled = any(row.settings for row, _, _ in lines)
    rows: list[GridRow] = []
    above: tuple[str, ...] = ("",) * 4
    for row, texts, marked in lines:
        labels = _without_repeats(row.key, above)
        shown = labels if settled else (*labels[:2], labels[3])
        changed = bool(rows) and row.key[:2] != above[:2]
        rows.append(GridRow(shown, texts, tuple(marked and i == bold for i in range(len(texts))), changed))
        above = row.key
    stubs = ("model", "baseline", *(("settings",) if settled else ()), "q2n")
    return Grid(stubs, tuple(("", (head,)) for head in heads), tuple(rows), notes)


def _certainty(found: Sequence[Difference | None], stubs: int) -> list[GridRow]:
    """The lines below a difference."""
    if not any(found):
        return []
    labels = ("",) * (stubs - 1)
    plain = (False,) * len(found)
    intervals = tuple(EMPTY if item is None else interval(item) for item in found)
    p_values = tuple(EMPTY if item is None else p_text(item.p_value) for item in found)
    return [
        GridRow((*labels, INTERVAL), intervals, plain, rule=False),
        GridRow((*labels, P_VALUE), p_values, plain, rule=False),
    ]


def legend(table: Table, seeds: int) -> tuple[str, ...]:
    """What a reader must know of the lines of differences and of the seeds behind them."""
    notes = [f"value ± standard deviation over {seeds} seeds"] if seeds > 1 else []
    if any(row.kind == "difference" for row in table.rows):
        notes.append(f"lines '- {NO_CORRECTION}': corrected minus uncorrected; negative is better under ↓")
    return (*notes, *compared_notes(list(table.compared.values())))


def compared_notes(compared: Sequence[Difference], base: str = "the uncorrected value") -> tuple[str, ...]:
    """What a reader must know of the intervals and p-values of one family of differences."""
    if not compared:
        return ()
    notes = [
        f"{INTERVAL}: paired, over the header's windows or items; of perplexities in per cent of "
        f"{base}; {P_VALUE}: adjusted for the table's {len(compared)} differences (Holm)"
    ]
    behind = sorted({item.seeds for item in compared})
    if behind[-1] < FEWEST_SEEDS:
        notes.append(
            "one seed: interval and p are about these quantized models on text like this, not about the "
            "methods: another calibration sample may turn a difference around, so nothing is bold"
        )
    else:
        counted = " or ".join(map(str, behind))
        notes.append(f"bold: established over seeds (p < {LEVEL}; {counted} seeds a difference)")
    return tuple(notes)


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
        return table.marks.get((i, j), EMPTY)
    number = difference(value, column.lower_is_better, spread) if _compares(row) else amount(value)
    constant = column.protocol is None and spread == 0  # storage does not depend on the seed
    if seeds > 1 and not _compares(row) and not constant and math.isfinite(spread):
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


def interval(item: Difference) -> str:
    """``-4.0 to -0.8 %`` or ``-0.0120 to 0.0034``."""
    low, high = (signed(end, item.relative) for end in (item.low, item.high))
    return f"{low} to {high} %" if item.relative else f"{low} to {high}"


def signed(value: float, relative: bool) -> str:
    """A difference or an end of its interval, in per cent if ``relative``."""
    if abs(value) >= HUGE:
        return f"{value:+.2e}"
    return f"{value:+.1f}" if relative else f"{value:+.4f}"


def p_text(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
