"""LDLQ rounding (QuIP, arXiv 2307.13304): linear feedback of the rounding errors, last column first.

With ``H = L D L^T``, ``L`` unit lower triangular, column ``i`` is rounded to the grid's nearest level of
``w_i + sum_{j>i} (w_j - q_j) L_ji``. That is optimal brain surgeon in reversed column order, without the
inverse of ``H``, and both run through the one loop :func:`~q2n.quantization.solvers.reference.column_loop`.
Greedy passes are coordinate descent on the same proxy loss ``tr((Q - W) H (Q - W)^T)``, and run through
the same loop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from q2n.exceptions import NumericalError, UnsupportedError
from q2n.linalg.dense import alive, lower_factor, require_finite
from q2n.quantization.formats.base import (
    ColumnEncoder,
    ColumnRounder,
    FormatSpec,
    SolverView,
    StripRounder,
    UnboundedEncoder,
    strip_rounder,
)
from q2n.quantization.solvers.obs import sweep_columns
from q2n.quantization.solvers.reference import BLOCK
from q2n.types import LinearProblem, QuantizedLinear


@torch.no_grad()
def solve_ldlq(
    problem: LinearProblem,
    grid: FormatSpec,
    hessian: Tensor,
    npasses: int = 0,
    target: Tensor | None = None,
) -> QuantizedLinear:
    """Quantize a layer by LDLQ and ``npasses`` greedy passes.

    Args:
        problem: weight ``(R, C)``, to which the grid is fitted.
        grid: number format of the columns. Groups are fitted on the original weight: unlike OBS' buffer,
            the buffer here holds only a part of the feedback and estimates nothing.
        hessian: ``(C, C)`` symmetric positive definite, used as given: the caller conditions it.
        npasses: coordinate-descent passes after the first rounding; a pass that changes nothing is the last.
        target: ``(R, C)``, the weight to be approximated, or None if it is the problem's.

    Raises:
        NumericalError: the Hessian is not finite or not positive definite; a weight or an intermediate result
            is not finite.
        UnsupportedError: greedy passes on a grid whose levels cannot be continued without end.
    """
    require_finite(problem.weight, "weight to be rounded")
    columns = problem.weight.shape[1]
    order = torch.arange(columns - 1, -1, -1, device=problem.weight.device)
    hessian, _ = alive(hessian)  # if all inputs are zero, the mean diagonal is zero and damping has no effect
    require_finite(hessian, "Hessian")
    lower = lower_factor(hessian.double())
    if lower is None:
        raise NumericalError(f"Hessian ({columns} columns) is not positive definite; raise baseline.percdamp")
    unit = (lower / lower.diagonal()).to(problem.weight)
    untouched = problem.weight.T.contiguous().flip(0)
    aim = untouched if target is None else target.T.contiguous().flip(0)
    none = torch.zeros(columns, dtype=torch.bool, device=order.device)
    encoder = grid.encoder(SolverView(untouched.T, order, none, 1 / lower.diagonal().flip(0).to(untouched)))
    if npasses and not isinstance(encoder, UnboundedEncoder):
        raise UnsupportedError(
            f"greedy passes need a grid of evenly spaced levels, which {type(grid).__name__} is not: "
            "set npasses to 0"
        )
    values = torch.empty_like(aim)
    sweep_columns(aim.clone(), unit.flip(0, 1), _Recorder(encoder, values, aim), columns, target=aim)
    done = 0
    if isinstance(encoder, UnboundedEncoder):
        done = _greedy(aim, hessian.flip(0, 1).to(aim), encoder, values, npasses)
    return QuantizedLinear(
        format=encoder.finish(aim),
        original=problem.weight,
        compensated=problem.weight,
        order=order,
        diagnostics={"greedy_passes": done},
    )


def _greedy(aim: Tensor, hessian: Tensor, encoder: UnboundedEncoder, values: Tensor, npasses: int) -> int:
    """Run coordinate descent over all columns in turn and return the number of passes.

    ``aim``, ``values`` ``(C, R)`` and ``hessian`` are in solver order. Column ``i`` becomes the level nearest
    to ``w_i - sum_{j != i} (q_j - w_j) H_ji / H_ii``, on the grid continued without end: QuIP's official code
    clips to the grid only after a whole pass.
    """
    push = hessian / hessian.diagonal()
    for done in range(npasses):
        previous, values = values, torch.empty_like(values)
        start = _without_later(aim, push, previous - aim)
        sweep_columns(start, push, _Continuer(encoder, values), len(values), target=aim)
        if torch.equal(values, previous):
            return done + 1
    return npasses


def _without_later(aim: Tensor, push: Tensor, errors: Tensor) -> Tensor:
    """Compute ``aim_i - sum_{j > i} errors_j push_ji``, the effect on each column of the columns after it.

    The loop itself subtracts the effect of the columns before it.
    """
    start = aim.clone()
    for first in range(0, len(aim), BLOCK):
        last = min(first + BLOCK, len(aim))
        later = push[first:, first:last].tril(-1)
        start[first:last].addmm_(later.T, errors[first:], alpha=-1)
    return start


@dataclass(frozen=True)
class _Recorder(ColumnRounder):
    """Rounder that stores the rounded ``values`` ``(C, R)``; groups are fitted on ``source`` ``(C, R)``."""

    encoder: ColumnEncoder
    values: Tensor
    source: Tensor

    def enter(self, position: int, buffer: Tensor) -> None:
        self.encoder.enter(position, self.source)

    def encode(self, position: int, column: Tensor) -> Tensor:
        return self.values[position].copy_(self.encoder.encode(position, column))

    def strips(self) -> StripRounder | None:
        return _recording(strip_rounder(self.encoder), self.values, continued=False)


@dataclass(frozen=True)
class _Continuer(ColumnRounder):
    """Rounder to the grid continued without end; stores codes and ``values`` of the grid itself."""

    encoder: UnboundedEncoder
    values: Tensor

    def enter(self, position: int, buffer: Tensor) -> None:
        """Do nothing: a greedy pass keeps the parameters of the first rounding."""

    def encode(self, position: int, column: Tensor) -> Tensor:
        continued = self.encoder.snap(position, column)
        self.values[position] = self.encoder.encode(position, continued)
        return continued

    def strips(self) -> StripRounder | None:
        return _recording(strip_rounder(self.encoder), self.values, continued=True)


def _recording(rounder: StripRounder | None, values: Tensor, continued: bool) -> StripRounder | None:
    if rounder is None:
        return None
    return lambda strip: rounder(replace(strip, values=values[strip.columns], continued=continued))
