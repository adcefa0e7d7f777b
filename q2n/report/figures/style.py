"""Style of all figures: colours for colour-blind readers, and letters that are readable on a phone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.style
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator

from q2n.report.figures.labels import plain
from q2n.report.tables.lines import NO_CORRECTION

WIDTH = 6.4
"""Width of most figures in inches: letters stay readable if a phone shrinks the figure."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5D3A9B", "#8C510A", "#000000")
"""Palette of Okabe and Ito without yellow (too light on white), with a violet and a brown added."""

GREY = "#767676"
"""Colour of axes, references and uncorrected lines."""

INK = "#333333"
"""Colour of the line at zero."""

BESIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
"""Position of a legend beside the axes, where it hides no data."""

_CORRECTIONS = ("on", "released", "lstsq", "groupwise", "tuned", "bias", "requantize")

RULES = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "figure.facecolor": "white",
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "svg.hashsalt": "q2n",
    "svg.fonttype": "none",
}


@contextmanager
def style() -> Iterator[None]:
    """Draw the block's figures by :data:`RULES` alone, independent of a user's matplotlibrc."""
    with matplotlib.style.context(["default", {**RULES, "axes.prop_cycle": cycler(color=PALETTE)}]):
        yield


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **layout: Any
) -> tuple[Figure, Any]:
    """Make a figure and the array of its axes, ``(rows, columns)``; width and height are in inches.

    ``layout`` has further arguments of :meth:`matplotlib.figure.Figure.subplots`.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **layout)


def set_title(figure: Figure, *lines: str, size: int = 10) -> None:
    """Write the nonempty lines above a figure; ``size`` is in points."""
    figure.suptitle("\n".join(filter(None, lines)), x=0.01, ha="left", fontsize=size)


def colours(names: Iterable[str]) -> dict[str, str]:
    """Colours by name; each correction has the same colour in every figure, ``off`` is grey."""
    names = list(dict.fromkeys(names))
    others = [name for name in names if name != NO_CORRECTION]
    order = _CORRECTIONS if set(others) <= set(_CORRECTIONS) else others
    found = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(order)}
    return {name: found.get(name, GREY) for name in names}


def signed_log(axis: Axes, which: Axis, ends: Sequence[float]) -> bool:
    """Make a signed axis logarithmic beyond ±5 if any value exceeds ±40; return true if it was changed."""
    reach = max((abs(end) for end in ends if math.isfinite(end)), default=0.0)
    if reach <= 40:
        return False
    scale = axis.set_xscale if which is axis.xaxis else axis.set_yscale
    scale("symlog", linthresh=5, linscale=1)
    steps = [step for step in (5, 10, 20, 50, 100, 300, 1000, 1e4, 1e5, 1e6) if step <= 1.2 * reach]
    if len(steps) > 5:
        steps = steps[::2]
    low, high = 2 * min(ends) - 5, 2 * max(ends) + 5
    ticks = (*(-step for step in reversed(steps)), 0, *steps)
    which.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    which.set_minor_locator(NullLocator())
    which.set_major_formatter(lambda value, _: f"{value:+g}" if value else "0")
    return True


def decades(which: Axis, values: Iterable[float]) -> None:
    """Put plain numbers on a logarithmic axis: one to three per decade, or about five if it is short."""
    finite = [value for value in values if math.isfinite(value) and value > 0]
    span = max(finite, default=1.0) / min(finite, default=1.0)
    locator = MaxNLocator(5) if span < 5 else LogLocator(subs=(1, 2, 5) if span < 200 else (1,))
    which.set_major_locator(locator)
    which.set_minor_locator(NullLocator())
    which.set_major_formatter(lambda value, _: plain(value))
