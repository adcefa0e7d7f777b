"""A metric over two configuration keys, a panel for everything else that varies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from q2n.report.figures.style import WIDTH, plain
from q2n.report.figures.values import (
    Point,
    baseline,
    bits,
    by_panel,
    headline,
    is_number,
    is_off,
    line,
    model,
    points,
    settings,
)
from q2n.report.tables.pairs import Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from q2n.report.overview import StudyReport

CAPTION = (
    "Mean over seeds; below it the difference to q2n=off in per cent, where that cell was measured "
    "(bold: established over seeds, p < 0.05 adjusted for the study's table). Grey: no result. The "
    "smallest of many noisy numbers is small by luck too."
)

Place = tuple[Any, Any]


def draw(report: StudyReport, x: str, y: str, metric: str | None = None) -> Figure | None:
    """The map; None: no cell has both keys."""
    from matplotlib.figure import Figure

    every = points(report, (x, y), metric)
    placed = [item for item in every if None not in item.place]
    if not placed:
        return None
    panels, common = by_panel(placed, model, baseline, settings, bits, line)
    off = {_without_correction(item): item.mean for item in every if is_off(item) and None in item.place}
    axes_values = [sorted({item.place[k] for item in placed}, key=_order) for k in range(2)]
    rows, columns = len(axes_values[1]), len(axes_values[0])
    tall = 0.42 * rows + 1.0
    figure = Figure(
        figsize=(max(WIDTH, 0.75 * columns + 1.6), tall * len(panels) + 0.5), layout="constrained"
    )
    grid = figure.subplots(len(panels), squeeze=False)[:, 0]
    found = {
        fingerprint: pair
        for pair in report.pairs
        if metric in (None, f"{pair.column.dataset} {pair.column.name}")
        for fingerprint in pair.corrected_cells
    }
    for axis, (title, members) in zip(grid, panels.items(), strict=True):
        _panel(axis, members, (axes_values[0], axes_values[1]), found)
        without = off.get(_without_correction(members[0]))
        beside = "" if without is None else f"off: {_digits(without)}"
        axis.set_title("; ".join(part for part in (title, beside) if part))
        axis.set(xlabel=x, ylabel=y)
    figure.suptitle(headline(report.title, common, placed), x=0.01, ha="left", fontsize=10)
    return figure


def _without_correction(item: Point) -> tuple[Any, ...]:
    return (item.row.model, item.row.baseline, item.row.settings, item.bits)


def _order(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if is_number(value) else (1, 0.0, str(value))


def _panel(
    axis: Axes, members: Sequence[Point], places: tuple[list[Any], list[Any]], found: Mapping[str, Pair]
) -> None:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm, Normalize

    xs, ys = places
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


def _annotate(axis: Axes, place: tuple[int, int], item: Point, pair: Pair | None, colour: str) -> None:
    style: dict[str, Any] = {"ha": "center", "color": colour, "fontsize": 8.5}
    number = _digits(item.mean)
    if pair is None or pair.found is None or not pair.found.relative:
        axis.text(*place, number, va="center", **style)
        return
    axis.text(*place, number, va="bottom", **style)
    weight = "bold" if pair.found.established else "normal"
    style["fontsize"] = 7.5
    axis.text(*place, f"{pair.found.estimate:+.1f} %", va="top", fontweight=weight, **style)


def _digits(value: float) -> str:
    """Three of them: ``42.0``, ``647``; large numbers as :func:`plain` has them."""
    if not math.isfinite(value) or abs(value) >= 1000:
        return plain(value) if math.isfinite(value) else str(value)
    return f"{value:#.3g}".rstrip(".")


def _text(value: Any) -> str:
    if is_number(value):
        return f"{value:g}"
    return str(value).rpartition(".")[2]
