"""The null space of every layer of one cell: spectra, projection errors, what a row scale reaches, error by
source. Drawn from what ``diagnostics=null_space`` left in the record."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from q2n.records.store import RunRecord
from q2n.report.tables.lines import observations
from q2n.report.tables.settings import Settings
from q2n.types import LayerReport, NullSpaceReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTION = (
    "Spectra of the inputs of every layer with the place where the null space begins, how far the "
    "inputs are from it, its stability between two halves of the calibration text, what a row scale "
    "reaches, and output error by source."
)
NONE = Settings((), ())
INPUTS = {
    "self_attn.q_proj": "q, k, v",
    "self_attn.o_proj": "o",
    "mlp.gate_proj": "gate, up",
    "mlp.down_proj": "down",
}
"""One layer for each input of a block, and the layers that share it."""
MIDDLE, NEARLY_ALL = 8, 14
"""Places of the median and of the 87.5 % quantile among 17 evenly spaced ones."""


def draw_all(records: Sequence[RunRecord]) -> list[tuple[str, Figure]]:
    """``null_space-<cell>`` and its figure for the first seed of every cell that has the measures."""
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
    """The figure of one cell whose layers have measures; ``settings`` tell it from others."""
    from matplotlib.figure import Figure

    by_input: dict[str, Measured] = {}
    for name, title in INPUTS.items():
        layers = [(layer, layer.null_space) for layer in record.layers if layer.name == name]
        by_input[title] = [(layer, measured) for layer, measured in layers if measured]
    figure = Figure(figsize=(16, 11), layout="constrained")
    axes = figure.subplots(3, 4)
    for place, (title, of_input) in enumerate(by_input.items()):
        _spectra(axes[0, place], f"inputs of {title}", of_input)
        _sources(axes[2, place], title, of_input)
    _projection(axes[1, 0], by_input)
    _ranks(axes[1, 1], by_input)
    _angles(axes[1, 2], by_input)
    _reach(axes[1, 3], by_input)
    cell = record.cell
    figure.suptitle(
        f"{cell.model}, {cell.baseline}, {cell.bits:g} bit, group {cell.group_size}, q2n={cell.correction}, "
        f"{''.join(f'{label}, ' for side in settings for label in side)}seed {cell.seed}: "
        "null space of the inputs"
    )
    return figure


Measured = Sequence[tuple[LayerReport, NullSpaceReport]]
Value = Callable[[NullSpaceReport], float | None]


def _spectra(axes: Axes, title: str, layers: Measured) -> None:
    """Eigenvalues over the largest by place, a line a block; a mark where the null space begins."""
    from matplotlib import colormaps

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


def _per_block(axes: Axes, layers: Measured, value: Value, *, scale: float = 1.0, **style: Any) -> None:
    points = [(layer.block, value(measured)) for layer, measured in layers]
    kept = [(block, scale * number) for block, number in points if number is not None]
    if kept:
        axes.plot([block for block, _ in kept], [number for _, number in kept], **style)


def _projection(axes: Axes, by_input: dict[str, Measured]) -> None:
    for place, (title, layers) in enumerate(by_input.items()):
        style: dict[str, Any] = {"color": f"C{place}", "linewidth": 1.2}
        _per_block(axes, layers, lambda item: item.projection_error, label=title, **style)
        _per_block(axes, layers, lambda item: item.heldout_projection_error, linestyle="--", **style)
        _per_block(axes, layers, lambda item: item.half_projection_error, linestyle=":", **style)
    axes.set(title="projection error (-- held-out, ··· other half)", xlabel="block")
    axes.set(ylabel="||X P|| / ||X||", ylim=0)
    axes.legend(fontsize="small")


def _ranks(axes: Axes, by_input: dict[str, Measured]) -> None:
    for place, (title, layers) in enumerate(by_input.items()):
        share = 1 / layers[0][0].shape[1] if layers else 1.0
        style: dict[str, Any] = {"color": f"C{place}", "linewidth": 1.2, "scale": share}
        _per_block(axes, layers, lambda item: item.rank, label=title, **style)
        _per_block(axes, layers, lambda item: item.effective_rank, linestyle="--", **style)
    axes.set(title="rank (-- effective rank) / width", xlabel="block", ylim=(0, 1))


def _angles(axes: Axes, by_input: dict[str, Measured]) -> None:
    for place, (title, layers) in enumerate(by_input.items()):
        style: dict[str, Any] = {"color": f"C{place}", "linewidth": 1.2}
        _per_block(axes, layers, lambda item: _at(item, MIDDLE), label=title, **style)
        _per_block(axes, layers, lambda item: _at(item, NEARLY_ALL), linestyle="--", **style)
    axes.set(title="angles between null spaces of two halves\n(median, -- 87.5 %)", xlabel="block")
    axes.set(ylabel="degrees", ylim=0)


def _at(measured: NullSpaceReport, place: int) -> float | None:
    return measured.half_angles[place] if measured.half_angles else None


def _reach(axes: Axes, by_input: dict[str, Measured]) -> None:
    for place, (title, layers) in enumerate(by_input.items()):
        style: dict[str, Any] = {"color": f"C{place}", "linewidth": 1.2}
        _per_block(axes, layers, lambda item: item.reach, label=title, **style)
        _per_block(axes, layers, lambda item: item.reached, linestyle="--", **style)
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set(title="share of the projected target reached by the\nbest row scale (-- as corrected)")
    axes.set(xlabel="block")


def _sources(axes: Axes, title: str, layers: Measured) -> None:
    """Relative output error before the correction by source, stacked, and the whole of it afterwards."""
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
