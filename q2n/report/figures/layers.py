"""Relative output error of every layer before the correction, and its change by the correction, by block."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from q2n.records.store import RunRecord, to_frame
from q2n.report.figures.labels import bit_width, joined, vary
from q2n.report.figures.style import INK, WIDTH, colours, decades, new_figure, set_title, signed_log
from q2n.report.figures.values import ranked
from q2n.report.overview import StudyReport
from q2n.report.tables.lines import NO_CORRECTION, observations, row_of

MOST = 16
"""Largest number of rows in a figure."""

CAPTION = (
    "Left: relative output error of each layer before the correction, on the calibration text. Right: "
    "how much the correction changed it, in per cent (below zero: smaller); dashed: on held-out "
    "sequences, where there are any. Geometric means over seeds. A smaller layer error does not make a "
    "smaller perplexity."
)


def draw(report: StudyReport) -> Figure | None:
    """Draw one row per corrected line of the tables, or return None if nothing was corrected."""
    groups = _groups(report.records)
    if not groups:
        return None
    names, common = vary(list(groups))
    shown = list(zip(names, groups.values(), strict=True))[:MOST]
    figure, axes = new_figure(WIDTH, 1.7 * len(shown) + 1.4, len(shown), 2, sharex=True)
    tints = colours(layer.name for records in groups.values() for layer in records[0].layers)
    for (before, after), (name, records) in zip(axes, shown, strict=True):
        layers = to_frame(records, per="layer")
        _before(before, layers, tints)
        _after(after, layers, tints)
        before.set_title(joined(name))
    for axis in axes[-1]:
        axis.set_xlabel("block")
    handles = list(axes[0, 0].lines)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, handlelength=1.2, columnspacing=1.2)
    cut = f" (first {MOST} of {len(groups)})" if len(groups) > MOST else ""
    sides = "error before the correction | its change by the correction"
    set_title(figure, report.title + cut, joined(common), sides)
    return figure


def _groups(records: Sequence[RunRecord]) -> dict[tuple[str, ...], list[RunRecord]]:
    """Corrected cells by their labels; cells of one group differ only in the seed."""
    labels, _ = observations(records)
    groups: dict[tuple[str, ...], list[RunRecord]] = defaultdict(list)
    rows = [row_of(record, settings) for record, settings in zip(records, labels, strict=True)]
    ranks = ranked(rows)
    ordered = sorted(zip(records, rows, strict=True), key=lambda pair: (ranks[pair[1]], pair[0].cell.bits))
    for record, row in ordered:
        if record.cell.correction != NO_CORRECTION and record.layers:
            model, baseline, settings, line = row.key
            groups[model, baseline, bit_width(record.cell.bits), settings, line].append(record)
    return groups


def _before(axis: Axes, layers: pd.DataFrame, tints: Mapping[str, str]) -> None:
    values: list[float] = []
    for kind, tint in tints.items():
        curve = _mean(layers, kind, layers["error_before"])
        axis.plot(list(curve), list(curve.values()), color=tint, linewidth=1.1, label=kind.rpartition(".")[2])
        values += curve.values()
    if any(value > 0 for value in values):
        axis.set_yscale("log")
        decades(axis.yaxis, values)
    axis.grid(visible=True)


def _after(axis: Axes, layers: pd.DataFrame, tints: Mapping[str, str]) -> None:
    axis.axhline(0, color=INK, linewidth=0.8)
    ends = [0.0]
    for kind, tint in tints.items():
        for dashed, inputs in (("-", ""), ("--", "heldout_")):
            was, became = (layers[f"{inputs}error_{when}"].astype(float) for when in ("before", "after"))
            mean = _mean(layers, kind, became / was)
            curve = {block: 100 * (value - 1) for block, value in mean.items()}  # in per cent
            axis.plot(list(curve), list(curve.values()), color=tint, linewidth=1.1, linestyle=dashed)
            ends += curve.values()
    axis.set_ylim(min(*ends, -1) * 1.1, max(*ends, 1) * 1.1)
    if not signed_log(axis, axis.yaxis, ends):
        axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:+g} %" if value else "0")
    axis.grid(visible=True)


def _mean(layers: pd.DataFrame, kind: str, values: pd.Series[float]) -> dict[int, float]:
    """Geometric mean over seeds by block; blocks without a positive finite value are left out."""
    kept = values[(layers["layer"] == kind) & (values > 0) & np.isfinite(values)]
    by_block = kept.groupby(layers["block"])
    return {int(block): math.exp(math.fsum(map(math.log, found)) / len(found)) for block, found in by_block}
