"""Figures of a study, drawn from its records and written below ``<results_dir>/figures/``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from q2n.records.store import RunRecord
from q2n.report.figures import cost_gain, curves, differences, heat_map, layers, null_space
from q2n.report.figures.style import style
from q2n.report.overview import FIGURES, Drawn, StudyReport
from q2n.report.studies.study import (
    CostGain,
    Differences,
    FigureSpec,
    HeatMapFigure,
    Layers,
    Lines,
    NullSpaceFigure,
)
from q2n.report.tables.every_difference import Line
from q2n.report.tables.lines import observations
from q2n.runtime.files import write_atomic

PNG_DPI = 120
"""Resolution of PNG files in dots per inch."""

PLAIN: tuple[FigureSpec, ...] = (Differences(), NullSpaceFigure())
"""Figures of records that belong to no study."""


def figures_of_sweep(records: Sequence[RunRecord]) -> list[FigureSpec]:
    """Choose the figures of a sweep that is no study.

    These are :data:`PLAIN`, the layers, and the metric over bits and over the one or two numeric settings
    with the most values (of two, the later in the alphabet is x).
    """
    labels, _ = observations(records)
    settings = [dict(label.split("=", 1) for side in own for label in side) for own in labels]
    values = pd.DataFrame(settings).sort_index(axis="columns")
    numbers = values.apply(pd.to_numeric, errors="coerce")
    counts = values.nunique()[(numbers.notna() == values.notna()).all() & (values.nunique() > 1)]
    axes = sorted(map(str, counts.sort_values(ascending=False, kind="stable").index[:2]))
    over = [HeatMapFigure(x=axes[1], y=axes[0])] if len(axes) == 2 else [Lines(x=axis) for axis in axes]
    return [*PLAIN, *over, Lines(x="bits"), Layers()]


def write_figures(
    report: StudyReport, results_dir: Path, png: bool = False, plain: Sequence[FigureSpec] = PLAIN
) -> tuple[Drawn, ...]:
    """Write ``figures/<name>/<label>.svg`` for every figure of the study, in the study's order.

    Figures without numbers in the records are left out.

    Args:
        report: the study.
        results_dir: folder of the results.
        png: whether ``<label>.png`` is written as well.
        plain: the figures of records that belong to no study.

    Raises:
        OSError: the folder cannot be written.
    """
    specs = report.study.figures if report.study else plain
    written: dict[str, Drawn] = {}
    with style():
        for spec in specs:
            for label, figure, caption in _drawn(report, spec):
                place = f"{FIGURES}/{report.name}/{label}"
                written[label] = _write(figure, results_dir, place, spec.kind, caption, png)
    return tuple(written.values())


def write_overview(lines: tuple[Line, ...], results_dir: Path, png: bool = False) -> Drawn | None:
    """Write ``figures/overview.svg``, or return None if there is no difference to draw.

    Args:
        lines: the differences of all studies.
        results_dir: folder of the results.
        png: whether ``figures/overview.png`` is written as well.

    Raises:
        OSError: the folder cannot be written.
    """
    with style():
        figure = differences.draw_overview(lines)
        if figure is None:
            return None
        return _write(figure, results_dir, f"{FIGURES}/overview", "differences", differences.OVERVIEW, png)


def _write(figure: Figure, results_dir: Path, place: str, kind: str, caption: str, png: bool) -> Drawn:
    drawn = Drawn(kind, caption, f"{place}.svg", f"{place}.png" if png else None)
    save(figure, *(results_dir / file for file in drawn.files))
    return drawn


def save(figure: Figure, *paths: Path) -> None:
    """Write the figure in the format of each path's extension; the same records give the same bytes.

    Raises:
        OSError: the folder cannot be written.
    """
    figure.draw_without_rendering()  # the layout takes as long as the drawing: compute it once for all files
    figure.set_layout_engine("none")
    for path in paths:
        kind = path.suffix.removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else {"Software": None}
        write_atomic(path, partial(figure.savefig, format=kind, dpi=PNG_DPI, metadata=metadata))


def _drawn(report: StudyReport, spec: FigureSpec) -> Iterator[tuple[str, Figure, str]]:
    """Yield file name, figure and caption of each figure of one entry in the study."""
    match spec:
        case NullSpaceFigure():
            for name, drawing in null_space.draw_all(report.records):
                yield name, drawing, null_space.CAPTION
            return
        case Differences():
            figure, caption = differences.draw(report.pairs, report.title, spec.metric), differences.CAPTION
        case HeatMapFigure():
            figure, caption = heat_map.draw(report, spec.x, spec.y, spec.metric), heat_map.CAPTION
        case Lines():
            figure, caption = curves.draw(report, spec.x, spec.metric), curves.CAPTION
        case Layers():
            figure, caption = layers.draw(report), layers.CAPTION
        case CostGain():
            figure, caption = cost_gain.draw(report, spec.metric), cost_gain.CAPTION
    if figure is not None:
        asked = filter(None, (getattr(spec, key, None) for key in ("x", "y", "metric")))
        yield "-".join((spec.kind, *asked)).replace(" ", "_"), figure, caption
