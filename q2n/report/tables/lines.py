"""The lines of a table, and which record's value stands where."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from q2n.exceptions import RecordError
from q2n.records.schema import Metric, RunRecord
from q2n.report.tables.columns import Column, column_of, storage_column
from q2n.report.tables.settings import Settings, distinguishing
from q2n.report.tables.unfinished import Unfinished

NO_CORRECTION = "off"
REFERENCE = "unquantized"

Seeds = dict[int, float]
"""Values by seed: the only thing a table averages over."""

Values = Mapping[tuple["Row", Column], Seeds]

Metrics = Mapping[tuple["Row", Column], Mapping[int, Metric]]
"""What each value is a summary of, by seed."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line: a value, the difference of a corrected line to the one without, or the model's reference."""

    model: str
    baseline: str
    settings: tuple[str, ...]
    correction: str
    correction_settings: tuple[str, ...] = ()
    kind: Literal["reference", "value", "difference"] = "value"

    @property
    def line(self) -> str:
        """What the line is called: ``on (q2n.t=0.1)``, ``on - off``."""
        minus = f" - {NO_CORRECTION}" if self.kind == "difference" else ""
        extra = f" ({', '.join(self.correction_settings)})" if self.correction_settings else ""
        return f"{self.correction}{minus}{extra}"

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Labels of the row in a pandas MultiIndex."""
        return (self.model, self.baseline, ", ".join(self.settings), self.line)


def observations(
    records: Sequence[RunRecord], unfinished: Sequence[Unfinished] = ()
) -> tuple[list[Settings], Values]:
    """The labels of each record and then of each unfinished cell, and every measured value by line, column
    and seed; an unfinished cell has a line, and no value in it.

    Raises:
        RecordError: two records claim one line, column and seed.
    """
    clash: str | None = None
    # What is evaluated is told apart by the columns; its settings become labels only where that fails.
    for ignore, absent in ((("evaluation",), False), ((), False), ((), True)):
        labels = distinguishing([*records, *unfinished], ignore, absent)
        values, clash = _collect(records, labels[: len(records)])
        for item, settings in zip(unfinished, labels[len(records) :], strict=True):
            values.setdefault((row_of(item, settings), storage_column(item.cell.bits)), {})
        if clash is None:
            return labels, values
    raise RecordError(f"records {clash} differ in nothing a table could show; delete one of them")


def measured(records: Sequence[RunRecord], labels: Sequence[Settings]) -> Metrics:
    """Every metric by line, column and seed, for records that :func:`observations` could tell apart."""
    found: dict[tuple[Row, Column], dict[int, Metric]] = defaultdict(dict)
    for record, settings in zip(records, labels, strict=False):
        for metric in record.metrics:
            place = (row_of(record, settings), column_of(metric, record.cell.bits))
            found[place][record.cell.seed] = metric
    return found


def origins(
    records: Sequence[RunRecord], labels: Sequence[Settings]
) -> Mapping[tuple[Row, Column], Mapping[int, str]]:
    """The fingerprint of the record behind every value, by line, column and seed."""
    found: dict[tuple[Row, Column], dict[int, str]] = defaultdict(dict)
    for record, settings in zip(records, labels, strict=False):
        columns = [column_of(metric, record.cell.bits) for metric in record.metrics]
        for column in (*columns, storage_column(record.cell.bits)):
            found[row_of(record, settings), column][record.cell.seed] = record.fingerprint
    return found


def row_of(record: RunRecord | Unfinished, settings: Settings) -> Row:
    """The line a record's values stand in."""
    cell = record.cell
    return Row(cell.model, cell.baseline, settings.cell, cell.correction, settings.correction)


def _collect(
    records: Sequence[RunRecord], labels: Sequence[Settings]
) -> tuple[dict[tuple[Row, Column], Seeds], str | None]:
    values: dict[tuple[Row, Column], Seeds] = defaultdict(dict)
    owner: dict[tuple[Row, Column, int], str] = {}
    for record, settings in zip(records, labels, strict=True):
        row, seed = row_of(record, settings), record.cell.seed
        for metric in record.metrics:
            place = (row, column_of(metric, record.cell.bits))
            if seed in values[place]:
                return values, f"{owner[(*place, seed)]} and {record.fingerprint}"
            values[place][seed] = metric.value
            owner[(*place, seed)] = record.fingerprint
        values[row, storage_column(record.cell.bits)][seed] = record.bits_per_weight
    return values, None


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Models and baselines as first met; ``off`` before the corrections; settings sorted."""
    rows = list(rows)
    models, baselines = [row.model for row in rows], [row.baseline for row in rows]
    corrections = [NO_CORRECTION, *(row.correction for row in rows)]

    def order(row: Row) -> tuple[object, ...]:
        place = (models.index(row.model), baselines.index(row.baseline), natural(row.settings))
        return (*place, corrections.index(row.correction), natural(row.correction_settings))

    return sorted(rows, key=order)


def arrange(values: Values, referenced: bool) -> list[Row]:
    """Order of printing (:func:`in_order`), with the lines of references and differences."""
    met = list(dict.fromkeys(row for row, _ in values))
    lines: list[Row] = []
    for row in in_order(met):
        if referenced and (not lines or lines[-1].model != row.model):
            lines.append(Row(row.model, "", (), REFERENCE, kind="reference"))
        lines.append(row)
        if row.correction != NO_CORRECTION and without_correction(row) in met:
            lines.append(dataclasses.replace(row, kind="difference"))
    return lines


def without_correction(row: Row) -> Row:
    """The line a corrected line is compared with."""
    return Row(row.model, row.baseline, row.settings, NO_CORRECTION)


def natural(labels: Sequence[str]) -> list[tuple[str, float, str]]:
    """Sort key that puts ``t=0.05`` before ``t=0.1`` and ``group_size=64`` before ``group_size=128``."""
    keys: list[tuple[str, float, str]] = []
    for label in labels:
        name, _, value = label.partition("=")
        try:
            keys.append((name, float(value), ""))
        except ValueError:
            keys.append((name, float("inf"), value))
    return keys
