"""What a tracker is told of a whole sweep, from its records alone: plain tables, heat maps and curves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from q2n.records.store import RunRecord
from q2n.report.figures.style import vary
from q2n.report.overview import StudyReport, study_report
from q2n.report.tables.frame import long_frame
from q2n.report.tables.lines import observations, row_of
from q2n.tracking.content import finite, without_secrets
from q2n.tracking.heat_maps import HeatMap, heat_maps
from q2n.types import LayerReport

if TYPE_CHECKING:
    import pandas as pd

_LAYER_COLUMNS = tuple(
    field.name for field in fields(LayerReport) if field.name not in ("shape", "null_space", "extra")
)


@dataclass(frozen=True)
class Sheet:
    """A table. Numbers that are not finite are None: neither JSON nor a chart has a place for them."""

    columns: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Curves:
    """A layer's relative output error after the correction by block, a line a cell."""

    layer: str
    lines: dict[str, list[tuple[int, float | None]]]


@dataclass(frozen=True)
class SweepContent:
    """Everything. ``results`` has a row a cell and metric, ``differences`` one a correction against the same
    line without, ``layers`` one a cell and layer."""

    config: dict[str, Any]
    summary: dict[str, Any]
    results: Sheet
    differences: Sheet
    layers: Sheet
    heat_maps: list[HeatMap]
    curves: list[Curves]


def sweep_content(records: Iterable[RunRecord]) -> SweepContent:
    """The content of the newest record of each cell, without secrets.

    Raises:
        RecordError: two different cells cannot be told apart by their configuration.
    """
    cleaned = [record.model_copy(update={"config": without_secrets(record.config)}) for record in records]
    report = study_report("sweep", cleaned)
    labels = _labels(report.records)
    return SweepContent(
        config=_config(report.records),
        summary=_summary(report),
        results=_sheet(long_frame(report.records)),
        differences=_differences(report),
        layers=_layers(report.records, labels),
        heat_maps=heat_maps(report),
        curves=_curves(report.records, labels),
    )


def _config(records: Sequence[RunRecord]) -> dict[str, Any]:
    cells = [record.cell for record in records]
    return {
        "names": sorted({record.name for record in records}),
        "models": sorted({cell.model for cell in cells}),
        "baselines": sorted({cell.baseline for cell in cells}),
        "corrections": sorted({cell.correction for cell in cells}),
        "bits": sorted({cell.bits for cell in cells}),
        "seeds": sorted({cell.seed for cell in cells}),
        "fingerprints": sorted(record.fingerprint for record in records),
    }


def _summary(report: StudyReport) -> dict[str, Any]:
    verdicts = [pair.verdict for pair in report.pairs]
    counted = {f"differences/{word}": verdicts.count(word) for word in ("better", "worse", "undecided")}
    return {"cells": len(report.records), **counted}


def _sheet(frame: pd.DataFrame) -> Sheet:
    rows = [[finite(value) for value in row] for row in frame.astype(object).to_numpy().tolist()]
    return Sheet([str(column) for column in frame.columns], rows)


def _differences(report: StudyReport) -> Sheet:
    columns = ["model", "baseline", "settings", "correction", "bits", "metric", "protocol", "uncorrected"]
    columns += ["corrected", "unquantized", "difference", "low", "high", "unit", "p", "seeds", "verdict"]
    rows = []
    for pair in report.pairs:
        row, column, found = pair.row, pair.column, pair.found
        place = [row.model, row.baseline, ", ".join(row.settings), row.line, column.bits]
        measured = [f"{column.dataset} {column.name}", column.protocol.label() if column.protocol else None]
        values = [pair.uncorrected, pair.corrected, pair.reference]
        known: list[Any] = [None] * 5
        if found is not None:
            unit = "%" if found.relative else column.unit
            known = [found.estimate, found.low, found.high, unit, found.p_value]
        whole = [*place, *measured, *values, *known, pair.seeds, pair.verdict]
        rows.append([finite(value) for value in whole])
    return Sheet(columns, rows)


def _labels(records: Sequence[RunRecord]) -> list[str]:
    """What tells each cell from the others, in words."""
    found, _ = observations(records)
    parts = []
    for record, own in zip(records, found, strict=True):
        row = row_of(record, own)
        where = (f"{record.cell.bits:g} bit", f"seed {record.cell.seed}")
        parts.append((row.model, row.baseline, ", ".join(row.settings), row.line, *where))
    labels, common = vary(parts)
    return [" ".join(part for part in label if part) or " ".join(common) for label in labels]


def _layers(records: Sequence[RunRecord], labels: Sequence[str]) -> Sheet:
    columns = ["cell", "fingerprint", *_LAYER_COLUMNS]
    rows = [
        [label, record.fingerprint, *(finite(getattr(layer, name)) for name in _LAYER_COLUMNS)]
        for label, record in zip(labels, records, strict=True)
        for layer in record.layers
    ]
    return Sheet(columns, rows)


def _curves(records: Sequence[RunRecord], labels: Sequence[str]) -> list[Curves]:
    lines: dict[str, dict[str, list[tuple[int, float | None]]]] = defaultdict(lambda: defaultdict(list))
    for label, record in zip(labels, records, strict=True):
        for layer in sorted(record.layers, key=lambda layer: layer.block):
            lines[layer.name][label].append((layer.block, finite(layer.error_after)))
    return [Curves(name, dict(by_cell)) for name, by_cell in lines.items()]
