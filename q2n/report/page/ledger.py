"""A table to sort and filter: a line a method and bit width, every number with the records behind it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from q2n.report.overview import StudyReport
from q2n.report.render.text import EMPTY, HUGE, amount, compared_notes, difference, interval, p_text, signed
from q2n.report.tables.columns import Column, column_of
from q2n.report.tables.lines import NO_CORRECTION, Row
from q2n.report.tables.pairs import Pair
from q2n.report.tables.table import Table

ONE_SEED, FAILED, NOT_RUN = "one seed", "failed", "not run"


@dataclass(frozen=True)
class Number:
    """A number as it is shown. ``order`` is what it is sorted by (None: last), ``cells`` are the fingerprints
    of its records, ``detail`` stands small below it, ``verdict`` is that of a difference: ``better``,
    ``worse`` (both established), ``undecided`` or ``one seed``."""

    text: str = EMPTY
    order: float | None = None
    cells: tuple[str, ...] = ()
    detail: str = ""
    verdict: str = ""


NOTHING = Number("")
"""Where there can be no number."""


@dataclass(frozen=True)
class Measure:
    """What two columns show: the value and its difference to no correction; ``about`` is the protocol."""

    name: str
    about: str
    compared: bool


@dataclass(frozen=True)
class LedgerLine:
    """``state`` is ``reference``, ``finished``, ``failed`` or ``not run``; ``numbers`` are value and (where
    compared) difference of each measure; ``repeats`` says how many of the first labels (model, baseline,
    settings, bits) are those of the line before."""

    model: str
    baseline: str
    settings: str
    line: str
    bits: int | float | None
    seeds: Number
    numbers: tuple[Number, ...]
    storage: Number
    state: str
    repeats: int = 0

    @property
    def labels(self) -> tuple[object, ...]:
        return (self.model, self.baseline, self.settings, self.bits)

    @property
    def cells(self) -> tuple[Number, ...]:
        """What stands beside the labels."""
        return (self.seeds, *self.numbers, self.storage)


@dataclass(frozen=True)
class Ledger:
    """One table of a study."""

    measures: tuple[Measure, ...]
    lines: tuple[LedgerLine, ...]
    settled: bool
    notes: tuple[str, ...]

    @property
    def detailed(self) -> frozenset[int]:
        """Columns beside the labels in which something small stands by a number."""
        return frozenset(
            place for line in self.lines for place, number in enumerate(line.cells) if number.detail
        )

    @property
    def changes(self) -> frozenset[int]:
        """Columns beside the labels that show differences."""
        return frozenset(
            place for line in self.lines for place, number in enumerate(line.cells) if number.verdict
        )


def ledgers(report: StudyReport) -> list[Ledger]:
    """The tables of a study."""
    return [_Builder(report, table).ledger() for table in report.tables]


def of_pair(pair: Pair) -> Number:
    """The difference of a pair: estimate, interval and p-value where they are known."""
    cells = (*pair.corrected_cells, *pair.uncorrected_cells)
    found = pair.found
    if found is None:
        raw = pair.corrected - pair.uncorrected
        text = difference(raw, pair.column.lower_is_better).partition(" ")[0]
        text = EMPTY if math.isnan(raw) else text  # both are infinite
        return Number(text, finite(raw), cells, "no interval", "undecided")
    unit = " %" if found.relative else ""
    digits = 1 if found.relative else 4
    estimate = found.estimate
    text = f"{estimate:+,.{digits}f}" if abs(estimate) < HUGE else signed(estimate, found.relative)
    detail = f"{interval(found).removesuffix(' %')}, p {p_text(found.p_value)}"
    verdict = ONE_SEED if found.seeds < 2 else pair.verdict
    return Number(f"{text}{unit}", finite(found.estimate), cells, detail, verdict)


class _Builder:
    """Reads one table of a report."""

    def __init__(self, report: StudyReport, table: Table) -> None:
        self._table = table
        self._mean, self._spread = table.mean.to_numpy(), table.spread.to_numpy()
        self._counts = table.seeds.to_numpy()
        self._pairs = {(pair.row, pair.column): pair for pair in report.pairs}
        self._places = {column: j for j, column in enumerate(table.columns)}
        self._bits = sorted({column.bits for column in table.columns})
        self._measures = list(dict.fromkeys(replace(c, bits=0) for c in table.columns if c.protocol))
        self._storage = next((replace(c, bits=0) for c in table.columns if c.protocol is None), None)
        self._compared = {replace(column, bits=0) for _, column in self._pairs}
        self._references = {
            (record.cell.model, column_of(metric, 0)): record.fingerprint
            for record in sorted(report.records, key=lambda record: record.created)
            for metric in record.metrics
            if metric.reference is not None
        }

    def ledger(self) -> Ledger:
        heads = [measure.header(ambiguous=False) for measure in self._measures]
        measures = tuple(
            Measure(head[0], _about(column, heads.count(head) > 1), column in self._compared)
            for head, column in zip(heads, self._measures, strict=True)
        )
        spread = (self._counts > 1).any()
        notes = ["\u00b1: standard deviation over seeds"] if spread else []
        notes += compared_notes(list(self._table.compared.values()))
        settled = any(row.settings for row in self._table.rows)
        return Ledger(measures, tuple(self._lines()), settled, (*notes, *self._table.notes))

    def _lines(self) -> Iterator[LedgerLine]:
        """Each method's lines by bits, so that what is compared stands together."""
        kept = [(i, row) for i, row in enumerate(self._table.rows) if row.kind != "difference"]
        groups = itertools.groupby(kept, key=lambda item: (item[1].kind, *item[1].key[:3]))
        above: tuple[object, ...] = ()
        for (kind, *_), members in groups:
            rows = list(members)
            for bits in (None,) if kind == "reference" else self._bits:
                for i, row in rows:
                    line = self._line(i, row, bits)
                    pairs = zip(line.labels, above, strict=False)
                    same = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
                    above = line.labels
                    yield replace(line, repeats=len(list(same)))

    def _line(self, i: int, row: Row, bits: int | float | None) -> LedgerLine:
        failures = self._failures(i, bits)
        counted = self._seeds(i, bits)
        state = row.kind if bits is None else "finished" if counted else FAILED if failures else NOT_RUN
        numbers = list(self._numbers(i, row, bits))
        if state in (FAILED, NOT_RUN) and numbers:
            numbers[0] = Number(state, cells=failures)
        return LedgerLine(
            model=row.model,
            baseline=row.baseline,
            settings=", ".join(row.settings),
            line=row.line,
            bits=bits,
            seeds=_seeds(counted, failures) if bits is not None else NOTHING,
            numbers=tuple(numbers),
            storage=self._value(i, self._storage, bits) if self._storage else Number(),
            state=state,
        )

    def _numbers(self, i: int, row: Row, bits: int | float | None) -> Iterator[Number]:
        for measure in self._measures:
            yield self._value(i, measure, bits)
            if measure in self._compared:
                pair = self._pairs.get((row, replace(measure, bits=bits or 0)))
                alone = row.kind == "reference" or row.correction == NO_CORRECTION
                yield of_pair(pair) if pair else NOTHING if alone else Number()

    def _seeds(self, i: int, bits: int | float | None) -> int:
        return max((int(self._counts[i, j]) for j in self._of(bits)), default=0)

    def _failures(self, i: int, bits: int | float | None) -> tuple[str, ...]:
        """Fingerprints of the line's failed cells."""
        items = [item for j in self._of(bits) for item in self._table.unfinished.get((i, j), ())]
        return tuple(dict.fromkeys(item.failure.ref.fingerprint for item in items if item.failure))

    def _of(self, bits: int | float | None) -> list[int]:
        return [j for column, j in self._places.items() if bits in (None, column.bits)]

    def _value(self, i: int, measure: Column, bits: int | float | None) -> Number:
        """What the table has there; of a reference, which has no bits, what it has anywhere."""
        columns = [replace(measure, bits=known) for known in self._bits if bits in (None, known)]
        places = [self._places[column] for column in columns if column in self._places]
        measured = [j for j in places if self._counts[i, j]]
        if not measured:
            return Number()
        j = measured[0]
        value, spread = float(self._mean[i, j]), float(self._spread[i, j])
        constant = measure.protocol is None and spread == 0  # storage does not depend on the seed
        detail = "" if math.isnan(spread) or constant else f"± {amount(spread)}"
        return Number(amount(value), finite(value), self._sources(i, j, measure), detail)

    def _sources(self, i: int, j: int, measure: Column) -> tuple[str, ...]:
        row = self._table.rows[i]
        if row.kind == "reference":
            found = self._references.get((row.model, measure))
            return (found,) if found else ()
        own = self._table.sources[i, j][0]
        return tuple(own[seed] for seed in sorted(own))


def _about(column: Column, ambiguous: bool) -> str:
    """Unit, windows and protocol of a column."""
    return " \u00b7 ".join(column.header(ambiguous)[1:]).replace(" \u00b7 x ", " x ")


def _seeds(counted: int, failures: tuple[str, ...]) -> Number:
    """How many seeds finished, and how many failed."""
    if not failures:
        return Number(str(counted), counted)
    return Number(str(counted), counted, failures, f"{len(failures)} failed")


def finite(value: float) -> float | None:
    """What a number is sorted by: one that is not finite comes last."""
    return value if math.isfinite(value) else None
