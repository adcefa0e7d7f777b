"""Gain of a correction against its share of the quantization time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from q2n.records.store import RunRecord
from q2n.report.figures.forest import mark, shapes_legend
from q2n.report.figures.labels import joined, measure, parts_of, vary
from q2n.report.figures.style import BESIDE, INK, WIDTH, colours, decades, new_figure, set_title, signed_log
from q2n.report.overview import StudyReport
from q2n.report.tables.comparisons import Difference
from q2n.report.tables.pairs import Pair

CAPTION = (
    "Across: seconds of the correction, eigenvalue decomposition included, in per cent of those of the "
    "whole quantization (mean over seeds). Up: gain against q2n=off in per cent with its 95 % interval; "
    "above zero is better. Filled: significant across seeds; diamond: one seed."
)


@dataclass(frozen=True)
class Tradeoff:
    """A point: its labels, share of time in per cent, and gain in per cent of the uncorrected value."""

    label: tuple[str, ...]
    share: float
    gain: Difference


def draw(report: StudyReport, metric: str | None = None) -> Figure | None:
    """Draw the figure, or return None without a difference in per cent or without times."""
    records = {record.fingerprint: record for record in report.records}
    points = [point for pair in _chosen(report.pairs, metric) if (point := _point(pair, records))]
    if not points:
        return None
    names, common = vary([point.label for point in points])
    figure, ((axis,),) = new_figure(WIDTH, 4.2)
    _scatter(axis, points, names)
    axis.set(xlabel="time of the correction in % of the quantization", ylabel="gain in %   (better ↑)")
    set_title(figure, report.title, joined(common))
    shapes = shapes_legend([point.gain for point in points])
    figure.legend(handles=shapes, loc="outside lower left", ncols=3, handletextpad=0.2, columnspacing=1.2)
    return figure


def _chosen(pairs: Sequence[Pair], metric: str | None) -> list[Pair]:
    """Pairs of the metric, or of the first metric whose differences are in per cent."""
    usable = [pair for pair in pairs if pair.found is not None and pair.found.relative]
    wanted = metric or next((measure(pair.column) for pair in usable), "")
    return [pair for pair in usable if measure(pair.column) == wanted]


def _point(pair: Pair, records: Mapping[str, RunRecord]) -> Tradeoff | None:
    shares = (_share(records[cell]) for cell in pair.corrected_cells)
    known = [share for share in shares if share is not None]
    if not known or pair.found is None:
        return None
    gain = pair.found
    if pair.column.lower_is_better:
        gain = replace(gain, estimate=-gain.estimate, low=-gain.high, high=-gain.low)
    return Tradeoff(parts_of(pair.row, pair.column.bits), math.fsum(known) / len(known), gain)


def _share(record: RunRecord) -> float | None:
    """Correction time in per cent of the quantization time, or None if either was not recorded."""
    whole, own = record.seconds.get("quantize"), record.work_seconds.get("correct")
    return 100 * own / whole if whole and own is not None else None


def _scatter(axis: Axes, points: Sequence[Tradeoff], names: Sequence[tuple[str, ...]]) -> None:
    """Draw the points, coloured by the first label that varies (mostly the baseline); others are text."""
    heads = [name[0] if name else point.label[-1] for name, point in zip(names, points, strict=True)]
    palette = colours(heads)
    ends = [0.0]
    for point, head, name in zip(points, heads, names, strict=True):
        tint, at = palette[head], (point.share, point.gain.estimate)
        ends += mark(axis, point.gain, point.share, tint, linewidth=1.5, upright=True)
        axis.annotate(joined(name[1:]), at, (6, 3), textcoords="offset points", color=tint, fontsize=8)
    axis.axhline(0, color=INK, linewidth=1)
    signed_log(axis, axis.yaxis, ends)
    shares = [point.share for point in points if point.share > 0]
    if shares and max(shares) > 8 * min(shares):
        axis.set_xscale("log")
        decades(axis.xaxis, shares)
    axis.margins(x=0.15)
    axis.grid(visible=True)
    for head, tint in palette.items():
        axis.plot([], [], color=tint, linewidth=3, label=head)
    axis.legend(**BESIDE, handlelength=1)
