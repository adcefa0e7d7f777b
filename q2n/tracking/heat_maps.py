"""Heat maps of a sweep: a metric over the two settings that were varied most."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from q2n.records.fingerprint import canonical_json
from q2n.records.store import RunRecord
from q2n.report.figures.values import Point, baseline, bits, by_panel, line, model, points, settings
from q2n.report.overview import StudyReport
from q2n.report.tables.lines import observations
from q2n.tracking.content import finite


@dataclass(frozen=True)
class HeatMap:
    """The first metric over two settings, seeds averaged. ``cells`` are ``(x, y, value)``, places as text."""

    name: str
    x: str
    y: str
    value: str
    cells: list[tuple[str, str, float | None]]


def heat_maps(report: StudyReport) -> list[HeatMap]:
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
            [(_text(p.place[0]), _text(p.place[1]), finite(p.mean)) for p in sorted(found, key=_place)],
        )
        for name, found in panels.items()
    ]


def _lines_by_bits(found: Sequence[Point]) -> list[HeatMap]:
    maps: dict[tuple[str, str], list[tuple[str, str, float | None]]] = defaultdict(list)
    for point in found:
        label = " ".join(part for part in (baseline(point), settings(point), line(point)) if part)
        maps[model(point), _metric(point)].append((f"{point.bits:g}", label, finite(point.mean)))
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
