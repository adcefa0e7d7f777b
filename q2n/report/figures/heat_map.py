"""Heat map of a metric over two configuration keys, one panel per combination of all other settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from q2n.report.figures.labels import measure, parts_of, plain
from q2n.report.figures.style import WIDTH, new_figure, set_title
from q2n.report.figures.values import SeedMean, by_panel, is_number, measured_over, seed_means
from q2n.report.overview import StudyReport
from q2n.report.tables.lines import without_correction
from q2n.report.tables.pairs import Pair

CAPTION = (
    "Mean over seeds; below it the difference to q2n=off in per cent, where that cell was measured "
    "(bold: significant across seeds, p < 0.05 adjusted for the study's table). Grey: no result. The "
    "smallest of many noisy numbers is small by luck too."
)


def draw(report: StudyReport, x: str, y: str, metric: str | None = None) -> Figure | None:
    """Draw the heat map, or return None if no cell has both keys.

    Args:
        report: the study.
        x: dotted configuration key of the x axis.
        y: dotted configuration key of the y axis.
        metric: ``<data set> <name>``, or None for each record's first metric.
    """
    every = seed_means(report, (x, y), metric)
    placed = [item for item in every if None not in item.place]
    if not placed:
        return None
    panels, common = by_panel(placed, lambda item: parts_of(item.row, item.bits))
    off = {
        (without_correction(item.row), item.bits): item.mean
        for item in every
        if item.uncorrected and None in item.place
    }
    xs, ys = (sorted({item.place[k] for item in placed}, key=_order) for k in range(2))
    height = (0.42 * len(ys) + 1.0) * len(panels) + 0.5
    figure, axes = new_figure(max(WIDTH, 0.75 * len(xs) + 1.6), height, len(panels))
    found = {
        fingerprint: pair
        for pair in report.pairs
        if metric in (None, measure(pair.column))
        for fingerprint in pair.corrected_cells
    }
    for axis, (title, members) in zip(axes[:, 0], panels.items(), strict=True):
        _panel(axis, members, xs, ys, found)
        without = off.get((without_correction(members[0].row), members[0].bits))
        beside = "" if without is None else f"off: {_digits(without)}"
        axis.set_title("; ".join(part for part in (title, beside) if part))
        axis.set(xlabel=x, ylabel=y)
    set_title(figure, report.title, common, measured_over(placed))
    return figure


def _order(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if is_number(value) else (1, 0.0, str(value))


def _panel(
    axis: Axes, members: Sequence[SeedMean], xs: list[Any], ys: list[Any], found: Mapping[str, Pair]
) -> None:
    values = np.full((len(ys), len(xs)), np.nan)
    for item in members:
        values[ys.index(item.place[1]), xs.index(item.place[0])] = item.mean
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (1.0, 1.0)
    far = low > 0 and high > 3 * low
    norm = LogNorm(low, high) if far else Normalize(low, high if high > low else low + 1)
    colours = colormaps["cividis"].with_extremes(bad="#d9d9d9")
    axis.imshow(values, norm=norm, cmap=colours, aspect="auto", origin="lower")
    for item in members:
        place = (xs.index(item.place[0]), ys.index(item.place[1]))
        shade = float(norm(item.mean)) if math.isfinite(item.mean) else 1.0
        _annotate(axis, place, item, found.get(item.first.fingerprint), "white" if shade < 0.55 else "black")
    axis.set_xticks(range(len(xs)), [_text(value) for value in xs])
    axis.set_yticks(range(len(ys)), [_text(value) for value in ys])
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _annotate(axis: Axes, place: tuple[int, int], item: SeedMean, pair: Pair | None, colour: str) -> None:
    style: dict[str, Any] = {"ha": "center", "color": colour, "fontsize": 8.5}
    number = _digits(item.mean)
    if pair is None or pair.found is None or not pair.found.relative:
        axis.text(*place, number, va="center", **style)
        return
    axis.text(*place, number, va="bottom", **style)
    weight = "bold" if pair.found.significant else "normal"
    style["fontsize"] = 7.5
    axis.text(*place, f"{pair.found.estimate:+.1f} %", va="top", fontweight=weight, **style)


def _digits(value: float) -> str:
    """The number with three digits (``42.0``, ``647``), or from 1000 on in the form of :func:`plain`."""
    if not math.isfinite(value) or abs(value) >= 1000:
        return plain(value) if math.isfinite(value) else str(value)
    return f"{value:#.3g}".rstrip(".")


def _text(value: Any) -> str:
    if is_number(value):
        return f"{value:g}"
    return str(value).rpartition(".")[2]
