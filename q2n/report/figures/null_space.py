"""Figure about the null space of every layer of one cell, from the measures of ``diagnostics=null_space``.

It shows spectra, projection errors, ranks, angles between the null spaces of two halves of the calibration
text, the share of the projected target that a per-output-channel scale reaches, and output errors by source.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from q2n.records.store import RunRecord
from q2n.report.figures.style import new_figure
from q2n.report.tables.lines import observations
from q2n.report.tables.settings import Settings
from q2n.types import LayerReport, NullSpaceReport

CAPTION = (
    "Spectra of the inputs of every layer with the place where the null space begins, how far the "
    "inputs are from it, its stability between two halves of the calibration text, what a row scale "
    "reaches, and output error by source."
)
NONE = Settings((), ())
"""No settings: the cell's axes tell it apart."""
INPUTS = {
    "self_attn.q_proj": "q, k, v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate, up",
    "mlp.down_proj": "down",
}
"""One layer per input of a block, and the names of the layers that share the input."""
MIDDLE, NEARLY_ALL = 8, 14
"""Indices of the median and of the 87.5 % quantile among 17 evenly spaced quantiles."""


def draw_all(records: Sequence[RunRecord]) -> list[tuple[str, Figure]]:
    """Draw the lowest seed of every cell with measures; return names (``null_space-<cell>``) and figures."""
    labels, _ = observations(records)
    chosen: dict[str, tuple[RunRecord, Settings]] = {}
    for record, settings in sorted(zip(records, labels, strict=True), key=lambda pair: pair[0].cell.seed):
        if any(layer.null_space for layer in record.layers):
            chosen.setdefault(_label(record, settings), (record, settings))
    return [(label, draw(*cell)) for label, cell in chosen.items()]


def _label(record: RunRecord, settings: Settings) -> str:
    cell = record.cell
    parts = (cell.model, cell.baseline, cell.correction, f"{cell.bits}bit", f"g{cell.group_size}")
    named = "-".join((*parts, *settings.cell, *settings.correction))
    return "null_space-" + re.sub(r"[^A-Za-z0-9_.-]+", "_", named)


def draw(record: RunRecord, settings: Settings = NONE) -> Figure:
    """Draw the figure of one cell whose layers have measures; ``settings`` are its labels in the title."""
    by_input: dict[str, OfLayers] = {}
    for name, title in INPUTS.items():
        layers = [(layer, layer.null_space) for layer in record.layers if layer.name == name]
        by_input[title] = [(layer, measured) for layer, measured in layers if measured]
    figure, axes = new_figure(16, 11, 3, 4)
    for place, (title, of_input) in enumerate(by_input.items()):
        _spectra(axes[0, place], f"inputs of {title}", of_input)
        _sources(axes[2, place], title, of_input)
    for panel, (values, set_to) in zip(axes[1], PER_BLOCK, strict=True):
        _per_block(panel, by_input, values)
        panel.set(xlabel="block", **set_to)
    axes[1, 0].legend(fontsize="small")
    axes[1, 3].axhline(0, color="black", linewidth=0.5)
    cell = record.cell
    figure.suptitle(
        f"{cell.model}, {cell.baseline}, {cell.bits:g} bit, group {cell.group_size}, q2n={cell.correction}, "
        f"{''.join(f'{label}, ' for side in settings for label in side)}seed {cell.seed}: "
        "null space of the inputs"
    )
    return figure


OfLayers = Sequence[tuple[LayerReport, NullSpaceReport]]
"""Layers of one name, block by block, with their measures."""
Value = Callable[[LayerReport, NullSpaceReport], float | None]
"""Function that takes one value from a layer's report, None if it was not measured."""


def _angle(place: int) -> Value:
    return lambda _, item: item.half_angles[place] if item.half_angles else None


PER_BLOCK: tuple[tuple[dict[str, Value], dict[str, Any]], ...] = (
    (
        {
            "-": lambda _, item: item.projection_error,
            "--": lambda _, item: item.heldout_projection_error,
            ":": lambda _, item: item.half_projection_error,
        },
        {
            "title": "projection error (-- held-out, ··· other half)",
            "ylabel": "||X P|| / ||X||",
            "ylim": 0,
        },
    ),
    (
        {
            "-": lambda layer, item: 1 / layer.shape[1] * item.rank,
            "--": lambda layer, item: 1 / layer.shape[1] * item.effective_rank,
        },
        {"title": "rank (-- effective rank) / width", "ylim": (0, 1)},
    ),
    (
        {"-": _angle(MIDDLE), "--": _angle(NEARLY_ALL)},
        {
            "title": "angles between null spaces of two halves\n(median, -- 87.5 %)",
            "ylabel": "degrees",
            "ylim": 0,
        },
    ),
    (
        {"-": lambda _, item: item.reach, "--": lambda _, item: item.reached},
        {"title": "share of the projected target reached by the\nbest row scale (-- as corrected)"},
    ),
)
"""Panels of values by block: the value per line style, and the settings of the axes."""


def _spectra(axes: Axes, title: str, layers: OfLayers) -> None:
    """Draw eigenvalues over the largest, one line per block, with a mark where the null space begins."""
    colours = colormaps["viridis"]
    last = max((layer.block for layer, _ in layers), default=0) or 1
    for layer, measured in layers:
        x = measured.spectrum_places
        y = [value if value > 0 else float("nan") for value in measured.spectrum]
        colour = colours(layer.block / last)
        axes.plot(x, y, color=colour, linewidth=0.9)
        if measured.rank > 0:
            near = bisect_left(x, measured.rank)
            axes.plot(measured.rank, y[near], marker="o", markersize=3, color=colour)
    axes.set(xscale="log", yscale="log", title=title, xlabel="place", ylabel="eigenvalue / largest")


def _per_block(axes: Axes, by_input: Mapping[str, OfLayers], values: Mapping[str, Value]) -> None:
    """Draw the values of every input by block: one colour per input, one line style per value."""
    for place, (title, layers) in enumerate(by_input.items()):
        for linestyle, value in values.items():
            points = [(layer.block, value(layer, measured)) for layer, measured in layers]
            kept = [(block, number) for block, number in points if number is not None]
            if kept:
                label = title if linestyle == "-" else None
                style: dict[str, Any] = {"color": f"C{place}", "linewidth": 1.2, "linestyle": linestyle}
                axes.plot(*zip(*kept, strict=True), label=label, **style)


def _sources(axes: Axes, title: str, layers: OfLayers) -> None:
    """Draw the relative output error before the correction by source, stacked, and its sum afterwards."""
    told = [(layer, item) for layer, item in layers if item.error_sources and item.error_sources_after]
    blocks = [layer.block for layer, _ in told]
    parts = [[item.error_sources[part] for _, item in told if item.error_sources] for part in range(3)]
    if told:
        axes.stackplot(blocks, parts, labels=("leading direction", "range", "null space"), alpha=0.7)
        after = [sum(item.error_sources_after) for _, item in told if item.error_sources_after]
        axes.plot(blocks, after, color="black", linewidth=1, label="sum after the correction")
        axes.legend(fontsize="small")
    name = title.split(",", maxsplit=1)[0]
    axes.set(title=f"output error of {name} by source", xlabel="block", ylabel="relative")
