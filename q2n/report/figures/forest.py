"""Forest plots: one line per difference with estimate and interval, and a line at zero (no effect)."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from q2n.report.figures.style import INK, WIDTH, colours, new_figure, set_title, signed_log
from q2n.report.tables.comparisons import FEWEST_SEEDS, Difference
from q2n.report.tables.pairs import USELESS

ROW = 0.24
"""Height of a line in inches."""

DAGGER = "†"
"""Mark of differences between collapsed models."""

LONGEST = 30
"""Characters per line of a label; longer labels are wrapped."""


@dataclass(frozen=True)
class ForestLine:
    """A difference in a forest plot.

    Lines of the same ``head`` stand together below it. Lines with the same ``colour``, which is a name, have
    the same colour. ``useless`` marks a difference between collapsed models (:data:`DAGGER`).
    """

    head: str
    label: str
    colour: str
    found: Difference
    useless: bool = False


@dataclass(frozen=True)
class Panel:
    """Entries that share a scale; ``unit`` is the text about the unit of their differences."""

    title: str
    unit: str
    lower_is_better: bool
    entries: tuple[ForestLine, ...]


def forest(panels: Sequence[Panel], title: str) -> Figure:
    """Draw the panels below each other."""
    heights = [_height(panel.entries) for panel in panels]
    figure, axes = new_figure(WIDTH, sum(heights) + 0.8, len(panels), height_ratios=heights)
    entries = [entry for panel in panels for entry in panel.entries]
    palette = colours(entry.colour for entry in entries)
    for panel, axis in zip(panels, axes[:, 0], strict=True):
        _draw(axis, panel, palette)
    set_title(figure, title, size=11)
    handles = shapes_legend([entry.found for entry in entries])
    if any(entry.useless for entry in entries):
        told = f"{DAGGER} over {USELESS} times the unquantized perplexity"
        handles.append(Line2D([], [], linestyle="none", label=told))
    spacing = {"handletextpad": 0.2, "handlelength": 1.2, "columnspacing": 1.2}
    figure.legend(handles=handles, loc="outside lower left", ncols=2, **spacing)
    return figure


def _height(entries: Sequence[ForestLine]) -> float:
    """Height of a panel in inches: all lines and heads are as tall as the longest label needs."""
    rows = len(entries) + len({entry.head for entry in entries} - {""})
    step = max(1.0, 0.75 * max(_broken(entry.label).count("\n") + 1 for entry in entries))
    return ROW * rows * step + 0.9


def _broken(label: str) -> str:
    return "\n".join(textwrap.wrap(label, LONGEST, break_long_words=False, break_on_hyphens=False))


def _draw(axis: Axes, panel: Panel, palette: dict[str, str]) -> None:
    ticks: list[tuple[str, bool]] = []
    ends: list[float] = []
    head = ""
    for entry in panel.entries:
        if entry.head != head:
            head = entry.head
            ticks.append((head, True))
        ends += mark(axis, entry.found, len(ticks), palette[entry.colour], linewidth=1.6)
        ticks.append((_broken(entry.label) + (f" {DAGGER}" if entry.useless else ""), False))
    axis.axvline(0, color=INK, linewidth=1)
    axis.set_ylim(len(ticks) - 0.4, -0.6)
    axis.set_yticks(range(len(ticks)), [label for label, _ in ticks])
    axis.tick_params(axis="y", length=0)
    for text, (_, is_head) in zip(axis.get_yticklabels(), ticks, strict=True):
        text.set_fontweight("bold" if is_head else "normal")
    bent = signed_log(axis, axis.xaxis, [*ends, 0.0])
    axis.grid(visible=True, axis="x")
    axis.set_axisbelow(True)
    axis.set_title("\n".join(textwrap.wrap(panel.title, 52, break_on_hyphens=False)))
    better, worse = ("← better", "worse →") if panel.lower_is_better else ("← worse", "better →")
    scale = ", logarithmic beyond ±5" if bent else ""
    axis.set_xlabel(f"{better}    {panel.unit}{scale}    {worse}")


def mark(
    axis: Axes, found: Difference, at: float, colour: str, linewidth: float, upright: bool = False
) -> list[float]:
    """Draw a difference with its interval.

    Args:
        axis: axes to draw on.
        found: the difference.
        at: position on the other axis.
        colour: colour of mark and interval.
        linewidth: width of the interval's line in points.
        upright: whether differences are on the y axis.

    Returns:
        The finite ones among both ends of the interval and the estimate.
    """

    def plot(values: list[float], **style: Any) -> None:
        sides = (values, [at] * len(values))
        axis.plot(*(reversed(sides) if upright else sides), color=colour, **style)

    interval = [found.low, found.high]
    if all(map(math.isfinite, interval)):
        plot(interval, linewidth=linewidth, linestyle=":" if found.seeds < FEWEST_SEEDS else "-")
    plot([found.estimate], **_shape(found.significant, found.seeds))
    return [end for end in (*interval, found.estimate) if math.isfinite(end)]


def _shape(significant: bool, seeds: int) -> dict[str, Any]:
    """Mark of a difference: filled if significant, hollow if not, a diamond for one seed."""
    single = seeds < FEWEST_SEEDS
    return {
        "marker": "D" if single else "o",
        "markersize": 5 if single else 6,
        "linestyle": "none",
        "markerfacecolor": None if significant else "white",
        "markeredgewidth": 1.4,
    }


def shapes_legend(found: Sequence[Difference]) -> list[Any]:
    """Legend handles of the kinds of mark that occur."""
    kinds = {
        "significant across seeds": (True, FEWEST_SEEDS),
        "not significant": (False, FEWEST_SEEDS),
        "one seed: not tested": (False, 1),
    }
    met = {(item.significant, min(item.seeds, FEWEST_SEEDS)) for item in found}
    return [
        Line2D([], [], color="black", label=label, **_shape(*kind))
        for label, kind in kinds.items()
        if kind in met
    ]
