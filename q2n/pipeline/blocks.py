"""Block loop, for any method: collect statistics, solve, correct, write back, advance."""

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
"""Callback with the block's index and the stage that begins (``"self_attn.qkv"``)."""

OnBlock = Callable[[Sequence[LayerReport]], None]
"""Callback after every block with the reports of all layers so far; an exception ends the cell."""


@dataclass(frozen=True)
class Method:
    """Baseline, correction and diagnostics of a cell."""

    baseline: Baseline
    correction: Correction
    diagnostics: Diagnostics = field(default_factory=NoDiagnostics)

    @property
    def requires(self) -> frozenset[Statistic]:
        """Statistics of all parts, and the Gram matrix, with which output errors are measured."""
        return self._asked_for | {Statistic.GRAM}

    @property
    def measured(self) -> frozenset[Statistic]:
        """Statistics to collect: a packed triangle in place of a Gram matrix that only errors need."""
        errors = Statistic.GRAM if Statistic.GRAM in self._asked_for else Statistic.TRIANGLE
        return self._asked_for | {errors}

    @property
    def _asked_for(self) -> frozenset[Statistic]:
        return self.baseline.requires | self.correction.requires | self.diagnostics.requires


@contextmanager
def _at(block: DecoderBlock, *names: str) -> Iterator[None]:
    """Prefix numerical errors with the block and the names of layers or groups."""
    try:
        yield
    except NumericalError as error:
        place = " ".join([f"block {block.index}", ", ".join(names)]).strip()
        raise NumericalError(f"{place}: {error}") from error


def require_finite_weights(block: DecoderBlock) -> None:
    """Check the weights of a block before it is used.

    Raises:
        NumericalError: a parameter or buffer of the block is not finite; the message names block and layer.
    """
    for path, tensor in block.tensors().items():
        if tensor.is_floating_point():
            name, _, what = path.rpartition(".")
            _finite(block, name, what, tensor)


@dataclass(frozen=True)
class BlockLoop:
    """Quantization of a model, block by block.

    Attributes:
        method: baseline, correction and diagnostics.
        tokens: calibration sequences, ``(n, T)`` int64.
        store: storage of activations between two stages.
        device: device on which one block at a time is computed.
        progress: see :data:`Progress`.
        batch_size: sequences per micro-batch, or 0 for all at once.
        true_sequential: statistics of a group come from inputs that went through the quantized groups before
            it; if False, from the block before its quantization.
        heldout: held-out sequences ``(m, T)`` int64, propagated like ``tokens``; nothing is fitted to them.
        seed: seed of the global generators, mixed with the block's index.
        checkpoint: checkpoint to resume from and to update as blocks finish, or None for no checkpoints.
        static: stages with statistics of the unquantized model, shared between cells, or None if statistics
            come from the partly quantized model.
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
        """Quantize all linear layers of all decoder blocks in place; activations come from quantized blocks.

        Returns:
            One report per layer.

        Raises:
            NumericalError: a weight, an activation or a statistic is not finite, or a matrix does not
                factorise; the message names block, layer (or group of layers) and cause.
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
            # Without activations there is nothing to resume from, and blocks take seconds.
            if checkpoint and not ready:
                checkpoint.reached(position)
            if self.on_block:
                self.on_block(position.reports)
        with adapter.rewriting():
            self.method.baseline.finish(adapter)
        return list(position.reports)

    def _batches(self, sequences: Tensor | None) -> tuple[Tensor, ...]:
        return () if sequences is None else sequences.split(self.batch_size or len(sequences))

    def _behind(self, block: DecoderBlock, position: Position) -> Position:
        """Quantize one block and return the position after it."""
        require_finite_weights(block)  # before statistics of their inputs
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
        """Quantize one block with statistics of the activations of the quantized blocks before it.

        If true-sequential, there is one forward pass per block, suspended before each group while the group
        is solved. Otherwise a second pass follows with the quantized block, after all groups were measured.

        Args:
            block: block to quantize.
            batches: micro-batches of its inputs, ``(B, T, D)`` each.
            apart: number of micro-batches at the end that are held out.

        Returns:
            Output of every micro-batch, and one report per layer.
        """
        with _at(block):
            self.method.baseline.prepare_block(block, batches[: len(batches) - apart])
        forwards = start(block, batches, self.store.keep)
        reports: list[LayerReport] = []
        measured = []
        for group in block.groups:
            self.progress(block.index, group.name)
            if self.true_sequential:
                # A variable would keep the statistics in memory while the next group is measured.
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
        """Quantize one block with statistics of the unquantized block, whose outputs enter the next block."""
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
    """Solve, correct and write back all layers of one group.

    Args:
        block: block of the group.
        group: linear layers that share an input.
        stats: statistics of this input.
        method: baseline, correction and diagnostics.
        solve: replacement of the baseline's ``solve``, or None if there is none.

    Returns:
        One report per layer.

    Raises:
        NumericalError: a number is not finite; the message names block and layers.
    """
    with _at(block, group.name):
        _require_finite_inputs(block.linear(group.linears[0]).in_features, stats)
    reports = []
    # Stacked rows share the results of a Gram matrix; without one, layer by layer takes less memory.
    stacked = method.baseline.stacks_rows and Statistic.GRAM in stats
    for names in (group.linears,) if stacked else [(name,) for name in group.linears]:
        reports += _solve_layers(block, _problem(block, names, stats), method, solve)
    return reports


def _solve_layers(
    block: DecoderBlock, problem: LinearProblem, method: Method, solve: Solve | None
) -> list[LayerReport]:
    """Solve, correct, write back and measure the layers of one problem."""
    began = time.perf_counter()
    with timed("solve"), _at(block, *problem.names):
        solution = (solve or method.baseline.solve)(problem, method.correction)
    seconds = time.perf_counter() - began
    _write_back(block, problem, solution)
    with timed("measure"), _at(block, *problem.names):
        measured = method.diagnostics.measure(problem, solution)
        return layer_reports(block.index, problem, solution, seconds, measured)


def _require_finite_inputs(width: int, stats: Statistics) -> None:
    """Check the inputs; the diagonal of the Gram matrix distinguishes NaN from overflow."""
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
    """Return the problem of the layers ``names``, their rows stacked."""
    layers = [block.linear(name) for name in names]
    for name, layer in zip(names, layers, strict=True):
        _finite(block, name, "weight, as the baseline prepared it,", layer.weight)
    rows = tuple(layer.out_features for layer in layers)
    weight = layers[0].weight.new_empty(sum(rows), layers[0].in_features, dtype=torch.float32)
    for part, layer in zip(weight.split(list(rows)), layers, strict=True):
        part.copy_(layer.weight)
    return LinearProblem(names, rows, weight, stats, tuple(layer.bias is not None for layer in layers))


def _write_back(block: DecoderBlock, problem: LinearProblem, solution: Solution) -> None:
    """Write the corrected weights and biases, in the model's dtype: the only place where weights change."""
    first = 0
    for name, count in zip(problem.names, problem.rows, strict=True):
        target = block.linear(name).weight.data
        for rows in row_parts(target):
            weight = solution.corrected.weight_rows(slice(first + rows.start, first + rows.stop))
            # Checked in the model's dtype, in which a finite float32 number may overflow.
            target[rows].copy_(_finite(block, name, "quantized weight", weight.to(target.dtype)))
        first += count
    if solution.corrected.bias is None:
        return
    for name, bias in zip(problem.names, solution.corrected.bias.split(list(problem.rows)), strict=True):
        if bool(bias.any()):
            block.add_bias(name, bias)
            _finite(block, name, "bias with the correction's", block.linear(name).bias)


def _finite(block: DecoderBlock, name: str, what: str, tensor: Tensor) -> Tensor:
    """Return ``tensor``, a part of the layer ``name``, if it is finite."""
    with _at(block, name):
        require_finite(tensor, f"{what} in {dtype_name(tensor.dtype)}")
    return tensor
