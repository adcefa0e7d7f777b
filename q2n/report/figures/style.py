"""How every figure looks: colours that a colour-blind reader tells apart, letters a phone still shows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from q2n.report.tables.lines import NO_CORRECTION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

WIDTH = 6.4
"""Inches of most figures: narrow enough for letters to be read when a phone shrinks it."""

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5D3A9B", "#8C510A", "#000000")
"""Okabe and Ito's, without yellow (too light on white), with a violet and a brown."""

GREY = "#767676"
"""Of what is no result: axes, references, the uncorrected line."""

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
    "svg.hashsalt": "q2n",
    "svg.fonttype": "none",
}


@contextmanager
def style() -> Iterator[None]:
    """Inside, figures are drawn by these rules alone: a user's own matplotlibrc must not change them."""
    import matplotlib.style
    from cycler import cycler

    with matplotlib.style.context(["default", {**RULES, "axes.prop_cycle": cycler(color=PALETTE)}]):
        yield


def colours(names: Iterable[str]) -> dict[str, str]:
    """A colour for each name in order; corrections have the same one in every figure, ``off`` is grey."""
    names = list(dict.fromkeys(names))
    others = [name for name in names if name != NO_CORRECTION]
    order = _CORRECTIONS if set(others) <= set(_CORRECTIONS) else others
    found = {name: PALETTE[place % len(PALETTE)] for place, name in enumerate(order)}
    return {name: found.get(name, GREY) for name in names}


def vary(parts: Sequence[Sequence[str]]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Labels of several parts without what they have in common, and that."""
    if not parts:
        return [], ()
    differing = [place for place, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    common = tuple(part for place, part in enumerate(parts[0]) if place not in differing and part)
    return [tuple(label[place] for place in differing) for label in parts], common


def signed_log(axis: Axes, which: Axis, ends: Sequence[float]) -> bool:
    """Make a signed axis logarithmic beyond ±5 where its values reach far; whether it was needed."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    reach = max((abs(end) for end in ends if math.isfinite(end)), default=0.0)
    if reach <= 40:
        return False
    scale = axis.set_xscale if which is axis.xaxis else axis.set_yscale
    scale("symlog", linthresh=5, linscale=1)
    steps = [step for step in (5, 10, 20, 50, 100, 300, 1000, 1e4, 1e5, 1e6) if step <= 1.2 * reach]
    if len(steps) > 5:
        steps = steps[::2]
    low, high = min(ends), max(ends)
    ticks = [
        tick
        for tick in (*(-step for step in reversed(steps)), 0, *steps)
        if 2 * low - 5 <= tick <= 2 * high + 5
    ]
    which.set_major_locator(FixedLocator(ticks))
    which.set_minor_locator(NullLocator())
    which.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
    return True


def decades(which: Axis, values: Iterable[float]) -> None:
    """Plain numbers on a logarithmic axis: a few within a decade, one to three a decade over several."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    finite = [value for value in values if math.isfinite(value) and value > 0]
    span = max(finite, default=1.0) / min(finite, default=1.0)
    locator = MaxNLocator(5) if span < 5 else LogLocator(subs=(1, 2, 5) if span < 200 else (1,))
    which.set_major_locator(locator)
    which.set_minor_locator(NullLocator())
    which.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))


def plain(value: float) -> str:
    """``0.05``, ``44.3``, ``2,093``, ``1.2e+06``."""
    size = abs(value)
    return f"{value:.1e}" if size >= 1e6 else f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"
