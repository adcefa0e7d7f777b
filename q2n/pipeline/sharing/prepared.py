"""Weights that a baseline changes when it prepares blocks for solving."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from q2n.models.adapter import DecoderBlock
from q2n.pipeline.sharing.context import StageContext
from q2n.pipeline.sharing.store import Address
from q2n.types import Baseline

STAGE = "prepared"


class PreparedStage:
    """Keeps the weights that ``prepare_block`` changes, and restores them without the block's inputs.

    A preparation that replaces modules of a block is not kept, and is done again in every cell.
    """

    def __init__(self, context: StageContext, key: str, baseline: Baseline, blocks: int) -> None:
        self._context, self._key, self._baseline = context, key, baseline
        count = blocks if baseline.prepares_blocks else 0
        self._found = [context.find(self._address(block)) for block in range(count)]
        self.complete = all(found is not None for found in self._found)

    def prepare(self, block: DecoderBlock, inputs: Sequence[Tensor]) -> None:
        """Let the baseline prepare the block from its inputs ``(B, T, D)``; keep the changed weights."""
        if not self._baseline.prepares_blocks:
            return
        before = {name: tensor.clone() for name, tensor in block.module.state_dict().items()}
        began = time.perf_counter()
        self._baseline.prepare_block(block, inputs)
        seconds = time.perf_counter() - began
        self._context.tally.note(STAGE, self._key, False)
        after = block.module.state_dict()
        if {name: it.shape for name, it in before.items()} != {name: it.shape for name, it in after.items()}:
            return
        changed = {name: it for name, it in after.items() if not torch.equal(it, before[name])}
        self._context.store.write(self._address(block.index), changed, {"seconds": seconds})

    def restore(self, block: DecoderBlock) -> None:
        """Restore the prepared weights of the block; only if those of all blocks were found."""
        if not self._baseline.prepares_blocks:
            return
        found = self._found[block.index]
        assert found is not None
        part = self._context.load(found)
        state = block.module.state_dict()
        for name, tensor in part.tensors.items():
            state[name].copy_(tensor)
        self._context.tally.note(STAGE, self._key, True, part.facts["seconds"])
        self._context.remember(self._address(block.index), part)

    def _address(self, block: int) -> Address:
        return Address(STAGE, self._key, f"{block:05d}")
