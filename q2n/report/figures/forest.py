"""Forest plots: a line a difference, its estimate and its interval, beside the zero that means no effect."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from q2n.report.figures.style import WIDTH, colours, signed_log
from q2n.report.tables.comparisons import FEWEST_SEEDS, Difference
from q2n.report.tables.pairs import USELESS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROW = 0.24
"""Inches of a line."""

DAGGER = "†"

LONGEST = 30
"""Letters of a label before it is broken; one that still has more is broken again."""


@dataclass(frozen=True)
class Entry:
    """A line of a forest plot; entries of one ``head`` stand together below it, ``colour`` is what decides
    the line's colour; one between ``useless`` models is marked."""

    head: str
    label: str
    colour: str
    found: Difference
    useless: bool = False


@dataclass(frozen=True)
class Panel:
    """Entries that share a scale. ``unit`` is what their differences are in."""

    title: str
    unit: str
    lower_is_better: bool
    entries: tuple[Entry, ...]


def forest(panels: Sequence[Panel], title: str) -> Figure:
    """One panel below the other."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    heights = [ROW * _rows(panel.entries) * _step(panel.entries) + 0.9 for panel in panels]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.8), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    palette = colours(entry.colour for panel in panels for entry in panel.entries)
    for panel, axis in zip(panels, axes, strict=True):
        _draw(axis, panel, palette)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    entries = [entry for panel in panels for entry in panel.entries]
    handles = shapes_legend([entry.found for entry in entries])
    if any(entry.useless for entry in entries):
        told = f"{DAGGER} over {USELESS} times the unquantized perplexity"
        handles.append(Line2D([], [], linestyle="none", label=told))
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=2,
        handletextpad=0.2,
        handlelength=1.2,
        columnspacing=1.2,
    )
    return figure


def _rows(entries: Sequence[Entry]) -> int:
    heads = dict.fromkeys(entry.head for entry in entries)
    return len(entries) + sum(bool(head) for head in heads)


def _step(entries: Sequence[Entry]) -> float:
    """Lines that a label needs."""
    return max(1.0, 0.75 * max(_broken(entry.label).count("\n") + 1 for entry in entries))


def _broken(label: str) -> str:
    return "\n".join(textwrap.wrap(label, LONGEST, break_long_words=False, break_on_hyphens=False))


def _draw(axis: Axes, panel: Panel, palette: dict[str, str]) -> None:
    ticks: list[tuple[int, str, bool]] = []
    ends: list[float] = []
    row, head = 0, ""
    for entry in panel.entries:
        if entry.head != head:
            head = entry.head
            ticks.append((row, head, True))
            row += 1
        ticks.append((row, _broken(entry.label) + (f" {DAGGER}" if entry.useless else ""), False))
        ends += _mark(axis, row, entry.found, palette[entry.colour])
        row += 1
    axis.axvline(0, color="#333333", linewidth=1)
    axis.set_ylim(row - 0.4, -0.6)
    axis.set_yticks([place for place, _, _ in ticks], [label for _, label, _ in ticks])
    axis.tick_params(axis="y", length=0)
    for text, (_, _, is_head) in zip(axis.get_yticklabels(), ticks, strict=True):
        text.set_fontweight("bold" if is_head else "normal")
    bent = signed_log(axis, axis.xaxis, [*ends, 0.0])
    axis.grid(axis="x", color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_title("\n".join(textwrap.wrap(panel.title, 52, break_on_hyphens=False)))
    better, worse = ("← better", "worse →") if panel.lower_is_better else ("← worse", "better →")
    scale = ", logarithmic beyond ±5" if bent else ""
    axis.set_xlabel(f"{better}    {panel.unit}{scale}    {worse}")


def _mark(axis: Axes, row: int, found: Difference, colour: str) -> list[float]:
    """A difference: filled where it is established, hollow where not, a diamond for one seed; its ends."""
    ends = [end for end in (found.low, found.estimate, found.high) if math.isfinite(end)]
    if math.isfinite(found.low) and math.isfinite(found.high):
        dashed = ":" if found.seeds < FEWEST_SEEDS else "-"
        axis.plot([found.low, found.high], [row, row], color=colour, linewidth=1.6, linestyle=dashed)
    axis.plot(found.estimate, row, **shape(found.established, found.seeds), color=colour)
    return ends


def shape(established: bool, seeds: int) -> dict[str, Any]:
    """The mark of a difference: filled where it is established, hollow where not, a diamond for one seed."""
    shape = {"marker": "D" if seeds < FEWEST_SEEDS else "o", "markersize": 5 if seeds < FEWEST_SEEDS else 6}
    return {
        **shape,
        "linestyle": "none",
        "markerfacecolor": None if established else "white",
        "markeredgewidth": 1.4,
    }


def shapes_legend(found: Sequence[Difference]) -> list[Any]:
    """Handles for the marks that occur."""
    from matplotlib.lines import Line2D

    kinds = {
        "established over seeds": (True, FEWEST_SEEDS),
        "not established": (False, FEWEST_SEEDS),
        "one seed: establishes nothing": (False, 1),
    }
    met = {(item.established, min(item.seeds, FEWEST_SEEDS)) for item in found}
    return [
        Line2D([], [], color="black", label=label, **shape(*kind))
        for label, kind in kinds.items()
        if kind in met
    ]
