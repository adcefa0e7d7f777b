"""Two results folders side by side: did a change help? The same cells of both, and how sure B minus A is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from q2n.records.fingerprint import canonical_json, flatten
from q2n.records.schema import Metric, RunRecord
from q2n.records.store import read_all
from q2n.report.render.formats import markdown
from q2n.report.render.text import (
    EMPTY,
    Grid,
    amount,
    compared_notes,
    difference,
    interval,
    line_grid,
    p_text,
)
from q2n.report.tables.columns import Column, column_of
from q2n.report.tables.comparisons import Difference, differences
from q2n.report.tables.lines import Row, in_order, row_of
from q2n.report.tables.models import told_apart
from q2n.report.tables.select import latest, same_cell
from q2n.report.tables.settings import distinguishing
from q2n.runtime.files import write_text_atomic

DEFAULT_FILE = "comparison.md"
SHOWN = 20
"""Cells listed of those that only one folder has."""

Seeds = dict[int, Metric]
Pairs = Mapping[tuple[Row, Column], tuple[Seeds, Seeds]]
"""What both folders measured, by line, column and seed: A's and B's."""


@dataclass(frozen=True)
class Sides:
    """The comparison of two folders called ``names``: every common number, and what is not common."""

    names: tuple[str, str]
    grids: tuple[Grid, ...]
    lines: tuple[str, ...]
    faults: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """As Markdown.

        Raises:
            OSError: the folder cannot be written.
        """
        a, b = self.names
        tables = [markdown(grid, f"A: {a}; B: {b}") for grid in self.grids]
        write_text_atomic(path, "\n".join([*tables, *(f"* {line}\n" for line in self.lines)]))


def compare_folders(a: Path, b: Path, names: tuple[str, str]) -> Sides:
    """The current records of two results folders, matched by configuration (whatever study they are in)."""
    (first, faults), (second, more) = (read_all(folder) for folder in (a, b))
    return compare_records(first, second, names, (*faults, *more))


def compare_records(
    a: Iterable[RunRecord], b: Iterable[RunRecord], names: tuple[str, str], faults: Sequence[str] = ()
) -> Sides:
    """Records of two origins side by side."""
    a = list(a)
    both, _ = told_apart([*a, *b])
    a, b = both[: len(a)], both[len(a) :]
    sides, notes = _keyed(_current(a), _current(b))
    labelled = {**sides[1], **sides[0]}
    settings = distinguishing(list(labelled.values()), ("evaluation",))
    rows = {
        key: row_of(record, labels) for (key, record), labels in zip(labelled.items(), settings, strict=True)
    }
    pairs = _pairs(sides, rows)
    # cells that are the same to the last digit need no test, and must not make it harder for the others
    order = [where for where, both in pairs.items() if not _same(*both)]
    compared = differences({(place, 0): pairs[key][::-1] for place, key in enumerate(order)})
    found = {order[place]: item for (place, _), item in compared.items()}
    lines = [*notes, *_verdict(pairs, found)]
    for name, own, other in zip(names, sides, sides[::-1], strict=True):
        lines += _alone(name, [rows[key] for key in own if key not in other], own, other)
    grids = (_grid(pairs, found),) if pairs else ()
    return Sides(names, grids, tuple(lines), tuple(faults))


def _current(records: Iterable[RunRecord]) -> list[RunRecord]:
    """The newest record of each configuration, in a fixed order; of cells shared by studies one."""
    return latest(sorted(records, key=lambda record: (record.cell.bits, record.created)))[0]


def _keyed(
    a: Sequence[RunRecord], b: Sequence[RunRecord]
) -> tuple[tuple[dict[str, RunRecord], ...], list[str]]:
    """Both sides by configuration. Keys that only one side knows (an option that was added between the two)
    do not count, unless they tell two cells of that side apart."""
    trees = [[_leaves(record) for record in side] for side in (a, b)]
    known = [{key for tree in side for key in tree} for side in trees]
    common = known[0] & known[1]
    for counting in (common, known[0] | known[1]):
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


def _leaves(record: RunRecord) -> dict[str, Any]:
    return flatten(same_cell(record))


def _pairs(sides: Sequence[Mapping[str, RunRecord]], rows: Mapping[str, Row]) -> Pairs:
    """Numbers by the same protocol that both folders have; lines in the order of the tables."""
    found: dict[tuple[Row, Column], tuple[Seeds, Seeds]] = defaultdict(lambda: ({}, {}))
    for key in sides[0].keys() & sides[1].keys():
        for place, side in enumerate(sides):
            for metric in side[key].metrics:
                where = (rows[key], column_of(metric, side[key].cell.bits))
                found[where][place][side[key].cell.seed] = metric
    ranks = {row: rank for rank, row in enumerate(in_order(dict.fromkeys(rows.values())))}

    def order(where: tuple[Row, Column]) -> tuple[Any, ...]:
        row, column = where
        return (ranks[row], column.bits, column.dataset, column.name, column.key)

    return {
        where: found[where]
        for where in sorted(found, key=order)
        if found[where][0].keys() & found[where][1].keys()
    }


def _same(a: Seeds, b: Seeds) -> bool:
    """Whether every seed that both have has the same numbers in both."""
    return all(
        (a[seed].value, a[seed].parts) == (b[seed].value, b[seed].parts) for seed in a.keys() & b.keys()
    )


def _grid(pairs: Pairs, found: Mapping[tuple[Row, Column], Difference]) -> Grid:
    lines = []
    for (row, column), (a, b) in pairs.items():
        seeds = sorted(a.keys() & b.keys())
        means = [sum(side[seed].value for seed in seeds) / len(seeds) for side in (a, b)]
        item = found.get((row, column))
        texts = (
            f"{column.bits:g} bit {column.dataset} {column.name} {'↓' if column.lower_is_better else '↑'}",
            *map(amount, means),
            difference(means[1] - means[0], column.lower_is_better),
            EMPTY if item is None else interval(item),
            EMPTY if item is None else p_text(item.p_value),
            str(len(seeds)),
        )
        lines.append((row, texts, item is not None and item.established))
    heads = ("column", "A", "B", "B - A", "95 % interval", "p", "seeds")
    return line_grid(lines, heads, heads.index("B - A"), compared_notes(list(found.values()), "A's value"))


def _verdict(pairs: Pairs, found: Mapping[tuple[Row, Column], Difference]) -> list[str]:
    if not pairs:
        return ["no cell of the same configuration and protocol is in both"]
    sure = {where: item for where, item in found.items() if item.established}
    better = sum((item.estimate < 0) == column.lower_is_better for (_, column), item in sure.items())
    same = sum(_same(*both) for both in pairs.values())
    return [
        f"numbers in both: {len(pairs)}; the same to the last digit: {same}; B established better: {better}, "
        f"worse: {len(sure) - better}; different and undecided: {len(pairs) - same - len(sure)}"
    ]


def _alone(
    name: str, rows: Sequence[Row], own: Mapping[str, RunRecord], other: Mapping[str, RunRecord]
) -> list[str]:
    cells = [own[key].cell for key in own if key not in other]
    if not cells:
        return []
    told = [
        ", ".join(
            (row.model, row.baseline, f"{cell.bits:g} bit", *row.settings, row.line, f"seed {cell.seed}")
        )
        for row, cell in zip(rows, cells, strict=True)
    ]
    more = [f"and {len(told) - SHOWN} more"] if len(told) > SHOWN else []
    return [
        f"only in {name}, {len(told)} cell{'s' if len(told) > 1 else ''}: " + "; ".join(told[:SHOWN] + more)
    ]
