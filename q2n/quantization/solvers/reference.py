"""GPTQ on one layer as the paper states it (arXiv 2210.17323, algorithm 1), in plain torch.

``H^{-1} = U^T U`` with ``U`` upper triangular. Column ``j`` is rounded and the error ``e_j = (w_j - q_j) /
U_jj`` is pushed onto the columns still to come, ``W[:, k] -= e_j U_jk``. The number format, the column order
and the number of FP16 outlier columns are arguments.

This is the definition of the method, and the loop that runs where there is no kernel. Tests compare the
compiled loop of :mod:`q2n.quantization.solvers.obs` with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from q2n.linalg.dense import alive, damped_inverse_factor, require_finite
from q2n.quantization.formats.base import ColumnRounder, FormatSpec, SolverView
from q2n.types import LinearProblem, QuantizedLinear

BLOCK = 128
"""Columns between two updates of the whole buffer: part of the definition, since a group that begins inside
a block is fitted on the buffer as it was when the block began (GPTQ's official code)."""

LOOKBACK = 32
"""Columns between two matrix products inside a block: affects speed and the order of sums only."""

ColumnLoop = Callable[[Tensor, Tensor, ColumnRounder, int], float]
"""Function with the arguments and the result of :func:`column_loop`."""

BlockRounder = Callable[[Tensor, Tensor, ColumnRounder, slice, Tensor | None], Tensor]
"""Function with the arguments and the result of :func:`round_block`."""


@torch.no_grad()
def solve(
    problem: LinearProblem,
    grid: FormatSpec,
    damping: Sequence[float],
    order: Tensor | None = None,
    kept: int = 0,
    loop: ColumnLoop | None = None,
) -> QuantizedLinear:
    """Quantize a layer with error compensation.

    Args:
        problem: weight ``(R, C)`` and Gram statistic, which is the Hessian.
        grid: number format of the columns.
        damping: schedule of fractions of the mean Hessian diagonal (first that factorises is used).
        order: ``(C,)`` column order to work in, or None if it is the layer's own.
        kept: number of FP16 outlier columns, the last of ``order``: they are compensated but not rounded.
        loop: column loop, or None if it is :func:`column_loop`.

    Raises:
        NumericalError: the Hessian cannot be factorised with any damping of the schedule; a weight or an
            intermediate result is not finite.
    """
    require_finite(problem.weight, "weight to be rounded")
    untouched, hessian = problem.weight.T.contiguous(), problem.stats.gram
    if order is not None:
        untouched, hessian = untouched[order], hessian[order][:, order]
    hessian, dead = alive(hessian)
    factor = damped_inverse_factor(hessian, damping)
    positions = torch.arange(len(untouched), device=untouched.device)
    natural = positions if order is None else order
    encoder = grid.encoder(SolverView(untouched.T, natural, dead, factor.upper.diagonal(), kept))
    buffer = untouched.masked_fill(dead[:, None], 0)
    rounded = len(buffer) - kept
    loss = (loop or column_loop)(buffer, factor.upper, encoder, rounded)
    require_finite(buffer[rounded:], "columns kept in full precision")
    place = positions if order is None else torch.argsort(order)
    return QuantizedLinear(
        format=encoder.finish(buffer),
        original=problem.weight,
        compensated=(buffer if order is None else buffer[place]).T,
        order=natural,
        kept=place >= rounded if kept else None,
        diagnostics={"damping": factor.damping, "loss": loss, "dead_columns": int(dead.sum())},
    )


def activation_order(gram: Tensor) -> Tensor:
    """Return the columns by descending Hessian diagonal (act-order), ``(C,)``.

    A dead column is sorted by the diagonal 1 it gets before factorisation, as in GPTQ's official code.
    """
    diagonal = gram.diagonal()
    return torch.argsort(torch.where(diagonal == 0, 1.0, diagonal), descending=True)


def round_block(
    buffer: Tensor, push: Tensor, encoder: ColumnRounder, block: slice, target: Tensor | None
) -> Tensor:
    """Round the columns of ``block`` one by one, without a change of ``buffer``; returns errors ``(B, R)``.

    Arguments as in :func:`column_loop`.
    """
    errors = torch.empty_like(buffer[block])
    for done, position in enumerate(range(block.start, block.stop)):
        if done % LOOKBACK == 0:
            near, strip = position, buffer[position : min(position + LOOKBACK, block.stop)]
            before = push[block.start : near, near : near + len(strip)]
            strip = strip.addmm(before.T, errors[:done], alpha=-1)
        encoder.enter(position, buffer)
        last = errors[near - block.start : done]
        column = strip[position - near].addmv_(last.T, push[near:position, position], alpha=-1)
        value = encoder.encode(position, column)
        if target is None:
            errors[done] = (column - value) / push[position, position]
        else:
            errors[done] = value - target[position]
    return errors


def column_loop(
    buffer: Tensor,
    push: Tensor,
    encoder: ColumnRounder,
    stop: int,
    target: Tensor | None = None,
    round_block: BlockRounder = round_block,
) -> float:
    """Round columns ``0 .. stop-1`` of ``buffer``; returns half the squared norm of the pushed errors.

    ``buffer`` ``(C, R)`` is modified: column ``j`` ends as it was when the solver entered its block, and
    columns from ``stop`` on end with all errors pushed onto them. Rows of ``buffer`` are columns of the
    weight, so that every operation of the loop reads and writes contiguous memory.

    Column ``k`` loses ``sum_{j<k} e_j push_jk``; only the strictly upper part of ``push`` ``(C, C)`` is read.
    By default ``e_j = (w_j - q_j) / push_jj`` with ``w_j`` the column as it was rounded (optimal brain
    surgeon). With ``target`` ``(C, R)`` it is ``e_j = q_j - target_j``: LDLQ's feedback, where ``target`` is
    the weight, and coordinate descent, where it is the previous rounding.

    Raises:
        NumericalError: an error is not finite. Every error depends on the column itself, its scale and all
            columns before it, so if all errors are finite, so are the rounded values.
    """
    loss = 0.0
    for start in range(0, stop, BLOCK):
        end = min(start + BLOCK, stop)
        errors = round_block(buffer, push, encoder, slice(start, end), target)
        norm = float(torch.linalg.vector_norm(errors))
        if not math.isfinite(norm):
            require_finite(errors, "rounding errors (the weights, or what is pushed onto them, overflow)")
            norm = float(torch.linalg.vector_norm(errors, dtype=torch.float64))  # only the squares overflow
        loss += norm**2 / 2
        if end < len(buffer):
            buffer[end:].addmm_(push[start:end, end:].T, errors, alpha=-1)
    return loss
