"""Optimal-brain-surgeon rounding with compiled kernels: the fast form of the reference solver.

The column loop is that of :mod:`q2n.quantization.solvers.reference`; each block of columns runs in the
compiled kernel of the number format where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from q2n.linalg.kernels import usable
from q2n.quantization.formats.base import ColumnRounder, FormatSpec, Strip, StripRounder, strip_rounder
from q2n.quantization.solvers import reference
from q2n.types import LinearProblem, QuantizedLinear


def solve_obs(
    problem: LinearProblem,
    grid: FormatSpec,
    damping: Sequence[float],
    order: Tensor | None = None,
    kept: int = 0,
) -> QuantizedLinear:
    """Quantize a layer with error compensation, faster than :func:`q2n.quantization.solvers.reference.solve`.

    Arguments, result and errors are the same.
    """
    return reference.solve(problem, grid, damping, order, kept, sweep_columns)


def sweep_columns(
    buffer: Tensor, push: Tensor, encoder: ColumnRounder, stop: int, target: Tensor | None = None
) -> float:
    """Run the column loop, in the encoder's kernel if it has one that supports these tensors.

    See :func:`q2n.quantization.solvers.reference.column_loop`.
    """
    kernel = strip_rounder(encoder) if usable(buffer) else None
    blocks = reference.round_block if kernel is None else partial(_round_strips, kernel)
    return reference.column_loop(buffer, push, encoder, stop, target, blocks)


def _round_strips(
    kernel: StripRounder,
    buffer: Tensor,
    push: Tensor,
    encoder: ColumnRounder,
    block: slice,
    target: Tensor | None,
) -> Tensor:
    """Round a block with a kernel, like :func:`q2n.quantization.solvers.reference.round_block`."""
    errors, nothing = torch.empty_like(buffer[block]), buffer.new_empty(0, 0)
    for near in range(block.start, block.stop, reference.LOOKBACK):
        strip = slice(near, min(near + reference.LOOKBACK, block.stop))
        done = near - block.start
        current = buffer[strip].clone()
        if done:
            current.addmm_(push[block.start : near, strip].T, errors[:done], alpha=-1)
        for position in range(near, strip.stop):
            encoder.enter(position, buffer)
        kernel(
            Strip(
                start=near,
                current=current,
                push=push[strip, strip].contiguous(),
                errors=errors[done : done + len(current)],
                diagonal=push.diagonal()[strip].contiguous(),
                target=nothing if target is None else target[strip],
                values=nothing,
            )
        )
    return errors
