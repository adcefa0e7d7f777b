"""What a correction costs in time against what it gains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from q2n.records.store import RunRecord
from q2n.report.figures.forest import shape, shapes_legend
from q2n.report.figures.style import WIDTH, colours, decades, signed_log, vary
from q2n.report.tables.comparisons import FEWEST_SEEDS, Difference
from q2n.report.tables.pairs import Pair

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from q2n.report.overview import StudyReport

CAPTION = (
    "Across: seconds of the correction, eigenvalue decomposition included, in per cent of those of the "
    "whole quantization (mean over seeds). Up: gain against q2n=off in per cent with its 95 % interval; "
    "above zero is better. Filled: established over seeds; diamond: one seed."
)


@dataclass(frozen=True)
class Spent:
    """A point: what tells it apart, the share of time in per cent, the gain in per cent of the value."""

    label: tuple[str, ...]
    share: float
    gain: Difference


def draw(report: StudyReport, metric: str | None = None) -> Figure | None:
    """The figure; None: no difference in per cent, or no times."""
    from matplotlib.figure import Figure

    records = {record.fingerprint: record for record in report.records}
    points = [point for pair in _chosen(report.pairs, metric) if (point := _point(pair, records))]
    if not points:
        return None
    names, common = vary([point.label for point in points])
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axis = figure.subplots()
    _scatter(axis, points, names)
    axis.set(xlabel="time of the correction in % of the quantization")
    axis.set_ylabel("gain in %   (better ↑)")
    said = "\n".join(part for part in (report.title, ", ".join(common)) if part)
    figure.suptitle(said, x=0.01, ha="left", fontsize=10)
    shapes = shapes_legend([point.gain for point in points])
    figure.legend(handles=shapes, loc="outside lower left", ncols=3, handletextpad=0.2, columnspacing=1.2)
    return figure


def _chosen(pairs: Sequence[Pair], metric: str | None) -> list[Pair]:
    """Pairs of the metric, or of the first one in per cent."""
    usable = [pair for pair in pairs if pair.found is not None and pair.found.relative]
    names = [f"{pair.column.dataset} {pair.column.name}" for pair in usable]
    wanted = metric or (names[0] if names else "")
    return [pair for pair, name in zip(usable, names, strict=True) if name == wanted]


def _point(pair: Pair, records: Mapping[str, RunRecord]) -> Spent | None:
    shares = [_share(records[cell]) for cell in pair.corrected_cells]
    known = [share for share in shares if share is not None]
    if not known or pair.found is None:
        return None
    row = pair.row
    label = (row.model, row.baseline, ", ".join(row.settings), f"{pair.column.bits:g} bit", row.line)
    return Spent(label, math.fsum(known) / len(known), _as_gain(pair.found, pair.column.lower_is_better))


def _share(record: RunRecord) -> float | None:
    """Per cent of the quantization's seconds; None: they were not taken."""
    whole, own = record.seconds.get("quantize"), record.work_seconds.get("correct")
    return 100 * own / whole if whole and own is not None else None


def _as_gain(found: Difference, lower_is_better: bool) -> Difference:
    if not lower_is_better:
        return found
    return Difference(-found.estimate, -found.high, -found.low, found.p_value, found.relative, found.seeds)


def _scatter(axis: Axes, points: Sequence[Spent], names: Sequence[tuple[str, ...]]) -> None:
    """Colours by what varies first (the baseline, mostly), the rest written beside the point."""
    heads = [name[0] if name else point.label[-1] for name, point in zip(names, points, strict=True)]
    palette = colours(heads)
    ends = [0.0]
    for point, head, name in zip(points, heads, names, strict=True):
        gain, tint = point.gain, palette[head]
        dotted = ":" if gain.seeds < FEWEST_SEEDS else "-"
        if math.isfinite(gain.low) and math.isfinite(gain.high):
            axis.plot([point.share] * 2, [gain.low, gain.high], color=tint, linewidth=1.5, linestyle=dotted)
            ends += [gain.low, gain.high]
        axis.plot(point.share, gain.estimate, color=tint, **shape(gain.established, gain.seeds))
        beside = ", ".join(part for part in name[1:] if part)
        axis.annotate(
            beside, (point.share, gain.estimate), (6, 3), textcoords="offset points", color=tint, fontsize=8
        )
        ends.append(gain.estimate)
    axis.axhline(0, color="#333333", linewidth=1)
    signed_log(axis, axis.yaxis, ends)
    shares = [point.share for point in points if point.share > 0]
    if shares and max(shares) > 8 * min(shares):
        axis.set_xscale("log")
        decades(axis.xaxis, shares)
    axis.margins(x=0.15)
    axis.grid(color="#e6e6e6", linewidth=0.6)
    for head, tint in palette.items():
        axis.plot([], [], color=tint, linewidth=3, label=head)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=1)
