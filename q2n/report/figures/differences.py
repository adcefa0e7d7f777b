"""Each correction against doing nothing, in the study's own table and over all studies."""

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
    """The forest plot of a study, a panel a metric; None: it has no difference with an interval.

    Args:
        metric: ``<data set> <name>`` of the only one to draw.
    """
    drawn = [pair for pair in pairs if pair.found is not None and metric in (None, measure(pair.column))]
    scales = dict.fromkeys(map(_scale, drawn))
    panels = [_panel([pair for pair in drawn if _scale(pair) == scale]) for scale in scales]
    return forest(panels, title) if panels else None


def draw_overview(lines: Iterable[Line]) -> Figure | None:
    """The figure of :func:`main_lines`, bits below each other for every baseline."""
    # at the usual settings, which need not be said
    pairs = [replace(item.pair, row=replace(item.pair.row, settings=())) for item in main_lines(lines)]
    pairs.sort(key=lambda pair: pair.column.bits)
    baselines = list(dict.fromkeys(pair.row.baseline for pair in pairs))
    pairs.sort(key=lambda pair: (pair.row.model, baselines.index(pair.row.baseline)))
    return draw(pairs, f"What the correction changes: q2n={MAIN} minus q2n={NO_CORRECTION}")


def _scale(pair: Pair) -> tuple[str, str, bool]:
    """What the entries of a panel have in common: metric, unit, and which way is better."""
    relative = pair.found is not None and pair.found.relative
    return (measure(pair.column), "%" if relative else pair.column.unit, pair.column.lower_is_better)


def _panel(drawn: list[Pair]) -> Panel:
    """All pairs of one scale, those of one model and baseline below one head; where all have the same, those
    of one number of bits."""
    by_bits = len({pair.row.key[:2] for pair in drawn}) == 1 < len({_line(pair) for pair in drawn})
    if by_bits:
        drawn.sort(key=lambda pair: pair.column.bits)
    places = [(*pair.row.key[:2], bit_width(pair.column.bits), *_line(pair)) for pair in drawn]
    head_ends = 3 if by_bits else 2
    heads, common = vary([place[:head_ends] for place in places])
    labels, shared = vary([place[head_ends:] for place in places])
    if len(set(heads)) == len(heads) or not any(labels):  # a head for one line says less than a longer line
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
    """Settings, correction, settings of the correction without the ``q2n.`` that they all begin with."""
    own = ", ".join(label.removeprefix("q2n.") for label in pair.row.correction_settings)
    return (", ".join(pair.row.settings), pair.row.correction, own)
