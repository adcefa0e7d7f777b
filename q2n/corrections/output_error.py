"""The layer's output error as a function of row scales: what is minimised, and what choices are judged by.

For one row, ``E = W - Q`` and ``Q`` the part that is scaled, the error of ``Q_K + alpha Q`` is

    ||(E - (alpha - 1) Q) X||^2 = E H E^T - 2 (alpha - 1) E H Q^T + (alpha - 1)^2 Q H Q^T

with the Gram matrix ``H`` of the inputs. The two products that ``alpha`` needs are all that is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from q2n.corrections.base import scaled_part
from q2n.linalg.dense import quadratic_rows, require_finite, row_parts
from q2n.types import LinearProblem, QuantizedLinear, Statistic, Statistics

ROUND_OFF = torch.finfo(torch.float32).eps


def output_energy(problem: LinearProblem, quantized: QuantizedLinear, stats: Statistics) -> Tensor:
    """``||W_r X||^2`` of every row in the Gram matrix' normalisation, ``(R,)`` float64; computed once."""

    def compute() -> Tensor:
        return quadratic_rows(problem.weight, stats.output_form)

    return quantized.recall(("output energy", stats is problem.stats.heldout), (stats.output_form,), compute)


def output_errors(problem: LinearProblem, quantized: QuantizedLinear, stats: Statistics) -> Tensor:
    """``||(W_r - Q_r) X - b_r||^2`` of every row, likewise.

    Of a layer that is another one with scaled rows it follows from that one's products.
    """
    scaling = quantized.scaling
    if scaling is not None and quantized.bias is None:
        base = scaling.base
        change = _products(problem, base, stats).change(scaling.alpha.double())
        return (output_errors(problem, base, stats) + change).clamp(min=0)

    def some(rows: slice) -> Tensor:
        error = problem.weight[rows] - quantized.weight_rows(rows)
        squared = quadratic_rows(error, stats.output_form)
        if quantized.bias is None:
            return squared
        bias, shift = quantized.bias[rows].double(), error.double() @ stats[Statistic.MEAN].double()
        change = 2 * stats.tokens / stats.sequences * bias * (bias - 2 * shift)
        # The bias may take away all there is, and float32 sums know no more of that than their round-off.
        return (squared + change).clamp(min=0)

    return _remembered("output errors", problem, quantized, stats, some)


@dataclass(frozen=True)
class RowProducts:
    """``cross = E H Q^T`` and ``energy = Q H Q^T`` of every row, ``(R,)`` float64.

    ``floor`` is what float32 round-off can make of ``energy``: below it nothing is known of the row.
    """

    cross: Tensor
    energy: Tensor
    floor: Tensor

    def scale(self, lam: float = 0.0) -> Tensor:
        """The minimiser of the output error plus ``lam (alpha - 1)^2 Q H Q^T``; ``(R,)``."""
        return 1 + self.cross / ((1 + lam) * self.energy + self.floor)

    def change(self, alpha: Tensor) -> Tensor:
        """Output error of every row with ``alpha``, less that with one; ``(R,)``."""
        step = alpha - 1
        return step * (step * self.energy - 2 * self.cross)


def row_products(problem: LinearProblem, quantized: QuantizedLinear, stats: Statistics) -> RowProducts:
    """The products of a layer without bias on the inputs ``stats`` are of.

    Raises:
        NumericalError: an input is not finite, or a product overflows.
    """
    products = _products(problem, quantized, stats)
    require_finite(
        products.cross,
        "output error of the rows (weight, quantized weight or Gram matrix, or a product exceeds float32)",
    )
    require_finite(
        products.energy,
        "output energy of the quantized rows (quantized weight or Gram matrix, or a product exceeds float32)",
    )
    bound = magnitudes(scaled_part(quantized), stats.gram).sum(dim=1, dtype=torch.float64).square()
    return replace(products, floor=ROUND_OFF * bound + torch.finfo(torch.float64).tiny)


def _products(problem: LinearProblem, quantized: QuantizedLinear, stats: Statistics) -> RowProducts:
    """:func:`row_products` with a floor of nothing.

    ``E H Q^T`` follows from three squares, ``||W X||^2 = ||E X||^2 + 2 E H Q^T + ||Q X||^2`` with
    ``W = E + Q``; the record needs the first two anyway.
    """
    form, kept = stats.output_form, quantized.kept

    def scaled(rows: slice) -> Tensor:
        weight = quantized.weight_rows(rows)
        return weight if kept is None else weight.masked_fill(kept, 0)

    def remainder(rows: slice) -> Tensor:
        return problem.weight[rows] - quantized.weight_rows(rows) + scaled(rows)

    def energies(part: Callable[[slice], Tensor]) -> Callable[[slice], Tensor]:
        return lambda rows: quadratic_rows(part(rows), form)

    errors = output_errors(problem, quantized, stats)
    if kept is None:
        whole = output_energy(problem, quantized, stats)
    else:
        whole = _remembered("scaled output", problem, quantized, stats, energies(remainder))
    energy = _remembered("scaled energy", problem, quantized, stats, energies(scaled))
    return RowProducts((whole - errors - energy) / 2, energy.clamp(min=0), torch.zeros_like(energy))


def _remembered(
    what: str,
    problem: LinearProblem,
    quantized: QuantizedLinear,
    stats: Statistics,
    some: Callable[[slice], Tensor],
) -> Tensor:
    """``some(rows)`` of all rows, some at a time, computed once."""

    def compute() -> Tensor:
        return torch.cat([some(rows) for rows in row_parts(problem.weight)])

    return quantized.recall((what, stats is problem.stats.heldout), (stats.output_form,), compute)


def magnitudes(scaled: Tensor, gram: Tensor) -> Tensor:
    """``|Q_rc| sqrt(H_cc)`` ``(R, C)``: by Cauchy and Schwarz, ``|Q| |H| |Q|^T`` of a row is at most the
    square of its sum."""
    return scaled.abs() * gram.diagonal().clamp(min=0).sqrt().to(scaled.dtype)
