"""Comparison of two results folders: the same cells of both, with B minus A and its significance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q2n.records.fingerprint import canonical_json, flatten
from q2n.records.schema import Cell, Metric, RunRecord
from q2n.records.store import read_all
from q2n.report.render.formats import markdown
from q2n.report.tables.comparisons import BySeed, Difference, differences
from q2n.report.tables.lines import Column, Row, column_of, in_order, row_of
from q2n.report.tables.models import told_apart
from q2n.report.tables.select import latest, same_cell
from q2n.report.tables.settings import distinguishing
from q2n.report.tables.table import Head, Number, Table, TableLine
from q2n.report.tables.text import amount, compared_notes, difference, interval, p_text
from q2n.runtime.files import write_text_atomic

DEFAULT_FILE = "comparison.md"
SHOWN = 20
"""Most cells listed of those that only one folder has."""

Pairs = Mapping[tuple[Row, Column], tuple[BySeed, BySeed]]
"""Metrics of A and of B by line and column, each by seed."""


@dataclass(frozen=True)
class Sides:
    """Comparison of two folders called ``names``.

    ``tables`` has every common number, ``lines`` the summary and the cells that only one folder has,
    ``faults`` one message per file that could not be read.
    """

    names: tuple[str, str]
    tables: tuple[Table, ...]
    lines: tuple[str, ...]
    faults: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Write the comparison as Markdown.

        Raises:
            OSError: the folder cannot be written.
        """
        a, b = self.names
        tables = [markdown(table, f"A: {a}; B: {b}") for table in self.tables]
        write_text_atomic(path, "\n".join([*tables, *(f"* {line}\n" for line in self.lines)]))


def compare_folders(a: Path, b: Path, names: tuple[str, str]) -> Sides:
    """Compare the newest records of two results folders, matched by configuration, whatever their study."""
    (first, faults), (second, more) = (read_all(folder) for folder in (a, b))
    return compare_records(first, second, names, (*faults, *more))


def compare_records(
    a: Iterable[RunRecord], b: Iterable[RunRecord], names: tuple[str, str], faults: Sequence[str] = ()
) -> Sides:
    """Compare the records of two origins; ``faults`` is passed on to the result."""
    a = list(a)
    both, _ = told_apart([*a, *b])
    sides, notes = _keyed(_current(both[: len(a)]), _current(both[len(a) :]))
    labelled = {**sides[1], **sides[0]}
    settings = distinguishing(list(labelled.values()), ("evaluation",))
    rows = dict(zip(labelled, map(row_of, labelled.values(), settings), strict=True))
    pairs = _pairs(sides, rows)
    # equal numbers need no test, and would only make Holm's adjustment of the others stricter
    found = differences({where: (b, a) for where, (a, b) in pairs.items() if not _same(a, b)})
    lines = [*notes, *_verdict(pairs, found)]
    for name, own, other in zip(names, sides, sides[::-1], strict=True):
        lines += _alone(name, {key: own[key].cell for key in own if key not in other}, rows)
    tables = (_table(pairs, found),) if pairs else ()
    return Sides(names, tables, tuple(lines), tuple(faults))


def _current(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The newest record of each configuration in a fixed order; a cell that studies share appears once."""
    return latest(sorted(records, key=lambda record: (record.cell.bits, record.created)))[0]


def _keyed(
    a: Sequence[RunRecord], b: Sequence[RunRecord]
) -> tuple[tuple[dict[str, RunRecord], ...], list[str]]:
    """Records of both sides by configuration, and notes on the keys that were ignored.

    Keys that exist on one side only (options added between the two) are ignored when cells are matched,
    unless two cells of that side differ in nothing else.
    """
    trees = [[flatten(same_cell(record)) for record in side] for side in (a, b)]
    known = [set[str]().union(*side) for side in trees]
    for counting in (known[0] & known[1], known[0] | known[1]):
        keys = [
            [canonical_json({k: v for k, v in t.items() if k in counting}) for t in side] for side in trees
        ]
        if all(len(set(side)) == len(side) for side in keys):
            break
    notes = [
        f"keys that only {name} has do not count: {', '.join(sorted(own - counting))}"
        for name, own in zip("AB", known, strict=True)
        if own - counting
    ]
    return tuple(dict(zip(k, side, strict=True)) for k, side in zip(keys, (a, b), strict=True)), notes


def _pairs(sides: Sequence[Mapping[str, RunRecord]], rows: Mapping[str, Row]) -> Pairs:
    """Metrics that both folders measured by the same protocol, in the order of the tables."""
    found: list[dict[tuple[Row, Column], dict[int, Metric]]] = [defaultdict(dict), defaultdict(dict)]
    for key in sides[0].keys() & sides[1].keys():
        for record, side in zip((sides[0][key], sides[1][key]), found, strict=True):
            for metric in record.metrics:
                side[rows[key], column_of(metric, record.cell.bits)][record.cell.seed] = metric
    ranks = {row: rank for rank, row in enumerate(in_order(dict.fromkeys(rows.values())))}

    def order(where: tuple[Row, Column]) -> tuple[Any, ...]:
        row, column = where
        protocol = column.protocol and f"{column.protocol.label()} #{column.protocol.key()}"
        return (ranks[row], column.bits, column.dataset, column.name, column.unit, protocol)

    a, b = found
    common = sorted(a.keys() & b.keys(), key=order)
    return {where: (a[where], b[where]) for where in common if a[where].keys() & b[where].keys()}


def _same(a: BySeed, b: BySeed) -> bool:
    """True if both sides have the same numbers for every common seed."""
    return all(
        (a[seed].value, a[seed].parts) == (b[seed].value, b[seed].parts) for seed in a.keys() & b.keys()
    )


def _table(pairs: Pairs, found: Mapping[tuple[Row, Column], Difference]) -> Table:
    lines = []
    for (row, column), (a, b) in pairs.items():
        seeds = sorted(a.keys() & b.keys())
        means = [sum(side[seed].value for seed in seeds) / len(seeds) for side in (a, b)]
        item = found.get((row, column))
        numbers = (
            Number(f"{column.bits:g} bit {column.metric} {'↓' if column.lower_is_better else '↑'}"),
            *(Number(amount(mean)) for mean in means),
            Number(difference(means[1] - means[0], column.lower_is_better), found=item),
            Number(interval(item)),
            Number(p_text(item)),
            Number(str(len(seeds))),
        )
        lines.append(TableLine(row, numbers))
    heads = ("column", "A", "B", "B - A", "95 % interval", "p", "seeds")
    legend = compared_notes(list(found.values()), "A's value")
    return Table(tuple(Head("", (head,)) for head in heads), tuple(lines), legend, parted_by=2)


def _verdict(pairs: Pairs, found: Mapping[tuple[Row, Column], Difference]) -> list[str]:
    if not pairs:
        return ["no cell of the same configuration and protocol is in both"]
    sure = {where: item for where, item in found.items() if item.significant}
    better = sum((item.estimate < 0) == column.lower_is_better for (_, column), item in sure.items())
    same = sum(_same(*both) for both in pairs.values())
    return [
        f"numbers in both: {len(pairs)}; the same to the last digit: {same}; B significantly better: "
        f"{better}, worse: {len(sure) - better}; different and undecided: {len(pairs) - same - len(sure)}"
    ]


def _alone(name: str, cells: Mapping[str, Cell], rows: Mapping[str, Row]) -> list[str]:
    """The line that lists the cells only one side has; empty if there are none."""
    if not cells:
        return []
    told = []
    for key, cell in cells.items():
        row = rows[key]
        axes = (f"{cell.bits:g} bit", *row.settings, row.line, f"seed {cell.seed}")
        told.append(", ".join((row.model, row.baseline, *axes)))
    more = [f"and {len(told) - SHOWN} more"] if len(told) > SHOWN else []
    counted = f"{len(told)} cell{'s' if len(told) > 1 else ''}"
    return [f"only in {name}, {counted}: {'; '.join(told[:SHOWN] + more)}"]
