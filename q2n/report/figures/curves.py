"""A metric over a numeric configuration key: one line per method, seeds as a band, uncorrected dashed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from q2n.report.figures.labels import bit_width, plain, vary
from q2n.report.figures.style import BESIDE, GREY, WIDTH, colours, decades, new_figure, set_title
from q2n.report.figures.values import SeedMean, by_panel, is_number, measured_over, ranked, seed_means
from q2n.report.overview import StudyReport

CAPTION = (
    "Mean over seeds, the band is one standard deviation to either side; where there is one seed there "
    "is no band, and marks are hollow. Dashed: without correction. Dotted: the unquantized model."
)
_MARKS = "osD^vPX*"


def draw(report: StudyReport, x: str, metric: str | None = None) -> Figure | None:
    """Draw the curves, or return None if the key has fewer than two numeric values.

    Args:
        report: the study.
        x: dotted configuration key of the x axis.
        metric: ``<data set> <name>``, or None for each record's first metric.
    """
    every = seed_means(report, (x,), metric)
    placed = [item for item in every if is_number(item.place[0])]
    if len({item.place[0] for item in placed}) < 2:
        return None
    constant = [item for item in every if item.place[0] is None]

    def parts(item: SeedMean) -> tuple[str, ...]:
        model, _, settings, _ = item.row.key
        return (model, settings, "" if x == "bits" else bit_width(item.bits))

    panels, common = by_panel([*placed, *constant], parts)
    figure, axes = new_figure(WIDTH, 3.4 * len(panels) + 0.7, len(panels))
    for axis, (title, members) in zip(axes[:, 0], panels.items(), strict=True):
        _panel(axis, members, sorted({item.place[0] for item in placed}))
        axis.set(xlabel=x, title=title)
    set_title(figure, report.title, common, measured_over(placed))
    return figure


def _panel(axis: Axes, members: Sequence[SeedMean], xs: Sequence[float]) -> None:
    ranks = ranked(item.row for item in members)
    in_order = sorted(
        members, key=lambda item: ranks[item.row]
    )  # order of the tables, whatever the position on the x axis
    methods = list(dict.fromkeys((item.row.baseline, item.row.line) for item in in_order))
    names, _ = vary(methods)
    several = (
        len({name for name, _ in methods}) > 1
    )  # colours are by baseline, or by correction if there is one baseline
    tints = colours(name if several else line for name, line in methods)
    for place, (method, name) in enumerate(zip(methods, names, strict=True)):
        mine = [item for item in members if (item.row.baseline, item.row.line) == method]
        label = " ".join(part for part in name if part) or method[1]
        _curve(axis, mine, label, tints[method[0 if several else 1]], _MARKS[place % len(_MARKS)])
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
    axis.grid(visible=True)
    axis.legend(**BESIDE, handlelength=2.4)


def _curve(axis: Axes, mine: Sequence[SeedMean], label: str, tint: str, mark: str) -> None:
    style: dict[str, Any] = {"color": tint, "linestyle": "--" if mine[0].uncorrected else "-", "label": label}
    if mine[0].place[0] is None:  # a key of the correction: the uncorrected value does not depend on it
        axis.axhline(mine[0].mean, linewidth=1.4, **style)
        return
    mine = sorted(mine, key=lambda item: item.place[0])
    at, mean = [item.place[0] for item in mine], [item.mean for item in mine]
    spread = [item.spread for item in mine]
    if all(len(item.values) == 1 for item in mine):
        style["markerfacecolor"] = "white"
    axis.plot(at, mean, marker=mark, markersize=5, linewidth=1.5, **style)
    if any(spread):
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        axis.fill_between(at, low, high, color=tint, alpha=0.15, linewidth=0)


def _reference(axis: Axes, members: Sequence[SeedMean], shown: Sequence[float]) -> list[float]:
    """Draw the unquantized model's value if all members have the same one; return the values drawn.

    The value is a number in the legend instead of a line if the line would more than double the span of the
    values (on a logarithmic scale) and so leave the curves little room.
    """
    values = {item.metric.reference for item in members if item.metric.reference is not None}
    if len(values) != 1 or not shown:
        return []
    (value,) = values
    if math.isfinite(value):
        span, wider = (math.log(max(ends) / min(ends)) for ends in (shown, [*shown, value]))
        if wider <= 2 * span:
            axis.axhline(value, color=GREY, linestyle=":", linewidth=1.2, label="unquantized")
            return [value]
    text = plain(value) if math.isfinite(value) else str(value)
    axis.plot([], [], linestyle="none", label=f"(unquantized:\n{text})")
    return []
