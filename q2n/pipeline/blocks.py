"""The block loop: collect statistics, solve, correct, write back, advance. It names no algorithm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from q2n.diagnostics.base import Diagnostics, NoDiagnostics
from q2n.diagnostics.layers import layer_reports
from q2n.exceptions import NumericalError
from q2n.linalg.dense import dtype_name, require_finite, row_parts
from q2n.linalg.gram import diagonal
from q2n.models.adapter import DecoderBlock, LinearGroup, ModelAdapter
from q2n.pipeline.activations import ActivationStore
from q2n.pipeline.calibration import collect, start
from q2n.pipeline.checkpoint import Checkpoint, Position, seed_block, structure
from q2n.pipeline.sharing.solutions import Solve
from q2n.pipeline.sharing.static import StaticStages
from q2n.runtime.clock import timed
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

OnBlock = Callable[[Sequence[LayerReport]], None]
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


@contextmanager
def _at(block: DecoderBlock, *names: str) -> Iterator[None]:
    """Put block and layers, or the group of layers, before what is wrong with their numbers."""
    try:
        yield
    except NumericalError as error:
        place = " ".join([f"block {block.index}", ", ".join(names)]).strip()
        raise NumericalError(f"{place}: {error}") from error


def require_finite_weights(block: DecoderBlock) -> None:
    """Check a block before anything is measured with it.

    Raises:
        NumericalError: a parameter or buffer of the block is not finite; names block and layer.
    """
    for path, tensor in block.tensors().items():
        if tensor.is_floating_point():
            name, _, what = path.rpartition(".")
            _finite(block, name, what, tensor)


@dataclass(frozen=True)
class BlockLoop:
    """How a model is quantized, block by block.

    Attributes:
        tokens: calibration sequences, ``(n, T)`` int64.
        store: where activations that wait for their next stage are kept.
        device: where one block at a time is computed.
        progress: see :data:`Progress`.
        batch_size: sequences per micro-batch; 0: all at once.
        true_sequential: statistics of a group come from inputs that went through the block's already
            quantized groups; otherwise from the block as it was.
        heldout: sequences that go the same way, but that nothing is fitted to, ``(m, T)`` int64.
        seed: with the block's index, seeds whatever draws from a global generator.
        checkpoint: where to go on, and what is told of every finished block.
        static: all statistics come from the unquantized model, by way of what other cells have left of it.
        on_block: see :data:`OnBlock`.
    """

    method: Method
    tokens: Tensor
    store: ActivationStore
    device: torch.device
    progress: Progress
    batch_size: int = 0
    true_sequential: bool = True
    heldout: Tensor | None = None
    seed: int = 0
    checkpoint: Checkpoint | None = None
    static: StaticStages | None = None
    on_block: OnBlock | None = None

    @torch.no_grad()
    def quantize(self, adapter: ModelAdapter) -> list[LayerReport]:
        """Quantize every linear of every decoder block in place, propagating the quantized model's
        activations.

        Raises:
            NumericalError: a weight, an activation, a statistic or a factorisation is not finite, or does not
                exist; names block, layer (or group of layers) and cause.
            CheckpointError: see :meth:`q2n.pipeline.checkpoint.Checkpoint.restore`.
        """
        checkpoint, ready = self.checkpoint, self.static is not None and self.static.ready
        with adapter.rewriting():
            self.method.baseline.rewrite(adapter)
        adapter.prepare(self.tokens.shape[1])
        position = checkpoint.restore(adapter, self.store) if checkpoint else None
        if position is None:
            entering = () if ready else (*self._batches(self.tokens), *self._batches(self.heldout))
            embedded = tuple(self.store.keep(adapter.embed(batch)) for batch in entering)
            for batch in embedded:
                require_finite(batch, "embeddings, inputs of block 0")
            position = Position(0, embedded)
        for block in adapter.blocks[position.next_block :]:
            seed_block(self.seed, block.index)
            with block.on(self.device):
                position = self._behind(block, position)
                if checkpoint:
                    block.finish(checkpoint.finished)
            if checkpoint and not ready:  # what has no activations cannot be gone on from, and takes seconds
                checkpoint.reached(position)
            if self.on_block:
                self.on_block(position.reports)
        with adapter.rewriting():
            self.method.baseline.finish(adapter)
        return list(position.reports)

    def _batches(self, sequences: Tensor | None) -> tuple[Tensor, ...]:
        return () if sequences is None else sequences.split(self.batch_size or len(sequences))

    def _behind(self, block: DecoderBlock, position: Position) -> Position:
        """Quantize one block; the position behind it."""
        require_finite_weights(block)  # before anything is measured of inputs to them
        moved = [batch.to(self.device) for batch in position.batches]
        apart = len(self._batches(self.heldout))
        outputs, reports = (self._calibrated if self.static is None else self._static)(block, moved, apart)
        batches = tuple(self.store.keep(output) for output in outputs)
        with _at(block):
            for batch in batches:
                require_finite(batch, f"output in {dtype_name(batch.dtype)}")
        return position.after(batches, reports, structure(block))

    def _calibrated(
        self, block: DecoderBlock, batches: Sequence[Tensor], apart: int
    ) -> tuple[list[Tensor], list[LayerReport]]:
        """Outputs and reports, with statistics of what the quantized blocks before this one leave of the
        activations; nothing is fitted to the last ``apart`` micro-batches.

        If true-sequential, there is one forward per block, suspended before each group while that group is
        solved; otherwise a second one with the quantized block, after all groups were measured.
        """
        with _at(block):
            self.method.baseline.prepare_block(block, batches[: len(batches) - apart])
        forwards = start(block, batches, self.store.keep)
        reports: list[LayerReport] = []
        measured = []
        for group in block.groups:
            self.progress(block.index, group.name)
            if self.true_sequential:
                # Not kept in a variable: it would outlive the group while the next one is measured.
                reports += solve_group(
                    block, group, collect(forwards, self.method.measured, apart)[1], self.method
                )
            else:
                measured.append(collect(forwards, self.method.measured, apart))
        for group, stats in measured:
            reports += solve_group(block, group, stats, self.method)
        if not self.true_sequential:
            forwards = start(block, batches, self.store.keep)
        return [forward.finish() for forward in forwards], reports

    def _static(
        self, block: DecoderBlock, batches: Sequence[Tensor], apart: int
    ) -> tuple[list[Tensor], list[LayerReport]]:
        """With statistics of the unquantized block, whose outputs are what the next block is given."""
        assert self.static is not None
        notify = partial(self.progress, block.index)
        with _at(block):
            measured, outputs = self.static.measure(block, batches, apart, self.store, notify)
        reports = []
        with self.static.solving(block) as solve:
            for group, stats in measured:
                notify(group.name)
                reports += solve_group(block, group, stats, self.method, solve)
        return outputs, reports


def solve_group(
    block: DecoderBlock, group: LinearGroup, stats: Statistics, method: Method, solve: Solve | None = None
) -> list[LayerReport]:
    """Solve, correct and write back all layers of one group; ``solve`` in place of the baseline's own."""
    with _at(block, group.name):
        _require_finite_inputs(block.linear(group.linears[0]).in_features, stats)
    reports = []
    # Rows are stacked to share what follows from a Gram matrix; one layer after the other takes less memory.
    stacked = method.baseline.stacks_rows and Statistic.GRAM in stats
    for names in (group.linears,) if stacked else [(name,) for name in group.linears]:
        reports += _solve_layers(block, _problem(block, names, stats), method, solve)
    return reports


def _solve_layers(
    block: DecoderBlock, problem: LinearProblem, method: Method, solve: Solve | None
) -> list[LayerReport]:
    began = time.perf_counter()
    with timed("solve"), _at(block, *problem.names):
        solution = (solve or method.baseline.solve)(problem, method.correction)
    seconds = time.perf_counter() - began
    _write_back(block, problem, solution)
    with timed("measure"), _at(block, *problem.names):
        measured = method.diagnostics.measure(problem, solution)
        return layer_reports(block.index, problem, solution, seconds, measured)


def _require_finite_inputs(width: int, stats: Statistics) -> None:
    """Of a Gram matrix the diagonal tells inputs that are no numbers from squares that are too large."""
    for part, what in ((stats, "inputs"), (stats.heldout, "held-out inputs")):
        if part is None:
            continue
        try:
            require_finite(part.output_form, what)
        except NumericalError:
            squares = diagonal(part.output_form, width)
            bad, unknown = int((~squares.isfinite()).sum()), int(squares.isnan().sum())
            cause = (
                "are no numbers" if unknown else "are infinite, or the sums of their squares exceed float32"
            )
            raise NumericalError(f"{what}: {unknown or bad} of {width} channels {cause}") from None


def _problem(block: DecoderBlock, names: tuple[str, ...], stats: Statistics) -> LinearProblem:
    """The layers ``names``, their rows stacked."""
    layers = [block.linear(name) for name in names]
    for name, layer in zip(names, layers, strict=True):
        _finite(block, name, "weight, as the baseline prepared it,", layer.weight)
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
            # In the model's dtype, where a number may overflow that float32 holds.
            target[rows].copy_(_finite(block, name, "quantized weight", weight.to(target.dtype)))
        first += count
    if solution.corrected.bias is None:
        return
    for name, bias in zip(problem.names, solution.corrected.bias.split(list(problem.rows)), strict=True):
        if bool(bias.any()):
            block.add_bias(name, bias)
            _finite(block, name, "bias with the correction's", block.linear(name).bias)


def _finite(block: DecoderBlock, name: str, what: str, tensor: Tensor) -> Tensor:
    """``tensor``, part of the linear ``name``, if it is finite."""
    with _at(block, name):
        require_finite(tensor, f"{what} in {dtype_name(tensor.dtype)}")
    return tensor
