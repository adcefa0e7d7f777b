"""What a tracker is told of a whole sweep, from its records alone: plain tables, heat maps and curves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from q2n.fingerprint import canonical_json
from q2n.record import RunRecord
from q2n.report.figures.style import vary
from q2n.report.figures.values import Point, baseline, bits, by_panel, line, model, points, settings
from q2n.report.frame import long_frame
from q2n.report.lines import observations, row_of
from q2n.report.overview import StudyReport, study_report
from q2n.tracking.content import without_secrets
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
class HeatMap:
    """The first metric over two settings, seeds averaged. ``cells`` are ``(x, y, value)``, places as text."""

    name: str
    x: str
    y: str
    value: str
    cells: list[tuple[str, str, float | None]]


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
        heat_maps=_heat_maps(report),
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
    rows = [[_plain(value) for value in row] for row in frame.astype(object).to_numpy().tolist()]
    return Sheet([str(column) for column in frame.columns], rows)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
        rows.append([_plain(value) for value in whole])
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
        [label, record.fingerprint, *(_plain(getattr(layer, name)) for name in _LAYER_COLUMNS)]
        for label, record in zip(labels, records, strict=True)
        for layer in record.layers
    ]
    return Sheet(columns, rows)


def _curves(records: Sequence[RunRecord], labels: Sequence[str]) -> list[Curves]:
    lines: dict[str, dict[str, list[tuple[int, float | None]]]] = defaultdict(lambda: defaultdict(list))
    for label, record in zip(labels, records, strict=True):
        for layer in sorted(record.layers, key=lambda layer: layer.block):
            lines[layer.name][label].append((layer.block, _plain(layer.error_after)))
    return [Curves(name, dict(by_cell)) for name, by_cell in lines.items()]


def _heat_maps(report: StudyReport) -> list[HeatMap]:
    """Over the two numeric settings with the most values, a map for each combination of all others; over
    lines and bits where no two numbers were varied."""
    axes = _axes(report.records)
    if axes is None:
        return _lines_by_bits(points(report, (), None))
    # a line without these settings, as the one without correction, has no place
    placed = [point for point in points(report, axes, None) if None not in point.place]
    panels, common = by_panel(placed, model, baseline, settings, line, bits)
    return [
        HeatMap(
            name or common,
            *axes,
            _metric(found[0]),
            [(_text(p.place[0]), _text(p.place[1]), _plain(p.mean)) for p in sorted(found, key=_place)],
        )
        for name, found in panels.items()
    ]


def _lines_by_bits(found: Sequence[Point]) -> list[HeatMap]:
    maps: dict[tuple[str, str], list[tuple[str, str, float | None]]] = defaultdict(list)
    for point in found:
        label = " ".join(part for part in (baseline(point), settings(point), line(point)) if part)
        maps[model(point), _metric(point)].append((f"{point.bits:g}", label, _plain(point.mean)))
    return [HeatMap(name, "bits", "line", metric, cells) for (name, metric), cells in maps.items()]


def _axes(records: Sequence[RunRecord]) -> tuple[str, str] | None:
    """The varied keys whose values are all numbers, most values first; the later in the alphabet is x."""
    values: dict[str, set[str]] = defaultdict(set)
    labels, _ = observations(records)
    for own in labels:
        for label in (*own.cell, *own.correction):
            key, _, value = label.partition("=")
            values[key].add(value)
    numeric = [key for key, met in values.items() if len(met) > 1 and all(map(_is_number, met))]
    if len(numeric) < 2:
        return None
    y, x = sorted(sorted(numeric, key=lambda key: (-len(values[key]), key))[:2])
    return x, y


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _place(point: Point) -> tuple[float, ...]:
    return tuple(float(value) for value in point.place)


def _metric(point: Point) -> str:
    return f"{point.metric.dataset} {point.metric.name}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else canonical_json(value)
