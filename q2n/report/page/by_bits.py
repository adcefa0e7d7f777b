"""A table to sort and filter: one line per method and bit width, every number with its records."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from q2n.report.tables.lines import NO_CORRECTION, Column, Row, storage_column
from q2n.report.tables.pairs import Pair
from q2n.report.tables.table import Head, Number, Table, TableLine, around
from q2n.report.tables.text import EMPTY, HUGE, amount, compared_notes, difference, interval, p_text, signed

NOTHING = Number("")
"""Empty number, for places where no number is possible."""


def by_bits(table: Table, pairs: Iterable[Pair]) -> Table:
    """The same numbers with one line per number of bits.

    Beside each value of a corrected line stands its difference to the line without correction.

    Args:
        table: a table of the study, with one column per number of bits and metric.
        pairs: all differences of the study.
    """
    known = {(pair.row, pair.column): pair for pair in pairs}
    compared = {replace(column, bits=0) for _, column in known}
    measures = list(dict.fromkeys(replace(column, bits=0) for column in table.columns if column.protocol))

    def line_of(row: Row, bits: int | float | None) -> TableLine:
        here = {column: table.numbers[row, column] for column in table.columns if bits in (None, column.bits)}
        lost = [item.failure for number in here.values() for item in number.unfinished]
        failures = tuple(dict.fromkeys(failure.ref.fingerprint for failure in lost if failure))
        finished = max((number.seeds for number in here.values()), default=0)
        state = (
            "reference" if bits is None else "finished" if finished else "failed" if failures else "not run"
        )
        numbers = []
        for measure in measures:
            numbers.append(_value(here, measure))
            if measure in compared:
                pair = known.get((row, replace(measure, bits=bits or 0)))
                alone = row.kind == "reference" or row.correction == NO_CORRECTION
                numbers.append(of_pair(pair) if pair else NOTHING if alone else Number())
        if state in ("failed", "not run") and numbers:
            numbers[0] = Number(state, cells=failures)
        detail = f"{len(failures)} failed" if failures else ""
        seeds = NOTHING if bits is None else Number(str(finished), finished, cells=failures, detail=detail)
        return TableLine(row, (seeds, *numbers, _value(here, storage_column(0))), bits, state)

    every = sorted({column.bits for column in table.columns})
    rows = [line.row for line in table.lines if line.row.kind in ("reference", "value")]
    lines: list[TableLine] = []
    for (kind, *_), members in groupby(rows, key=lambda row: (row.kind, *row.key[:3])):
        same = list(members)  # lines that are compared stay together
        lines += [line_of(row, bits) for bits in ([None] if kind == "reference" else every) for row in same]
    spread = any(number.seeds > 1 for number in table.numbers.values())
    legend = ["\u00b1: standard deviation over seeds"] if spread else []
    legend += compared_notes(table.compared)
    return Table(_heads(measures, compared), tuple(lines), tuple(legend), table.notes)


def _heads(measures: Sequence[Column], compared: Container[Column]) -> tuple[Head, ...]:
    """Heads of the columns: unit, windows and protocol stand below the name of each metric."""
    plain = [measure.header(ambiguous=False) for measure in measures]
    heads = [Head("", ("seeds",))]
    for measure, head in zip(measures, plain, strict=True):
        name, *about = measure.header(ambiguous=plain.count(head) > 1)
        heads.append(Head("", (name, " \u00b7 ".join(about).replace(" \u00b7 x ", " x "))))
        if measure in compared:
            heads.append(Head("", ("to off", "difference, 95 % interval, p")))
    return (*heads, Head("", ("bits / weight",)))


def _value(here: Mapping[Column, Number], measure: Column) -> Number:
    """The table's number for a metric; a reference has no bits, so its number is that of any column."""
    for column, number in here.items():
        if number.seeds and replace(column, bits=0) == measure:
            return replace(number, text=amount(number.value), detail=around(column, number))
    return Number()


def of_pair(pair: Pair) -> Number:
    """Difference of a pair: estimate, and interval and p-value if they are known."""
    cells, others, found = pair.corrected_cells, pair.uncorrected_cells, pair.found
    if found is None:
        raw = pair.corrected - pair.uncorrected
        text = difference(raw, pair.column.lower_is_better).partition(" ")[0]
        text = EMPTY if math.isnan(raw) else text  # both are infinite
        return Number(text, raw, cells=cells, others=others, detail="no interval", verdict="undecided")
    estimate = found.estimate
    digits, unit = (1, " %") if found.relative else (4, "")
    text = f"{estimate:+,.{digits}f}" if abs(estimate) < HUGE else signed(estimate, found.relative)
    detail = f"{interval(found).removesuffix(' %')}, p {p_text(found)}"
    verdict = "one seed" if found.seeds < 2 else pair.verdict
    return Number(f"{text}{unit}", estimate, cells=cells, others=others, detail=detail, verdict=verdict)
