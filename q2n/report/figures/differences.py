"""Forest plots of each correction against no correction, per study and over all studies."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from matplotlib.figure import Figure

from q2n.report.figures.forest import ForestLine, Panel, forest
from q2n.report.figures.labels import bit_width, joined, measure, vary
from q2n.report.tables.every_difference import MAIN, Line, main_lines
from q2n.report.tables.lines import NO_CORRECTION
from q2n.report.tables.pairs import Pair

CAPTION = (
    "Corrected minus uncorrected value with its paired 95 % interval. A filled mark is a difference "
    "that is significant across seeds (p < 0.05, adjusted for the study's table); a diamond rests on one "
    "seed, which compares two quantized models and says nothing of the methods."
)
OVERVIEW = (
    f"q2n={MAIN} minus q2n={NO_CORRECTION} in every study, at the settings most studies of a model have, "
    "by baseline and bits, with paired 95 % intervals; cells that studies share are drawn once. A "
    "filled mark is significant across seeds (p < 0.05, adjusted for its study's table)."
)


def draw(pairs: Sequence[Pair], title: str, metric: str | None = None) -> Figure | None:
    """Draw a forest plot with one panel per metric, or return None without any tested difference.

    Args:
        pairs: the differences to draw.
        title: title of the figure.
        metric: ``<data set> <name>`` of the only metric to draw, or None for all metrics.
    """
    drawn = [pair for pair in pairs if pair.found is not None and metric in (None, measure(pair.column))]
    scales = dict.fromkeys(map(_scale, drawn))
    panels = [_panel([pair for pair in drawn if _scale(pair) == scale]) for scale in scales]
    return forest(panels, title) if panels else None


def draw_overview(lines: Iterable[Line]) -> Figure | None:
    """Draw the differences of :func:`main_lines`, sorted by bits per model and baseline, or return None."""
    # all have the usual settings, so labels leave these out
    pairs = [replace(item.pair, row=replace(item.pair.row, settings=())) for item in main_lines(lines)]
    pairs.sort(key=lambda pair: pair.column.bits)
    baselines = list(dict.fromkeys(pair.row.baseline for pair in pairs))
    pairs.sort(key=lambda pair: (pair.row.model, baselines.index(pair.row.baseline)))
    return draw(pairs, f"What the correction changes: q2n={MAIN} minus q2n={NO_CORRECTION}")


def _scale(pair: Pair) -> tuple[str, str, bool]:
    """Key of a panel: metric, unit of the difference, and whether lower is better."""
    relative = pair.found is not None and pair.found.relative
    return (measure(pair.column), "%" if relative else pair.column.unit, pair.column.lower_is_better)


def _panel(drawn: list[Pair]) -> Panel:
    """Panel of all pairs of one scale, grouped below a head per model and baseline.

    If all pairs have the same model and baseline, heads are per number of bits.
    """
    by_bits = len({pair.row.key[:2] for pair in drawn}) == 1 < len({_line(pair) for pair in drawn})
    if by_bits:
        drawn.sort(key=lambda pair: pair.column.bits)
    places = [(*pair.row.key[:2], bit_width(pair.column.bits), *_line(pair)) for pair in drawn]
    head_ends = 3 if by_bits else 2
    heads, common = vary([place[:head_ends] for place in places])
    labels, shared = vary([place[head_ends:] for place in places])
    if len(set(heads)) == len(heads) or not any(
        labels
    ):  # every head has one line, or labels are empty: merge head and label
        labels = [(*head, *label) for head, label in zip(heads, labels, strict=True)]
        heads = [()] * len(labels)
    metric, unit, lower = _scale(drawn[0])
    entries = tuple(
        ForestLine(
            joined(head), joined(label) or pair.row.line, pair.row.correction, pair.found, pair.useless
        )
        for pair, head, label in zip(drawn, heads, labels, strict=True)
        if pair.found is not None
    )
    told = "difference in %" if unit == "%" else f"difference ({unit})"
    return Panel(f"{metric}: {joined((*common, *shared))}", told, lower, entries)


def _line(pair: Pair) -> tuple[str, ...]:
    """Settings, correction, and settings of the correction without their common prefix ``q2n.``."""
    own = ", ".join(label.removeprefix("q2n.") for label in pair.row.correction_settings)
    return (", ".join(pair.row.settings), pair.row.correction, own)
