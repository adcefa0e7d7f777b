"""Calibration statistics, and the propagation of activations through the decoder blocks.

The forward pass of a block is a generator that stops before each group of linear layers sharing an input. All
micro-batches are advanced to that point. The group's statistics are collected, and its layers are solved and
written back. Then the same forward passes continue with the quantized weights: true-sequential calibration at
one forward pass per block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from q2n.exceptions import DataError
from q2n.linalg.gram import add_gram, add_triangle, complete, complete_triangle, triangle
from q2n.runtime.clock import timed
from q2n.types import Statistic, Statistics

if TYPE_CHECKING:
    from q2n.models.adapter import DecoderBlock, LinearGroup

Store = Callable[[Tensor], Tensor]
"""Function that returns an equal tensor, possibly in other storage."""

TOKEN_SAMPLE_PER_SEQUENCE = 64
"""Least number of evenly spaced rows per sequence in ``TOKEN_SAMPLE``; all rows of shorter sequences."""


class Accumulator(Protocol):
    """Sum of one statistic over batches."""

    def update(self, batch: Tensor, seen: int) -> None:
        """Add a batch.

        Args:
            batch: inputs ``(B, T, C)``, float32; any floating-point dtype for :data:`UNCONVERTED`.
            seen: number of sequences before this batch.
        """
        ...

    def result(self, sequences: int) -> Tensor:
        """Return the statistic of all ``sequences`` sequences."""
        ...


class GramAccumulator:
    """Gram matrix ``(2/n) sum_s X_s^T X_s``, computed as a lower triangle.

    If ``packed``, the result is the triangle packed by :func:`q2n.linalg.gram.triangle`, in half the memory.
    """

    def __init__(self, packed: bool = False) -> None:
        self._packed, self._width = packed, 0
        self._sum: Tensor | None = None

    def update(self, batch: Tensor, seen: int) -> None:
        """Add ``X^T X`` of a batch."""
        width = self._width = batch.shape[-1]
        if self._sum is None:
            whole = (width, width)
            self._sum = (
                triangle(width, batch) if self._packed else batch.new_zeros(whole, dtype=torch.float32)
            )
        (add_triangle if self._packed else add_gram)(self._sum, batch.reshape(-1, width))

    def result(self, sequences: int) -> Tensor:
        """Return the Gram matrix, which takes over the memory of the sum: call once."""
        assert self._sum is not None
        gram, self._sum = self._sum, None
        completed = complete_triangle(gram, self._width) if self._packed else complete(gram)
        return completed.mul_(2 / sequences)


class HalfGramAccumulator:
    """Gram matrix of sequences 1, 3, 5, ..."""

    def __init__(self) -> None:
        self._gram = GramAccumulator()

    def update(self, batch: Tensor, seen: int) -> None:
        """Add the odd-numbered sequences of a batch."""
        kept = batch[seen % 2 :: 2]
        if len(kept):
            self._gram.update(kept, (seen + 1) // 2)

    def result(self, sequences: int) -> Tensor:
        """Return the Gram matrix, normalised by the number of its sequences."""
        return self._gram.result((sequences + 1) // 2)


class PositionMeanAccumulator:
    """Position mean ``(1/n) sum_k w_k X_k``: ``w_k`` is 1, or ``sqrt(2/k)`` as in the official PB-LLM."""

    def __init__(self, sqrt_weights: bool = False) -> None:
        self._sum: Tensor | None = None
        self._sqrt_weights = sqrt_weights

    def update(self, batch: Tensor, seen: int) -> None:
        """Add a batch.

        Raises:
            DataError: sequences have different lengths.
        """
        if self._sqrt_weights:
            count = torch.arange(seen + 1, seen + len(batch) + 1, device=batch.device)
            batch = batch * (2 / count).sqrt()[:, None, None]
        total = batch.sum(dim=0)
        if self._sum is not None and total.shape != self._sum.shape:
            raise DataError(
                f"the position mean needs sequences of one length: {len(total)} after {len(self._sum)} tokens"
            )
        self._sum = total if self._sum is None else self._sum + total

    def result(self, sequences: int) -> Tensor:
        """Return the position mean ``(T, C)``."""
        assert self._sum is not None
        return self._sum / sequences


class ChannelAccumulator:
    """Mean or maximum per channel over all tokens, ``(C,)``.

    ``reduce`` maps the tokens ``(n, C)`` of a batch to ``(C,)``. The results are added up and divided by the
    number of tokens; with ``largest``, their maximum is taken.
    """

    def __init__(self, reduce: Callable[[Tensor], Tensor], largest: bool = False) -> None:
        self._reduce, self._largest = reduce, largest
        self._total: Tensor | None = None
        self._rows = 0

    def update(self, batch: Tensor, seen: int) -> None:
        """Reduce a batch and combine it with the earlier ones."""
        rows = batch.reshape(-1, batch.shape[-1])
        found = self._reduce(rows)
        if self._total is not None:
            found = (torch.maximum if self._largest else torch.add)(self._total, found)
        self._total = found
        self._rows += len(rows)

    def result(self, sequences: int) -> Tensor:
        """Return the mean or maximum ``(C,)`` float32."""
        assert self._total is not None
        return self._total if self._largest else (self._total / self._rows).float()


class TokenSampleAccumulator:
    """Sample of evenly spaced rows of every sequence, ``(m, C)``."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def update(self, batch: Tensor, seen: int) -> None:
        """Add the sample of a batch."""
        step = max(1, batch.shape[1] // TOKEN_SAMPLE_PER_SEQUENCE)
        self._rows.append(batch[:, ::step].reshape(-1, batch.shape[-1]).clone())

    def result(self, sequences: int) -> Tensor:
        """Return the rows of all sequences."""
        return torch.cat(self._rows)


ACCUMULATORS: dict[Statistic, Callable[[], Accumulator]] = {
    Statistic.GRAM: GramAccumulator,
    Statistic.TRIANGLE: lambda: GramAccumulator(packed=True),
    Statistic.HALF_GRAM: HalfGramAccumulator,
    Statistic.POSITION_MEAN: PositionMeanAccumulator,
    Statistic.SQRT_POSITION_MEAN: lambda: PositionMeanAccumulator(sqrt_weights=True),
    # Batches are added up in float64.
    Statistic.MEAN: lambda: ChannelAccumulator(lambda rows: rows.sum(dim=0).double()),
    Statistic.ABS_MEAN: lambda: ChannelAccumulator(lambda rows: rows.abs().sum(dim=0)),
    Statistic.ABS_MAX: lambda: ChannelAccumulator(lambda rows: rows.abs().amax(dim=0), largest=True),
    Statistic.TOKEN_SAMPLE: TokenSampleAccumulator,
}


UNCONVERTED = frozenset({Statistic.GRAM, Statistic.TRIANGLE})
"""Statistics whose accumulators take batches in the model's dtype."""


class Accumulators:
    """Accumulators of all requested statistics of one input."""

    def __init__(self, wanted: Iterable[Statistic]) -> None:
        self._parts = {statistic: ACCUMULATORS[statistic]() for statistic in sorted(set(wanted))}
        self._sequences = self._tokens = 0

    def update(self, batch: Tensor) -> None:
        """Add a batch of inputs ``(B, T, C)`` of any floating-point dtype."""
        with timed("statistics"):
            converted = batch if self._parts.keys() <= UNCONVERTED else batch.float()
            for statistic, part in self._parts.items():
                part.update(batch if statistic in UNCONVERTED else converted, self._sequences)
        self._sequences += batch.shape[0]
        self._tokens += batch.shape[0] * batch.shape[1]

    def result(self) -> Statistics:
        """Return the statistics of all batches; call once."""
        with timed("statistics"):
            values = {statistic: part.result(self._sequences) for statistic, part in self._parts.items()}
        return Statistics(values, self._sequences, self._tokens)


def collect(
    forwards: Sequence[Iterator[tuple[LinearGroup, Tensor]]],
    wanted: frozenset[Statistic],
    heldout: int = 0,
) -> tuple[LinearGroup, Statistics]:
    """Advance every micro-batch to its next group of linear layers and collect statistics of the inputs.

    Args:
        forwards: forward pass of every micro-batch.
        wanted: statistics to collect.
        heldout: number of micro-batches at the end that are held out and measured separately.

    Returns:
        The group, and the statistics of its input.
    """
    accumulators = Accumulators(wanted)
    apart = Accumulators(wanted & {Statistic.GRAM, Statistic.TRIANGLE, Statistic.MEAN})
    group = None
    for number, forward in enumerate(forwards, start=1):
        group, inputs = next(forward)
        (apart if number > len(forwards) - heldout else accumulators).update(inputs)
    assert group is not None
    return group, replace(accumulators.result(), heldout=apart.result() if heldout else None)


def start(block: DecoderBlock, batches: Sequence[Tensor], store: Store) -> list[StagedForward]:
    """Start one suspended forward pass per micro-batch."""
    return [StagedForward(block, batch, store) for batch in batches]


class StagedForward:
    """Forward pass of one block that stops before each group of linear layers."""

    def __init__(self, block: DecoderBlock, hidden: Tensor, store: Store) -> None:
        self._generator = block.staged_forward(hidden, store)

    def __iter__(self) -> StagedForward:
        return self

    def __next__(self) -> tuple[LinearGroup, Tensor]:
        with timed("forward"):
            return next(self._generator)

    def finish(self) -> Tensor:
        """Run to the end of the block and return its output ``(B, T, D)``."""
        while True:
            try:
                next(self)
            except StopIteration as stop:
                output: Tensor = stop.value
                return output
