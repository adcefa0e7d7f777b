"""Optimal-brain-surgeon rounding, column by column (GPTQ, arXiv 2210.17323): the ONE column loop.

``H^{-1} = U^T U`` with ``U`` upper triangular. Column ``j`` is rounded and the error ``e_j = (w_j - q_j) /
U_jj`` is pushed onto the columns still to come, ``W[:, k] -= e_j U_jk``. A format is an argument
(:class:`~q2n.quantization.formats.base.FormatSpec`), a column order is an argument, kept columns are an
argument.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from q2n.linalg.dense import damped_inverse_factor, require_finite
from q2n.linalg.kernels import usable
from q2n.quantization.formats.base import (
    ColumnRounder,
    FormatSpec,
    SolverView,
    Strip,
    StripRounder,
    strip_rounder,
)
from q2n.types import LinearProblem, QuantizedLinear

BLOCK = 128
"""Columns between two updates of the whole buffer: part of the definition, since a group that begins inside
a block is fitted on the buffer as it was when the block began (upstream GPTQ)."""

LOOKBACK = 32
"""Columns between two matrix products inside a block: speed only, the result does not depend on it."""


@torch.no_grad()
def solve_obs(
    problem: LinearProblem,
    grid: FormatSpec,
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
        NumericalError: the Hessian cannot be factorised with any damping of the schedule; a weight, or a
            number on the way, is not finite.
    """
    require_finite(problem.weight, "weight to be rounded")
    columns = problem.weight.shape[1]
    untouched, hessian = problem.weight.T.contiguous(), problem.stats.gram
    if order is not None:
        untouched, hessian = untouched[order], hessian[order][:, order]
    dead = hessian.diagonal() == 0
    dead_columns = int(dead.sum())
    if dead_columns:
        hessian = hessian + torch.diag(dead.to(hessian))
    factor = damped_inverse_factor(hessian, damping)
    positions = torch.arange(columns, device=untouched.device)
    view = SolverView(untouched.T, positions if order is None else order, dead, factor.upper.diagonal(), kept)
    buffer = untouched.clone()
    if dead_columns:
        buffer[dead] = 0
    encoder = grid.encoder(view)
    loss = sweep_columns(buffer, factor.upper, encoder, columns - kept)
    require_finite(buffer[columns - kept :], "columns kept in full precision")
    inverse = None if order is None else torch.argsort(order)
    return QuantizedLinear(
        format=encoder.finish(buffer),
        original=problem.weight,
        compensated=(buffer if inverse is None else buffer[inverse]).T,
        order=view.order,
        kept=(positions if inverse is None else inverse) >= columns - kept if kept else None,
        diagnostics={"damping": factor.damping, "loss": loss, "dead_columns": dead_columns},
    )


def activation_order(gram: Tensor) -> Tensor:
    """Columns by falling Hessian diagonal ("act-order"), ``(C,)``.

    A dead column counts with the diagonal 1 it gets before factorisation, as upstream GPTQ orders them.
    """
    diagonal = gram.diagonal()
    return torch.argsort(torch.where(diagonal == 0, 1.0, diagonal), descending=True)


def sweep_columns(
    buffer: Tensor, push: Tensor, encoder: ColumnRounder, stop: int, target: Tensor | None = None
) -> float:
    """Round columns ``0 .. stop-1`` of ``buffer``; returns half the summed squares of what was pushed.

    ``buffer`` ``(C, R)`` is modified: column ``j`` ends as it was when the solver entered its block, and
    columns from ``stop`` on as they are when everything has been pushed onto them. Rows of ``buffer`` are
    columns of the weight, so that every operation of the loop reads and writes contiguous memory.

    Column ``k`` loses ``sum_{j<k} e_j push_jk``; only the strictly upper part of ``push`` ``(C, C)`` is read.
    By default ``e_j = (w_j - q_j) / push_jj`` with ``w_j`` the column as it was rounded (optimal brain
    surgeon). With ``target`` ``(C, R)`` it is ``e_j = q_j - target_j``: LDLQ's feedback, where ``target`` is
    the weight, and coordinate descent, where it is the previous rounding.

    Raises:
        NumericalError: an error is not finite. Every column's depends on the column itself, its scale and all
            columns before it, so if errors are finite, what was rounded is.
    """
    loss = 0.0
    compiled = strip_rounder(encoder) if usable(buffer) else None
    rounder = compiled or partial(_round_strip, encoder)
    for start in range(0, stop, BLOCK):
        end = min(start + BLOCK, stop)
        errors = _sweep_block(buffer, push, encoder, rounder, start, end, target)
        loss += _norm(errors) ** 2 / 2
        if end < len(buffer):
            buffer[end:].addmm_(push[start:end, end:].T, errors, alpha=-1)
    return loss


def _norm(errors: Tensor) -> float:
    norm = float(torch.linalg.vector_norm(errors))
    if math.isfinite(norm):
        return norm
    require_finite(errors, "rounding errors (the weights, or what is pushed onto them, overflow)")
    return float(torch.linalg.vector_norm(errors, dtype=torch.float64))  # only their squares overflow


def _sweep_block(
    buffer: Tensor,
    push: Tensor,
    encoder: ColumnRounder,
    rounder: StripRounder,
    start: int,
    end: int,
    target: Tensor | None,
) -> Tensor:
    """Columns ``start .. end-1``; returns their errors ``(end-start, R)`` and leaves ``buffer`` as it was."""
    errors = torch.empty(end - start, buffer.shape[1], dtype=buffer.dtype, device=buffer.device)
    nothing = buffer.new_empty(0, 0)
    for near in range(start, end, LOOKBACK):
        stop, done = min(near + LOOKBACK, end), near - start
        current = buffer[near:stop].clone()
        if done:
            current.addmm_(push[start:near, near:stop].T, errors[:done], alpha=-1)
        strip = Strip(
            start=near,
            current=current,
            push=push[near:stop, near:stop].contiguous(),
            errors=errors[done : stop - start],
            diagonal=push.diagonal()[near:stop].contiguous(),
            target=nothing if target is None else target[near:stop],
            values=nothing,
        )
        for position in range(near, stop):
            encoder.enter(position, buffer)
        rounder(strip)
    return errors


def _round_strip(encoder: ColumnRounder, strip: Strip) -> None:
    """What kernels do, for any encoder and device."""
    weights, diagonal = strip.push.T.contiguous(), strip.diagonal.tolist()
    for local, (column, error) in enumerate(zip(strip.current, strip.errors, strict=True)):
        if local:
            column.addmv_(strip.errors[:local].T, weights[local, :local], alpha=-1)
        value = encoder.encode(strip.start + local, column)
        if len(strip.target):
            torch.sub(value, strip.target[local], out=error)
        else:
            torch.sub(column, value, out=error).div_(diagonal[local])
