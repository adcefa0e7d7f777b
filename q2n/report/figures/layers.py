"""Output error of every layer before the correction, and what the correction made of it, block by block."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from q2n.records.store import RunRecord, to_frame
from q2n.report.figures.style import PALETTE, WIDTH, decades, signed_log, vary
from q2n.report.tables.lines import NO_CORRECTION, in_order, observations, row_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from q2n.report.overview import StudyReport

MOST = 16
"""Rows a figure has at most."""

CAPTION = (
    "Left: relative output error of each layer before the correction, on the calibration text. Right: "
    "how much the correction changed it, in per cent (below zero: smaller); dashed: on held-out "
    "sequences, where there are any. Geometric means over seeds. A smaller layer error does not make a "
    "smaller perplexity."
)

Curve = dict[int, float]
"""A number by block."""


def draw(report: StudyReport) -> Figure | None:
    """A row a corrected line of the tables; None: nothing was corrected."""
    from matplotlib.figure import Figure

    groups = _groups(report.records)
    if not groups:
        return None
    names, common = vary(list(groups))
    shown = list(zip(names, groups.values(), strict=True))[:MOST]
    figure = Figure(figsize=(WIDTH, 1.7 * len(shown) + 1.4), layout="constrained")
    axes = figure.subplots(len(shown), 2, squeeze=False, sharex=True)
    kinds = dict.fromkeys(layer.name for records in groups.values() for layer in records[0].layers)
    tints = {kind: PALETTE[place % len(PALETTE)] for place, kind in enumerate(kinds)}
    for (before, after), (name, records) in zip(axes, shown, strict=True):
        layers = to_frame(records, per="layer")
        _before(before, layers, tints)
        _after(after, layers, tints)
        before.set_title(", ".join(part for part in name if part))
    for axis in axes[-1]:
        axis.set_xlabel("block")
    handles = [axes[0, 0].lines[place] for place in range(len(axes[0, 0].lines))]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, handlelength=1.2, columnspacing=1.2)
    cut = f" (first {MOST} of {len(groups)})" if len(groups) > MOST else ""
    said = (
        report.title + cut,
        ", ".join(common),
        "error before the correction | its change by the correction",
    )
    figure.suptitle("\n".join(part for part in said if part), x=0.01, ha="left", fontsize=10)
    return figure


def _groups(records: Sequence[RunRecord]) -> dict[tuple[str, ...], list[RunRecord]]:
    """Corrected cells that differ in nothing but the seed, by what tells them apart."""
    labels, _ = observations(records)
    groups: dict[tuple[str, ...], list[RunRecord]] = defaultdict(list)
    rows = [row_of(record, settings) for record, settings in zip(records, labels, strict=True)]
    ranks = {row: rank for rank, row in enumerate(in_order(rows))}
    order = sorted(range(len(rows)), key=lambda place: (ranks[rows[place]], records[place].cell.bits))
    for record, row in ((records[place], rows[place]) for place in order):
        if record.cell.correction != NO_CORRECTION and record.layers:
            name = (row.model, row.baseline, f"{record.cell.bits:g} bit", ", ".join(row.settings), row.line)
            groups[name].append(record)
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
    axis.grid(color="#e6e6e6", linewidth=0.6)


def _after(axis: Axes, layers: pd.DataFrame, tints: Mapping[str, str]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.axhline(0, color="#333333", linewidth=0.8)
    ends = [0.0]
    for kind, tint in tints.items():
        for dashed, inputs in (("-", ""), ("--", "heldout_")):
            curve = _change(layers, kind, inputs)
            axis.plot(list(curve), list(curve.values()), color=tint, linewidth=1.1, linestyle=dashed)
            ends += curve.values()
    axis.set_ylim(min(*ends, -1) * 1.1, max(*ends, 1) * 1.1)
    if not signed_log(axis, axis.yaxis, ends):
        axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g} %" if value else "0"))
    axis.grid(color="#e6e6e6", linewidth=0.6)


def _change(layers: pd.DataFrame, kind: str, inputs: str) -> Curve:
    """What became of the error, in per cent."""
    before, after = (layers[f"{inputs}error_{when}"].astype(float) for when in ("before", "after"))
    return {block: 100 * (value - 1) for block, value in _mean(layers, kind, after / before).items()}


def _mean(layers: pd.DataFrame, kind: str, values: pd.Series[float]) -> Curve:
    """Geometric mean over seeds by block; blocks without a positive finite value are left out."""
    kept = values[(layers["layer"] == kind) & (values > 0) & np.isfinite(values)]
    by_block = kept.groupby(layers["block"])
    return {int(block): math.exp(math.fsum(map(math.log, found)) / len(found)) for block, found in by_block}
