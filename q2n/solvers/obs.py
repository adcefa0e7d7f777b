"""Optimal-brain-surgeon rounding, column by column (GPTQ, arXiv 2210.17323): the ONE column loop.

``H^{-1} = U^T U`` with ``U`` upper triangular. Column ``j`` is rounded and the error
``e_j = (w_j - q_j) / U_jj`` is pushed onto the columns still to come, ``W[:, k] -= e_j U_jk``. A format is an
argument (:class:`~q2n.grids.base.Grid`), a column order is an argument, kept columns are an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from q2n.grids.base import ColumnEncoder, Grid, SolverView
from q2n.linalg import damped_inverse_factor
from q2n.types import LinearProblem, QuantizedLinear

BLOCK = 128
"""Columns between two updates of the whole buffer: part of the definition, since a group that begins inside
a block is fitted on the buffer as it was when the block began (upstream GPTQ)."""

LOOKBACK = 32
"""Columns between two matrix products inside a block: speed only, the result does not depend on it."""


@dataclass(frozen=True)
class ColumnSweep:
    """What one pass over the columns produces, transposed and in solver order: ``(C, R)``."""

    values: Tensor
    compensated: Tensor
    loss: float


def solve_obs(
    problem: LinearProblem,
    grid: Grid,
    damping: Sequence[float],
    order: Tensor | None = None,
    kept: int = 0,
) -> QuantizedLinear:
    """Quantize a layer with error compensation.

    Args:
        problem: weight ``(R, C)`` and Gram statistic.
        grid: number format of the columns.
        damping: schedule of fractions of the mean Hessian diagonal (first that factorises is used).
        order: ``(C,)`` column order to work in; ``None`` is the layer's own.
        kept: the last ``kept`` columns of ``order`` are not rounded; they end as compensated full precision.

    Raises:
        NumericalError: the Hessian cannot be factorised with any damping of the schedule.
    """
    columns = problem.weight.shape[1]
    order = torch.arange(columns, device=problem.weight.device) if order is None else order
    hessian = problem.stats.gram[order][:, order]
    dead = hessian.diagonal() == 0
    hessian = hessian + torch.diag(dead.to(hessian))
    factor = damped_inverse_factor(hessian, damping)
    view = SolverView(problem.weight[:, order], order, dead, factor.upper.diagonal(), kept)
    buffer = view.weight.T.contiguous()
    buffer[dead] = 0
    encoder = grid.encoder(view)
    sweep = sweep_columns(buffer, factor.upper, encoder, columns - kept)
    inverse = torch.argsort(order)
    kept_columns = None
    if kept:
        kept_columns = inverse >= columns - kept
    return QuantizedLinear(
        format=encoder.finish(sweep.compensated),
        original=problem.weight,
        compensated=sweep.compensated[inverse].T.contiguous(),
        order=order,
        kept=kept_columns,
        diagnostics={"damping": factor.damping, "loss": sweep.loss, "dead_columns": int(dead.sum())},
    )


def activation_order(gram: Tensor) -> Tensor:
    """Columns by falling Hessian diagonal ("act-order"), ``(C,)``.

    A dead column counts with the diagonal 1 it gets before factorisation, as upstream GPTQ orders them.
    """
    diagonal = gram.diagonal()
    return torch.argsort(torch.where(diagonal == 0, 1.0, diagonal), descending=True)


def sweep_columns(buffer: Tensor, upper: Tensor, encoder: ColumnEncoder, stop: int) -> ColumnSweep:
    """Round columns ``0 .. stop-1`` of ``buffer`` ``(C, R)`` (modified: it ends as the compensated weight).

    Rows of ``buffer`` are columns of the weight, so that every operation of the loop reads and writes
    contiguous memory.
    """
    values = torch.zeros_like(buffer)
    loss = 0.0
    for start in range(0, stop, BLOCK):
        end = min(start + BLOCK, stop)
        errors = _sweep_block(buffer, upper, encoder, values, start, end)
        loss += float(errors.square().sum()) / 2
        buffer[end:].addmm_(upper[start:end, end:].T, errors, alpha=-1)
    return ColumnSweep(values, buffer, loss)


def _sweep_block(
    buffer: Tensor, upper: Tensor, encoder: ColumnEncoder, values: Tensor, start: int, end: int
) -> Tensor:
    """Columns ``start .. end-1``; returns their errors ``(end-start, R)`` and leaves ``buffer`` as it was."""
    errors = torch.empty(end - start, buffer.shape[1], dtype=buffer.dtype, device=buffer.device)
    diagonal = upper.diagonal()[start:end].tolist()
    for near in range(start, end, LOOKBACK):
        stop = min(near + LOOKBACK, end)
        done = near - start
        current = buffer[near:stop]
        if done:
            current = torch.addmm(current, upper[start:near, near:stop].T, errors[:done], alpha=-1)
        for position in range(near, stop):
            column, local = current[position - near], position - start
            if position > near:
                push = upper[near:position, position]
                column = torch.addmv(column, errors[done:local].T, push, alpha=-1)
            encoder.enter(position, buffer)
            value = encoder.encode(position, column)
            values[position] = value
            torch.div(column.sub(value), diagonal[local], out=errors[local])
    return errors
