"""Lines and columns of a table, and the place of each record's values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import pandas as pd

from q2n.exceptions import RecordError
from q2n.records.schema import AnyProtocol, Metric, RunRecord
from q2n.records.store import to_frame
from q2n.report.tables.select import Unfinished
from q2n.report.tables.settings import Settings, distinguishing
from q2n.report.tables.text import INTERVAL, P_VALUE

NO_CORRECTION = "off"
REFERENCE = "unquantized"

_CELL = ["model", "baseline", "settings", "bits", "seed", "metric", "dataset", "unit", "protocol_key"]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    By ``kind``: values, differences of a corrected line to the uncorrected one, intervals or p-values of
    these differences, or the unquantized model's values (``reference``).
    """

    model: str
    baseline: str
    settings: tuple[str, ...]
    correction: str
    correction_settings: tuple[str, ...] = ()
    kind: Literal["reference", "value", "difference", "interval", "p"] = "value"

    @property
    def line(self) -> str:
        """Name of the line: ``on (q2n.t=0.1)``, ``on - off``."""
        if self.kind in ("interval", "p"):
            return INTERVAL if self.kind == "interval" else P_VALUE
        minus = f" - {NO_CORRECTION}" if self.kind == "difference" else ""
        extra = f" ({', '.join(self.correction_settings)})" if self.correction_settings else ""
        return f"{self.correction}{minus}{extra}"

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Labels of the line: model, baseline, settings and name."""
        return (self.model, self.baseline, ", ".join(self.settings), self.line)


@dataclass(frozen=True)
class Column:
    """One column of a table: number of bits, metric and protocol.

    Two values share a column only if all fields are equal, so two protocols are two columns. ``protocol`` is
    None only for bits per weight, which no evaluation measures.
    """

    bits: int | float
    name: str
    dataset: str
    unit: str
    count: int
    count_unit: str
    lower_is_better: bool
    protocol: AnyProtocol | None

    @property
    def metric(self) -> str:
        """Data set and metric: ``wiki perplexity``."""
        return f"{self.dataset} {self.name}".strip()

    def header(self, ambiguous: bool) -> tuple[str, ...]:
        """Lines of the printed header below the bits: metric and direction, unit, windows, protocol.

        Args:
            ambiguous: whether another column prints the same lines, because texts or tokenizers differ;
                then the protocol's digest is added.
        """
        if self.protocol is None:
            return ("bits per", "weight", self.unit)
        arrow = "↓" if self.lower_is_better else "↑"
        windows, *rest = self.protocol.parts()
        counted: tuple[str, ...] = (f"{self.count} {self.count_unit}", "x " + windows.partition(" x ")[2])
        if windows == f"{self.count} {self.count_unit}":
            counted = (windows,)
        elif (self.count, self.count_unit) != (self.protocol.windows, "windows"):
            counted = (f"{self.count} {self.count_unit}", windows)
        digest = (f"#{self.protocol.key()}",) if ambiguous else ()
        return (f"{self.dataset} {self.name} {arrow}", self.unit, *counted, *rest, *digest)


def column_of(metric: Metric, bits: int | float) -> Column:
    """Column of a metric of a cell with this number of bits."""
    fields = ("name", "dataset", "unit", "count", "count_unit", "lower_is_better", "protocol")
    return Column(bits, *(getattr(metric, field) for field in fields))


def storage_column(bits: int | float) -> Column:
    """Column of the bits per weight: the average storage of a quantized weight."""
    return Column(bits, "bits/weight", "", "mean", 0, "", True, None)


class Observation(NamedTuple):
    """Value of one seed, fingerprint of its record, and its metric or None if it is bits per weight."""

    value: float
    fingerprint: str
    metric: Metric | None = None


Observations = Mapping[tuple[Row, Column], Mapping[int, Observation]]
"""Measured values by line and column, then by seed: a table averages over nothing but seeds."""


def observations(
    records: Sequence[RunRecord], unfinished: Sequence[Unfinished] = ()
) -> tuple[list[Settings], Observations]:
    """Arrange all measured values by line, column and seed.

    Returns:
        The labels of each record, followed by those of each unfinished cell, and the values. An unfinished
        cell has a line without a value.

    Raises:
        RecordError: two records have the same line, column and seed.
    """
    clash: str | None = None
    # Columns tell evaluations apart; settings of the evaluation become labels only if that fails.
    for ignore, absent in ((("evaluation",), False), ((), False), ((), True)):
        labels = distinguishing([*records, *unfinished], ignore, absent)
        found, clash = _collect(records, labels[: len(records)])
        if clash is None:
            for item, settings in zip(unfinished, labels[len(records) :], strict=True):
                found.setdefault((row_of(item, settings), storage_column(item.cell.bits)), {})
            return labels, found
    raise RecordError(f"records {clash} differ in nothing a table could show; delete one of them")


def _collect(
    records: Sequence[RunRecord], labels: Sequence[Settings]
) -> tuple[dict[tuple[Row, Column], dict[int, Observation]], str | None]:
    """The observations, and the fingerprints of two records of one place or None if there are none."""
    found: dict[tuple[Row, Column], dict[int, Observation]] = defaultdict(dict)
    for record, settings in zip(records, labels, strict=True):
        row, bits, seed = row_of(record, settings), record.cell.bits, record.cell.seed
        for metric in record.metrics:
            place = found[row, column_of(metric, bits)]
            if seed in place:
                return found, f"{place[seed].fingerprint} and {record.fingerprint}"
            place[seed] = Observation(metric.value, record.fingerprint, metric)
        found[row, storage_column(bits)][seed] = Observation(record.bits_per_weight, record.fingerprint)
    return found, None


def row_of(record: RunRecord | Unfinished, settings: Settings) -> Row:
    """Line of a record's values."""
    cell = record.cell
    return Row(cell.model, cell.baseline, settings.cell, cell.correction, settings.correction)


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Sort lines: models and baselines in the order given, ``off`` before corrections, settings by value."""
    rows = list(rows)
    models, baselines = [row.model for row in rows], [row.baseline for row in rows]
    corrections = [NO_CORRECTION, *(row.correction for row in rows)]

    def order(row: Row) -> tuple[object, ...]:
        place = (models.index(row.model), baselines.index(row.baseline), natural(row.settings))
        return (*place, corrections.index(row.correction), natural(row.correction_settings))

    return sorted(rows, key=order)


def arrange(found: Observations, referenced: bool) -> list[Row]:
    """Lines in the order of printing (:func:`in_order`), with those of references and differences.

    Args:
        found: the measured values.
        referenced: whether each model begins with the line of its unquantized values.
    """
    met = list(dict.fromkeys(row for row, _ in found))
    lines: list[Row] = []
    for row in in_order(met):
        if referenced and (not lines or lines[-1].model != row.model):
            lines.append(reference_of(row.model))
        lines.append(row)
        if row.correction != NO_CORRECTION and without_correction(row) in met:
            lines.append(replace(row, kind="difference"))
    return lines


def reference_of(model: str) -> Row:
    """Line of the unquantized model."""
    return Row(model, "", (), REFERENCE, kind="reference")


def without_correction(row: Row) -> Row:
    """Line without correction that a corrected line is compared with."""
    return Row(row.model, row.baseline, row.settings, NO_CORRECTION)


def natural(labels: Sequence[str]) -> list[tuple[str, float, str]]:
    """Sort key by numeric value: ``t=0.05`` before ``t=0.1``, ``group_size=64`` before ``group_size=128``."""
    keys: list[tuple[str, float, str]] = []
    for label in labels:
        name, _, value = label.partition("=")
        try:
            keys.append((name, float(value), ""))
        except ValueError:
            keys.append((name, float("inf"), value))
    return keys


def long_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    """The records as one long frame with one row per cell and metric, not averaged over seeds.

    Adds to :func:`q2n.records.store.to_frame` each row's settings, the value without correction, the
    difference to it (both empty if that cell is missing), and the sum of the wall times in seconds.
    """
    frame = to_frame(records)
    if frame.empty or "metric" not in frame:
        return frame
    labels, _ = observations(records)
    pairs = [own for own, record in zip(labels, records, strict=True) for _ in record.metrics or (None,)]
    place = list(frame.columns).index("correction")
    frame.insert(place, "settings", [", ".join(pair.cell) for pair in pairs])
    frame.insert(place + 2, "q2n_settings", [", ".join(pair.correction) for pair in pairs])
    without = frame[frame["correction"] == NO_CORRECTION].drop_duplicates(_CELL)
    without = without[[*_CELL, "value"]].rename(columns={"value": "value_off"})
    frame = frame.merge(without, on=_CELL, how="left", validate="many_to_one")
    frame["value_off"] = frame["value_off"].where(frame["correction"] != NO_CORRECTION)
    frame["difference"] = frame["value"] - frame["value_off"]
    stages = [column for column in frame if str(column).startswith("seconds_")]
    frame["seconds"] = frame[stages].sum(axis=1)
    return frame
