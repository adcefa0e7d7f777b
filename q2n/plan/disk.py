"""What a cell leaves on disk while it runs and after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from q2n.plan.workload import Workload

if TYPE_CHECKING:
    from q2n.config import RunConfig

RECORD = 200e3
"""A record and a log, about."""


def disk(work: Workload, config: RunConfig) -> float:
    """Bytes at most at one time: record and log, the checkpoint (finished blocks and the activations of the
    next one), finished blocks of a streamed model, activations that are kept in files."""
    shapes = work.shapes
    blocks = work.element * shapes.num_blocks * shapes.block_weights
    states = work.element * work.tokens * shapes.hidden
    total = RECORD
    if config.scalars.checkpoint_every != 0 or work.streamed:
        total += blocks
    if config.scalars.checkpoint_every != 0:
        total += states
    if work.on_disk:
        total += work.element * work.tokens * (3 * shapes.hidden + shapes.intermediate)
    return float(total)
