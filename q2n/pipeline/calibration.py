"""Calibration statistics, and the stream of activations through one decoder block after another.

The forward pass of a block is a generator that stops before each group of linears sharing an input. All
micro-batches are advanced to that point, the group's statistics are collected and its layers solved and
written back, and the same forward passes go on with the quantized weights. That is true-sequential
calibration at one forward per block.
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

TOKEN_SAMPLE_PER_SEQUENCE = 64
"""Rows of one sequence kept by ``TOKEN_SAMPLE`` (evenly spaced)."""


class Accumulator(Protocol):
    def update(self, batch: Tensor, seen: int) -> None:
        """``batch`` ``(B, T, C)``, float32 but for :data:`UNCONVERTED`, which take any float dtype; ``seen``
        sequences came before it."""
        ...

    def result(self, sequences: int) -> Tensor: ...


class GramAccumulator:
    """``(2/n) sum_s X_s^T X_s``, from its lower triangle; if ``packed``, in half the memory, as
    :func:`q2n.linalg.gram.triangle` packs it."""

    def __init__(self, packed: bool = False) -> None:
        self._packed, self._width = packed, 0
        self._sum: Tensor | None = None

    def update(self, batch: Tensor, seen: int) -> None:
        width = self._width = batch.shape[-1]
        if self._sum is None:
            whole = (width, width)
            self._sum = (
                triangle(width, batch) if self._packed else batch.new_zeros(whole, dtype=torch.float32)
            )
        (add_triangle if self._packed else add_gram)(self._sum, batch.reshape(-1, width))

    def result(self, sequences: int) -> Tensor:
        """The finished form, made in the place of the sum."""
        assert self._sum is not None
        gram, self._sum = self._sum, None
        completed = complete_triangle(gram, self._width) if self._packed else complete(gram)
        return completed.mul_(2 / sequences)


class HalfGramAccumulator:
    """:class:`GramAccumulator` of every other sequence, from the first."""

    def __init__(self) -> None:
        self._gram = GramAccumulator()

    def update(self, batch: Tensor, seen: int) -> None:
        kept = batch[seen % 2 :: 2]
        if len(kept):
            self._gram.update(kept, (seen + 1) // 2)

    def result(self, sequences: int) -> Tensor:
        return self._gram.result((sequences + 1) // 2)


class PositionMeanAccumulator:
    """``(1/n) sum_k w_k X_k`` with ``w_k = 1``, or ``sqrt(2/k)`` as the release's PB-LLM weighs them."""

    def __init__(self, sqrt_weights: bool = False) -> None:
        self._sum: Tensor | None = None
        self._sqrt_weights = sqrt_weights

    def update(self, batch: Tensor, seen: int) -> None:
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
        assert self._sum is not None
        return self._sum / sequences


class ChannelAccumulator:
    """A number per channel over all tokens ``(n, C)``: ``reduce`` of each batch's, added up and divided by
    ``n``, or with ``largest`` the maximum."""

    def __init__(self, reduce: Callable[[Tensor], Tensor], largest: bool = False) -> None:
        self._reduce, self._largest = reduce, largest
        self._total: Tensor | None = None
        self._rows = 0

    def update(self, batch: Tensor, seen: int) -> None:
        rows = batch.reshape(-1, batch.shape[-1])
        found = self._reduce(rows)
        if self._total is not None:
            found = (torch.maximum if self._largest else torch.add)(self._total, found)
        self._total = found
        self._rows += len(rows)

    def result(self, sequences: int) -> Tensor:
        assert self._total is not None
        return self._total if self._largest else (self._total / self._rows).float()


class TokenSampleAccumulator:
    """Evenly spaced rows of every sequence."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def update(self, batch: Tensor, seen: int) -> None:
        step = max(1, batch.shape[1] // TOKEN_SAMPLE_PER_SEQUENCE)
        self._rows.append(batch[:, ::step].reshape(-1, batch.shape[-1]).clone())

    def result(self, sequences: int) -> Tensor:
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


class Accumulators:
    """All requested statistics of one input."""

    def __init__(self, wanted: Iterable[Statistic]) -> None:
        self._parts = {statistic: ACCUMULATORS[statistic]() for statistic in sorted(set(wanted))}
        self._sequences = self._tokens = 0

    def update(self, batch: Tensor) -> None:
        """Add a batch of inputs ``(B, T, C)`` of any float dtype."""
        with timed("statistics"):
            converted = batch if self._parts.keys() <= UNCONVERTED else batch.float()
            for statistic, part in self._parts.items():
                part.update(batch if statistic in UNCONVERTED else converted, self._sequences)
        self._sequences += batch.shape[0]
        self._tokens += batch.shape[0] * batch.shape[1]

    def result(self) -> Statistics:
        with timed("statistics"):
            values = {statistic: part.result(self._sequences) for statistic, part in self._parts.items()}
        return Statistics(values, self._sequences, self._tokens)


def collect(
    forwards: Sequence[Iterator[tuple[LinearGroup, Tensor]]],
    wanted: frozenset[Statistic],
    heldout: int = 0,
) -> tuple[LinearGroup, Statistics]:
    """Advance every micro-batch to its next group of linears and measure what arrives there.

    The last ``heldout`` micro-batches are kept out of the statistics and give their ``heldout`` ones.
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
    """One suspended forward pass a micro-batch."""
    return [StagedForward(block, batch, store) for batch in batches]


class StagedForward:
    """A forward pass of one block that stops before each group of linears."""

    def __init__(self, block: DecoderBlock, hidden: Tensor, store: Store) -> None:
        self._generator = block.staged_forward(hidden, store)

    def __iter__(self) -> StagedForward:
        return self

    def __next__(self) -> tuple[LinearGroup, Tensor]:
        with timed("forward"):
            return next(self._generator)

    def finish(self) -> Tensor:
        """Run to the end of the block; its output ``(B, T, D)``."""
        while True:
            try:
                next(self)
            except StopIteration as stop:
                output: Tensor = stop.value
                return output
