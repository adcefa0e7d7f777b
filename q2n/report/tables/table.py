"""The table of a report, from which terminal, Markdown, LaTeX and page are rendered, and how it is made.

Rows are model (:mod:`q2n.report.tables.models`) x baseline, a line without correction, a line for each
correction and below it their difference; columns are bits x metric. Only seeds are averaged: cells that
differ in anything else have lines of their own (:mod:`q2n.report.tables.settings`), evaluations by different
protocols columns of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, takewhile
from math import isfinite, nan
from typing import Any, NamedTuple

import numpy as np

from q2n.records.schema import Metric, RunRecord
from q2n.report.tables.comparisons import Difference, differences
from q2n.report.tables.lines import (
    NO_CORRECTION,
    Column,
    Observation,
    Row,
    arrange,
    column_of,
    observations,
    row_of,
    without_correction,
)
from q2n.report.tables.models import told_apart
from q2n.report.tables.select import (
    NO_CODES,
    Codes,
    Unfinished,
    allowed_notes,
    by_protocol,
    code_notes,
    latest,
    processor_notes,
    weights_notes,
)
from q2n.report.tables.text import (
    EMPTY,
    amount,
    compared_notes,
    difference,
    interval,
    not_compared_notes,
    p_text,
)

ROUND_OFF = 1e-12
"""Spread over seeds relative to their mean that is round-off of equal numbers, not a spread."""


@dataclass(frozen=True)
class Number:
    """One place of a table: its text, and the measured values behind it.

    ``value`` is the mean over ``seeds`` (0: nothing was measured), ``spread`` their standard deviation (NaN
    for one seed). ``cells`` are the fingerprints of its records; of a difference they are those of the
    corrected cells, and ``others`` those of the uncorrected ones, of the same seeds. ``found`` is what is
    known of a difference, ``unfinished`` are the cells without a result. Where there is room ``detail``
    stands small below it. ``verdict`` of a difference is ``better``, ``worse`` (both significant across
    seeds), ``undecided`` or ``one seed``.
    """

    text: str = EMPTY
    value: float = nan
    spread: float = nan
    seeds: int = 0
    cells: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    found: Difference | None = None
    unfinished: tuple[Unfinished, ...] = ()
    detail: str = ""
    verdict: str = ""

    @property
    def bold(self) -> bool:
        """True for a difference that is significant across seeds."""
        return self.found is not None and self.found.significant

    @property
    def order(self) -> float | None:
        """Key for sorting, or None for a number that comes last."""
        return self.value if isfinite(self.value) else None


class Head(NamedTuple):
    """The head of a column: a part that neighbours may share (bits), and the lines below it.

    ``words`` is True for a column of words instead of numbers.
    """

    above: str
    lines: tuple[str, ...]
    words: bool = False


@dataclass(frozen=True)
class TableLine:
    """One line: its labels, and a number per column.

    A line per number of ``bits`` has a ``state``: ``reference``, ``finished``, ``failed`` or ``not run``.
    """

    row: Row
    numbers: tuple[Number, ...]
    bits: int | float | None = None
    state: str = ""


@dataclass(frozen=True)
class Table:
    """One table.

    ``legend`` explains its lines and ``notes`` its records; ``columns`` are the measured quantities (none in
    a list, whose columns are of another kind). A line that differs from the line above in one of the first
    ``parted_by`` labels begins a new part.
    """

    heads: tuple[Head, ...]
    lines: tuple[TableLine, ...]
    legend: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    title: str = ""
    parted_by: int = 3

    @cached_property
    def numbers(self) -> Mapping[tuple[Row, Column], Number]:
        """The numbers by line and column."""
        return {
            (line.row, column): number
            for line in self.lines
            for column, number in zip(self.columns, line.numbers, strict=True)
        }

    @property
    def compared(self) -> tuple[Difference, ...]:
        """Compared differences of all lines."""
        return tuple(number.found for line in self.lines for number in line.numbers if number.found)

    @property
    def models(self) -> tuple[str, ...]:
        """Models of the table in the order of its lines."""
        return tuple(dict.fromkeys(line.row.model for line in self.lines))

    @property
    def settled(self) -> bool:
        """True if any line has settings; without them there is no column of settings."""
        return any(line.row.settings for line in self.lines)

    @property
    def stubs(self) -> tuple[str, ...]:
        """Heads of the labels."""
        return ("model", "baseline", "settings", "q2n") if self.settled else ("model", "baseline", "q2n")

    @cached_property
    def repeats(self) -> tuple[int, ...]:
        """Number of first labels (model, baseline, settings, bits) per line that are as above it."""
        labels = [(*line.row.key[:3], line.bits) for line in self.lines]
        same = (
            takewhile(lambda pair: pair[0] == pair[1], zip(*both, strict=True)) for both in pairwise(labels)
        )
        return (0, *(len(list(pairs)) for pairs in same))

    def printed(self) -> Iterator[tuple[list[str], tuple[Number, ...], bool]]:
        """Yield per line its labels, its numbers, and whether the line begins a new part.

        A label that repeats the label above is blank.
        """
        for place, (line, same) in enumerate(zip(self.lines, self.repeats, strict=False)):
            labels = ["" if position < min(same, 3) else label for position, label in enumerate(line.row.key)]
            if not self.settled:
                del labels[2]
            yield labels, line.numbers, place > 0 and same < self.parted_by

    def having(self, part: str) -> frozenset[int]:
        """The columns in which a number has a ``detail`` or a ``verdict``."""
        return frozenset(
            j for line in self.lines for j, number in enumerate(line.numbers) if getattr(number, part)
        )

    def select(self, positions: Sequence[int]) -> Table:
        """The table with only these columns, for a terminal too narrow for all."""
        lines = tuple(replace(line, numbers=tuple(line.numbers[j] for j in positions)) for line in self.lines)
        return replace(self, heads=tuple(self.heads[j] for j in positions), lines=lines, columns=())


def build_tables(
    records: Iterable[RunRecord],
    unfinished: Iterable[Unfinished] = (),
    superseded: int = 0,
    codes: Codes = NO_CODES,
) -> list[Table]:
    """Return all tables of a report.

    Older records of a cell are left out and counted in a note; cells without a result are marked in their
    place.

    Args:
        records: the finished cells.
        unfinished: cells without a result.
        superseded: number of older records that were left out before.
        codes: see :func:`q2n.report.tables.select.code_notes`.

    Raises:
        RecordError: two different cells cannot be told apart by their configuration.
    """
    records, unfinished = told_apart(records, unfinished)
    current, older = latest(records)
    groups = by_protocol(current, unfinished)
    return [build_table(group, superseded + older, rest, codes) for group, rest in groups]


def build_table(
    records: Sequence[RunRecord],
    superseded: int = 0,
    unfinished: Sequence[Unfinished] = (),
    codes: Codes = NO_CODES,
) -> Table:
    """Return one table of records that may share a table.

    Raises:
        RecordError: two different cells cannot be told apart by their configuration.
    """
    labels, seen = observations(records, unfinished)
    references, notes = _references(records)
    # by bits; metrics in the order they were first met, bits per weight last
    met = dict.fromkeys(column for _, column in seen)
    columns = tuple(sorted(met, key=lambda column: (column.bits, column.protocol is None)))
    rows = arrange(seen, bool(references))
    sides = {
        (row, column): (seen.get((value, column), {}), seen.get((without_correction(row), column), {}))
        for row, value in ((row, replace(row, kind="value")) for row in rows if row.kind == "difference")
        for column in columns
        if column.protocol
    }
    compared = differences({at: (_metrics(on), _metrics(off)) for at, (on, off) in sides.items()})
    left: dict[tuple[Row, int | float], tuple[Unfinished, ...]] = defaultdict(tuple)
    for item, settings in zip(unfinished, labels[len(records) :], strict=True):
        left[row_of(item, settings), item.cell.bits] += (item,)
    most = max(map(len, seen.values()), default=0)

    def number(row: Row, column: Column) -> Number:
        if row.kind == "reference":
            return references.get((row.model, replace(column, bits=0)), Number())
        if row.kind == "difference":
            on, off = sides.get((row, column), ({}, {}))
            known = _difference(on, off, compared.get((row, column)))
            text = difference(known.value, column.lower_is_better, known.spread)
        else:
            own = seen.get((row, column), {})
            cells = tuple(own[seed].fingerprint for seed in sorted(own))
            known = _number([item.value for item in own.values()], cells=cells)
            text = f"{amount(known.value)} {around(column, known)}".rstrip()
        # fewer seeds than elsewhere in the table is said where it happens
        if known.seeds < most:
            text += f" (n={known.seeds})"
        lost = left.get((row, column.bits), ())
        if not known.seeds:
            text = lost[-1].word if lost else EMPTY
        return replace(known, text=text, unfinished=lost)

    lines: list[TableLine] = []
    for row in rows:
        numbers = tuple(number(row, column) for column in columns)
        lines.append(TableLine(row, numbers))
        if any(item.found for item in numbers):
            ends = tuple(Number(interval(item.found)) for item in numbers)
            p_values = tuple(Number(p_text(item.found)) for item in numbers)
            lines += [
                TableLine(replace(row, kind="interval"), ends),
                TableLine(replace(row, kind="p"), p_values),
            ]
    legend = [f"value ± standard deviation over {most} seeds"] if most > 1 else []
    if any(row.kind == "difference" for row in rows):
        legend.append(f"lines '- {NO_CORRECTION}': corrected minus uncorrected; negative is better under ↓")
    legend += compared_notes(list(compared.values()))
    legend += not_compared_notes(
        [_metrics(side) for at in sides.keys() - compared.keys() for side in sides[at]]
    )
    both = [(item.cells, item.others) for line in lines for item in line.numbers if item.others]
    notes += allowed_notes(records) + code_notes(records, superseded, codes)
    notes += processor_notes(records, both) + weights_notes(records)
    plain = [(column.bits, column.header(ambiguous=False)) for column in columns]
    heads = (
        Head(f"{column.bits} bit", column.header(ambiguous=plain.count(head) > 1))
        for column, head in zip(columns, plain, strict=True)
    )
    return Table(tuple(heads), tuple(lines), tuple(legend), tuple(notes), columns)


def _metrics(side: Mapping[int, Observation]) -> dict[int, Metric]:
    return {seed: item.metric for seed, item in side.items() if item.metric}


def _references(records: Sequence[RunRecord]) -> tuple[dict[tuple[str, Column], Number], list[str]]:
    """The unquantized model's value by model and column (bits aside: it has the same in each)."""
    found: dict[tuple[str, Column], Number] = {}
    notes: dict[str, None] = {}
    for record in sorted(records, key=lambda record: record.created):
        for metric in record.metrics:
            if metric.reference is None:
                continue
            place = (record.cell.model, column_of(metric, 0))
            before = found[place].value if place in found else metric.reference
            if not np.isclose(before, metric.reference, rtol=1e-6, equal_nan=True):
                text = f"{place[0]}: records disagree on the unquantized {metric.name}; the newest is shown"
                notes[text] = None
            found[place] = Number(
                amount(metric.reference), metric.reference, seeds=1, cells=(record.fingerprint,)
            )
    return found, list(notes)


def _difference(
    on: Mapping[int, Observation], off: Mapping[int, Observation], found: Difference | None
) -> Number:
    """Corrected minus uncorrected, of the seeds that have both."""
    both = [seed for seed in on if seed in off]
    pairs = [(on[seed].value, off[seed].value) for seed in both]
    # two infinite values have no difference
    values = [a - b for a, b in pairs if a != b or isfinite(a)]
    cells, others = (tuple(side[seed].fingerprint for seed in sorted(both)) for side in (on, off))
    return _number(values, cells=cells, others=others, found=found)


def _number(values: Sequence[float], **known: Any) -> Number:
    """The mean over seeds and its spread."""
    with np.errstate(all="ignore"):  # inf - inf is a NaN on purpose
        mean = float(np.mean(values)) if values else nan
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else nan
    if spread < ROUND_OFF * abs(mean):
        spread = 0.0
    return Number(value=mean, spread=spread, seeds=len(values), **known)


def around(column: Column, number: Number) -> str:
    """Return the spread of a value over seeds, ``± 1.41``, or an empty text if there is none.

    Storage that does not depend on the seed has none.
    """
    constant = column.protocol is None and number.spread == 0
    return f"± {amount(number.spread)}" if isfinite(number.spread) and not constant else ""
