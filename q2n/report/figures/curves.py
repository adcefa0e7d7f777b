"""A metric over a numeric configuration key: a line a method, seeds as a band, uncorrected lines dashed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from q2n.report.figures.style import GREY, WIDTH, colours, decades, plain, vary
from q2n.report.figures.values import (
    Point,
    baseline,
    bits,
    by_panel,
    headline,
    is_number,
    is_off,
    line,
    model,
    points,
    settings,
)
from q2n.report.tables.lines import in_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from q2n.report.overview import StudyReport

CAPTION = (
    "Mean over seeds, the band is one standard deviation to either side; where there is one seed there "
    "is no band, and marks are hollow. Dashed: without correction. Dotted: the unquantized model."
)
_MARKS = "osD^vPX*"


def draw(report: StudyReport, x: str, metric: str | None = None) -> Figure | None:
    """The curves; None: no cell has the key as a number, or all have the same."""
    from matplotlib.figure import Figure

    every = points(report, (x,), metric)
    placed = [item for item in every if is_number(item.place[0])]
    if len({item.place[0] for item in placed}) < 2:
        return None
    constant = [item for item in every if item.place[0] is None]
    parts = (model, settings) if x == "bits" else (model, settings, bits)
    panels, common = by_panel([*placed, *constant], *parts)
    figure = Figure(figsize=(WIDTH, 3.4 * len(panels) + 0.7), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axis, (title, members) in zip(axes, panels.items(), strict=True):
        _panel(axis, members, sorted({item.place[0] for item in placed}))
        axis.set(xlabel=x, title=title)
    figure.suptitle(headline(report.title, common, placed), x=0.01, ha="left", fontsize=10)
    return figure


def _panel(axis: Axes, members: Sequence[Point], xs: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    methods = list(dict.fromkeys((baseline(item), line(item)) for item in _by_method(members)))
    names, _ = vary(methods)
    tints = _tints(methods)
    for place, (method, name) in enumerate(zip(methods, names, strict=True)):
        mine = [item for item in members if (baseline(item), line(item)) == method]
        label = " ".join(part for part in name if part) or method[1]
        _curve(axis, mine, label, tints[method], _MARKS[place % len(_MARKS)])
    positive = [item.mean for item in members if math.isfinite(item.mean) and item.mean > 0]
    positive += _reference(axis, members, positive)
    if members[0].metric.name == "perplexity" and positive:
        axis.set_yscale("log")
        decades(axis.yaxis, positive)
    if xs[0] > 0 and xs[-1] / xs[0] > 8:
        axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(list(xs)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([f"{value:g}" for value in xs])
    axis.grid(color="#e6e6e6", linewidth=0.6)
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=2.4)


def _tints(methods: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Colours by baseline where there are several, else by correction."""
    several = len({name for name, _ in methods}) > 1
    palette = colours(name if several else correction for name, correction in methods)
    return {method: palette[method[0] if several else method[1]] for method in methods}


def _curve(axis: Axes, mine: Sequence[Point], label: str, tint: str, mark: str) -> None:
    dashed = "--" if is_off(mine[0]) else "-"
    if mine[0].place[0] is None:  # the key is one of the correction: there is one value whatever it is
        axis.axhline(mine[0].mean, color=tint, linestyle=dashed, linewidth=1.4, label=label)
        return
    mine = sorted(mine, key=lambda item: item.place[0])
    at, mean = [item.place[0] for item in mine], [item.mean for item in mine]
    spread = [item.spread for item in mine]
    hollow: dict[str, Any] = (
        {"markerfacecolor": "white"} if all(len(item.values) == 1 for item in mine) else {}
    )
    axis.plot(
        at,
        mean,
        color=tint,
        linestyle=dashed,
        marker=mark,
        markersize=5,
        linewidth=1.5,
        label=label,
        **hollow,
    )
    if any(spread):
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        axis.fill_between(at, low, high, color=tint, alpha=0.15, linewidth=0)


def _reference(axis: Axes, members: Sequence[Point], shown: Sequence[float]) -> list[float]:
    """The unquantized model's value, where all agree on one: a line, or a number in the legend where a line
    would leave the curves little room."""
    values = {item.metric.reference for item in members if item.metric.reference is not None}
    if len(values) != 1 or not shown:
        return []
    (value,) = values
    if not math.isfinite(value):
        axis.plot([], [], linestyle="none", label=f"(unquantized:\n{value})")
        return []
    span, wider = (math.log(max(ends) / min(ends)) for ends in (shown, [*shown, value]))
    if wider > 2 * span:
        axis.plot([], [], linestyle="none", label=f"(unquantized:\n{plain(value)})")
        return []
    axis.axhline(value, color=GREY, linestyle=":", linewidth=1.2, label="unquantized")
    return [value]


def _by_method(members: Sequence[Point]) -> list[Point]:
    """In the order of the tables, whatever their place."""
    ranks = {row: rank for rank, row in enumerate(in_order(item.row for item in members))}
    return sorted(members, key=lambda item: ranks[item.row])
