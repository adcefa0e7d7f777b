"""Published numbers beside ours (``experiments/published.yaml``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from q2n.records.fingerprint import plain
from q2n.records.store import RunRecord
from q2n.report.studies.study import PublishedValue
from q2n.report.tables.lines import Column, Row
from q2n.report.tables.models import own_name
from q2n.report.tables.settings import values_by_key
from q2n.report.tables.table import Head, Number, Table, TableLine
from q2n.report.tables.text import amount


@dataclass(frozen=True)
class Beside:
    """A published number beside one of ours.

    ``row`` and ``measured`` are None if no cell of ours has its place. ``differs`` lists the differences
    between the protocols, empty if the two numbers are comparable.
    """

    published: PublishedValue
    row: Row | None = None
    measured: Number | None = None
    differs: tuple[str, ...] = ()

    @property
    def difference(self) -> float | None:
        """Measured minus published value, or None if the two are not comparable."""
        if self.measured is None or self.differs:
            return None
        return self.measured.value - self.published.value

    @property
    def remark(self) -> str:
        """Reason why the two numbers are not comparable, or an empty text if they are."""
        if self.measured is None:
            return "not measured here"
        return f"not comparable: {'; '.join(self.differs)}" if self.differs else ""


def beside(
    values: Sequence[PublishedValue], name: str, tables: Sequence[Table], records: Sequence[RunRecord]
) -> tuple[Beside, ...]:
    """Pair every published number of a study with each of our numbers at its place, in the file's order.

    Args:
        values: published numbers, of any study.
        name: name of the study.
        tables: tables of the study.
        records: records behind the tables.
    """
    by_fingerprint = {record.fingerprint: record for record in records}
    measured = [
        (row, column, number, by_fingerprint[number.cells[0]])
        for table in tables
        for (row, column), number in table.numbers.items()
        if row.kind == "value" and column.protocol and number.cells
    ]
    lines: list[Beside] = []
    for value in values:
        if value.study != name:
            continue
        there, below = value.row, value.column
        wanted = (there.model, there.baseline, there.q2n, below.bits, below.metric, below.dataset)
        lines += [
            Beside(value, row, number, _differs(value.protocol, column, first))
            for row, column, number, first in measured
            if wanted
            == (own_name(first), row.baseline, row.correction, column.bits, column.name, column.dataset)
        ] or [Beside(value)]
    return tuple(lines)


def _differs(said: Mapping[str, Any], column: Column, record: RunRecord) -> tuple[str, ...]:
    """Differences between the protocols, one per field: ``seqlen is 512 here, 2048 there``."""
    ours = {**values_by_key(record), **(column.protocol.model_dump() if column.protocol else {})}
    return tuple(
        f"{key} is {ours[key]} here, {theirs} there" if key in ours else f"{key} is not known here"
        for key, theirs in said.items()
        if key not in ours or not _same(plain(ours[key]), plain(theirs))
    )


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, (int, float)) and isinstance(theirs, (int, float)):
        return math.isclose(ours, theirs, rel_tol=1e-12)
    return bool(ours == theirs)


def published_table(found: Sequence[Beside]) -> Table:
    """Table of published and measured numbers with their difference, one line per pair."""
    lines = []
    for item in found:
        value, row, column = item.published, item.published.row, item.published.column
        measured, signed = Number(), Number()
        if item.measured is not None:
            measured = replace(item.measured, text=amount(item.measured.value))
            if item.difference is not None:
                signed = Number(f"{item.difference:+.2f}", item.difference, cells=measured.cells)
        numbers = (
            Number(f"{column.bits:g} bit {column.dataset} {column.metric}"),
            Number(amount(value.value), value.value),
            measured,
            signed,
            Number(value.table),
            Number("; ".join(part for part in (item.remark, value.note) if part)),
        )
        lines.append(TableLine(item.row or Row(row.model, row.baseline, (), row.q2n), numbers))
    names = ("column", "published", "measured", "difference", "where", "remark")
    heads = tuple(Head("", (name,), words=name in ("column", "where", "remark")) for name in names)
    note = "difference: measured minus published; none where the protocols differ in what is known of them"
    return Table(heads, tuple(lines), notes=(note,), title="Published numbers", parted_by=2)
