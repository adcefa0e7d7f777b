"""The block loop: collect statistics, solve, correct, write back, advance. It names no algorithm."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from q2n.activations import ActivationStore
from q2n.calibration import StagedForward, collect, start
from q2n.checkpoint import Checkpoint, Position, seed_block, structure
from q2n.clock import timed
from q2n.corrections.timed import TimedCorrection
from q2n.diagnostics.base import Diagnostics, NoDiagnostics
from q2n.diagnostics.layers import layer_reports
from q2n.exceptions import NumericalError
from q2n.linalg import require_finite, row_parts
from q2n.models.adapter import DecoderBlock, LinearGroup, ModelAdapter
from q2n.stages.solutions import Solve
from q2n.stages.static import StaticStages
from q2n.types import (
    Baseline,
    Correction,
    LayerReport,
    LinearProblem,
    Solution,
    Statistic,
    Statistics,
)

Progress = Callable[[int, str], None]
"""Called with the block's index and the stage that begins (``"self_attn.qkv"``)."""

Watch = Callable[[Sequence[LayerReport]], None]
"""Called after every block with the reports of all layers so far; what it raises ends the run."""


@dataclass(frozen=True)
class Method:
    """A baseline, the correction that follows it, and what is measured of the result."""

    baseline: Baseline
    correction: Correction
    diagnostics: Diagnostics = field(default_factory=NoDiagnostics)

    @property
    def requires(self) -> frozenset[Statistic]:
        """The Gram matrix is always among them: the layers' output errors are measured with it."""
        return self._asked_for | {Statistic.GRAM}

    @property
    def measured(self) -> frozenset[Statistic]:
        """The same in less memory: half of a Gram matrix that only errors are measured with."""
        errors = Statistic.GRAM if Statistic.GRAM in self._asked_for else Statistic.TRIANGLE
        return self._asked_for | {errors}

    @property
    def _asked_for(self) -> frozenset[Statistic]:
        return self.baseline.requires | self.correction.requires | self.diagnostics.requires


@torch.no_grad()
def quantize_model(
    adapter: ModelAdapter,
    tokens: Tensor,
    method: Method,
    *,
    batch_size: int,
    true_sequential: bool,
    store: ActivationStore,
    device: torch.device,
    progress: Progress,
    heldout: Tensor | None = None,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    static: StaticStages | None = None,
    watch: Watch | None = None,
) -> list[LayerReport]:
    """Quantize every linear of every decoder block in place, propagating the quantized model's activations.

    Args:
        tokens: calibration sequences, ``(n, T)`` int64.
        batch_size: sequences a micro-batch; 0: all at once.
        true_sequential: statistics of a group come from inputs that went through the block's already
            quantized groups; otherwise from the block as it was.
        store: where activations that wait for their next stage are kept.
        device: where one block at a time is computed.
        heldout: sequences that go the same way, but that nothing is fitted to, ``(m, T)`` int64.
        seed: with the block's index, seeds whatever draws from a global generator.
        checkpoint: where to go on, and what is told of every finished block.
        static: all statistics come from the unquantized model, by way of what other cells have left of it.
        watch: see :data:`Watch`.

    Raises:
        NumericalError: an activation, a statistic or a factorisation is not finite; names block and layer.
        CheckpointError: see :meth:`q2n.checkpoint.Checkpoint.restore`.
    """
    with adapter.rewriting():
        method.baseline.rewrite(adapter)
    adapter.prepare(tokens.shape[1])
    parts = tokens.split(batch_size or len(tokens))
    apart = heldout.split(batch_size or len(heldout)) if heldout is not None else ()
    ready = static is not None and static.ready
    stage = _Stage(method, true_sequential, store, device, len(apart), static)
    position = checkpoint.restore(adapter, store) if checkpoint else None
    if position is None:
        entering = () if ready else (*parts, *apart)
        position = Position(0, tuple(store.keep(adapter.embed(part)) for part in entering))
    for block in adapter.blocks[position.next_block :]:
        seed_block(seed, block.index)
        with block.on(device):
            position = stage.finish(block, position, partial(progress, block.index))
            if checkpoint:
                block.finish(checkpoint.finished)
        if checkpoint and not ready:  # what has no activations cannot be gone on from, and takes seconds
            checkpoint.reached(position)
        if watch:
            watch(position.reports)
    with adapter.rewriting():
        method.baseline.finish(adapter)
    return list(position.reports)


Notify = Callable[[str], None]
_Advanced = tuple[list[Tensor], list[LayerReport]]
Measure = Callable[[Sequence[StagedForward]], tuple[LinearGroup, Statistics]]


@dataclass(frozen=True)
class _Stage:
    """How a block is quantized; the last ``heldout`` micro-batches are those nothing is fitted to."""

    method: Method
    true_sequential: bool
    store: ActivationStore
    device: torch.device
    heldout: int
    static: StaticStages | None

    def finish(self, block: DecoderBlock, position: Position, notify: Notify) -> Position:
        """Quantize one block; the position behind it."""
        moved = [batch.to(self.device) for batch in position.batches]
        outputs, reports = (self._calibrated if self.static is None else self._static)(block, moved, notify)
        batches = tuple(self.store.keep(output) for output in outputs)
        for batch in batches:
            require_finite(batch, f"output of block {block.index}")
        return position.after(batches, reports, structure(block))

    def _calibrated(self, block: DecoderBlock, batches: Sequence[Tensor], notify: Notify) -> _Advanced:
        """With statistics of what the quantized blocks before this one leave of the activations."""
        self.method.baseline.prepare_block(block, batches[: len(batches) - self.heldout])
        advance = _true_sequential if self.true_sequential else _whole_block
        measure = partial(collect, wanted=self.method.measured, heldout=self.heldout)
        return advance(block, batches, self.method, measure, self.store, notify)

    def _static(self, block: DecoderBlock, batches: Sequence[Tensor], notify: Notify) -> _Advanced:
        """With statistics of the unquantized block, whose outputs are what the next block is given."""
        assert self.static is not None
        measured, outputs = self.static.measure(block, batches, self.heldout, self.store, notify)
        reports = []
        with self.static.solving(block) as solve:
            for group, stats in measured:
                notify(group.name)
                reports += solve_group(block, group, stats, self.method, solve)
        return outputs, reports


def _true_sequential(
    block: DecoderBlock,
    batches: Sequence[Tensor],
    method: Method,
    measure: Measure,
    store: ActivationStore,
    notify: Notify,
) -> _Advanced:
    """One forward per block, suspended before each group while that group is solved."""
    forwards = start(block, batches, store.keep)
    reports: list[LayerReport] = []
    for group in block.groups:
        notify(group.name)
        # Not kept in a variable: it would outlive the group while the next one is measured.
        reports += solve_group(block, group, measure(forwards)[1], method)
    return [forward.finish() for forward in forwards], reports


def _whole_block(
    block: DecoderBlock,
    batches: Sequence[Tensor],
    method: Method,
    measure: Measure,
    store: ActivationStore,
    notify: Notify,
) -> _Advanced:
    """Statistics of all groups from the unquantized block, then a second forward with the quantized one."""
    forwards = start(block, batches, store.keep)
    measured = []
    for group in block.groups:
        notify(group.name)
        measured.append(measure(forwards))
    reports = [report for group, stats in measured for report in solve_group(block, group, stats, method)]
    return [StagedForward(block, batch, store.keep).finish() for batch in batches], reports


def solve_group(
    block: DecoderBlock, group: LinearGroup, stats: Statistics, method: Method, solve: Solve | None = None
) -> list[LayerReport]:
    """Solve, correct and write back all layers of one group; ``solve`` in place of the baseline's own."""
    require_finite(stats.output_form, f"inputs of block {block.index} {group.name}")
    for name in group.linears:
        require_finite(block.linear(name).weight, f"weight of block {block.index} {name}")
    reports = []
    # Rows are stacked to share what follows from a Gram matrix; one layer after the other takes less memory.
    stacked = method.baseline.stacks_rows and Statistic.GRAM in stats
    for names in (group.linears,) if stacked else [(name,) for name in group.linears]:
        part = _problem(block, names, stats)
        correction = TimedCorrection(method.correction)
        began = time.perf_counter()
        try:
            with timed("solve"):
                solution = (solve or method.baseline.solve)(part, correction)
        except NumericalError as error:
            raise NumericalError(f"block {block.index} {', '.join(part.names)}: {error}") from error
        seconds = time.perf_counter() - began - correction.seconds
        _write_back(block, part, solution)
        with timed("measure"):
            measured = method.diagnostics.measure(part, solution)
            reports += layer_reports(block.index, part, solution, seconds, correction.seconds, measured)
    return reports


def _problem(block: DecoderBlock, names: tuple[str, ...], stats: Statistics) -> LinearProblem:
    """The layers ``names``, their rows stacked."""
    layers = [block.linear(name) for name in names]
    rows = tuple(layer.out_features for layer in layers)
    weight = layers[0].weight.new_empty(sum(rows), layers[0].in_features, dtype=torch.float32)
    for part, layer in zip(weight.split(list(rows)), layers, strict=True):
        part.copy_(layer.weight)
    return LinearProblem(names, rows, weight, stats, tuple(layer.bias is not None for layer in layers))


def _write_back(block: DecoderBlock, problem: LinearProblem, solution: Solution) -> None:
    """The one place where weights change, in the model's dtype."""
    first = 0
    for name, count in zip(problem.names, problem.rows, strict=True):
        target = block.linear(name).weight.data
        for rows in row_parts(target):
            weight = solution.corrected.weight_rows(slice(first + rows.start, first + rows.stop))
            require_finite(weight, f"quantized weight of block {block.index} {name}")
            target[rows].copy_(weight)
        first += count
    if solution.corrected.bias is None:
        return
    for name, bias in zip(problem.names, solution.corrected.bias.split(list(problem.rows)), strict=True):
        if bool(bias.any()):
            block.add_bias(name, bias)
