"""Results that the cells of a sweep share when all statistics come from the unquantized model.

With ``calibration.stages=static`` no layer's problem depends on the solutions of other layers. Statistics,
eigenbases and solved layers (before the correction) of one cell are therefore those of every cell with the
same keys (:mod:`q2n.pipeline.sharing.keys`). A baseline that rewrites the model does so again in every cell;
if a baseline prepares blocks by their inputs, the prepared weights are kept with the statistics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

from q2n.pipeline.calibration import collect, start
from q2n.pipeline.sharing.context import StageContext
from q2n.pipeline.sharing.prepared import PreparedStage
from q2n.pipeline.sharing.solutions import Solve, solving
from q2n.pipeline.sharing.statistics import StatisticsStage

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.models.adapter import DecoderBlock, LinearGroup
    from q2n.pipeline.activations import ActivationStore
    from q2n.pipeline.sharing.keys import StageKeys
    from q2n.types import Baseline, Statistic, Statistics


class StaticStages:
    """Stages of one static cell, for the loop over the blocks."""

    def __init__(
        self,
        context: StageContext,
        keys: StageKeys,
        baseline: Baseline,
        wanted: frozenset[Statistic],
        blocks: int,
    ) -> None:
        self._statistics = StatisticsStage(context, keys, wanted, blocks)
        self._prepared = PreparedStage(context, keys.statistics, baseline, blocks)
        self._solving = partial(solving, context, keys.codes, baseline)
        self.ready = self._statistics.complete and self._prepared.complete

    def measure(
        self,
        block: DecoderBlock,
        inputs: Sequence[Tensor],
        heldout: int,
        store: ActivationStore,
        notify: Callable[[str], None],
    ) -> tuple[list[tuple[LinearGroup, Statistics]], list[Tensor]]:
        """Return the statistics of every group of an unquantized block, and the block's outputs.

        Args:
            block: the block.
            inputs: micro-batches ``(B, T, D)``; empty, as are the outputs, if all results are :attr:`ready`.
            heldout: number of the last micro-batches that are held out.
            store: place of the activations.
            notify: called with the name of each group before its statistics are collected.
        """
        if self.ready:
            self._prepared.restore(block)
            groups = self._statistics.take(block.index, {})
            return [(group, groups[group.name]) for group in block.groups], []
        self._prepared.prepare(block, inputs[: len(inputs) - heldout])
        began = time.perf_counter()
        missing = self._statistics.missing(block.index)
        forwards = start(block, inputs, store.keep)
        measured: dict[str, Statistics] = {}
        if missing:
            for group in block.groups:
                notify(group.name)
                _, measured[group.name] = collect(forwards, missing, heldout)
        outputs = [forward.finish() for forward in forwards]
        groups = self._statistics.take(block.index, measured, time.perf_counter() - began)
        return [(group, groups[group.name]) for group in block.groups], outputs

    def solving(self, block: DecoderBlock) -> AbstractContextManager[Solve]:
        """Provide the baseline's ``solve`` for the layers of a block, inside."""
        return self._solving(block.index)
