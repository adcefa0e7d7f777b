"""Output error of a layer as a function of its row scales.

Let ``E`` be the error of a row, ``Q`` its scaled part and ``Q_K`` its FP16 outlier columns. The output error
of ``Q_K + alpha Q`` is

    ||(E - (alpha - 1) Q) X||^2 = E H E^T - 2 (alpha - 1) E H Q^T + (alpha - 1)^2 Q H Q^T

with the Gram matrix ``H`` of the inputs. Only the two products that ``alpha`` needs are kept.
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
"""Relative round-off of the Gram matrix and the products, which are in float32."""


def output_energy(problem: LinearProblem, quantized: QuantizedLinear, stats: Statistics) -> Tensor:
    """Return ``||W_r X||^2`` of every row, ``(R,)`` float64, in the Gram matrix' normalisation; cached."""

    def compute() -> Tensor:
        return quadratic_rows(problem.weight, stats.output_form)

    return quantized.recall(("output energy", stats is problem.stats.heldout), (stats.output_form,), compute)


def output_errors(problem: LinearProblem, quantized: QuantizedLinear, stats: Statistics) -> Tensor:
    """Return ``||(W_r - Q_r) X - b_r||^2`` of every row in the same normalisation, ``(R,)`` float64.

    If the layer is another layer with scaled rows, its errors follow from the products of that layer.
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
        # The bias may remove the whole error; float32 round-off can then make the difference negative.
        return (squared + change).clamp(min=0)

    return _remembered("output errors", problem, quantized, stats, some)


@dataclass(frozen=True)
class RowProducts:
    """Products of every row that its output error depends on, ``(R,)`` float64 each.

    Attributes:
        cross: ``E H Q^T``.
        energy: ``Q H Q^T``.
        floor: bound on the float32 round-off in ``energy``; a smaller energy carries no information.
    """

    cross: Tensor
    energy: Tensor
    floor: Tensor

    def scale(self, lam: float = 0.0) -> Tensor:
        """Return the minimiser of the output error plus ``lam (alpha - 1)^2 Q H Q^T``; ``(R,)``."""
        return 1 + self.cross / ((1 + lam) * self.energy + self.floor)

    def change(self, alpha: Tensor) -> Tensor:
        """Return the change of every row's output error from a scale of one to ``alpha``; ``(R,)``."""
        step = alpha - 1
        return step * (step * self.energy - 2 * self.cross)


def row_products(problem: LinearProblem, quantized: QuantizedLinear, stats: Statistics) -> RowProducts:
    """Return the products of a layer without bias on the inputs that ``stats`` were measured on.

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
    """Return :func:`row_products` with a floor of zero.

    ``E H Q^T`` follows from three squares: ``||W X||^2 = ||E X||^2 + 2 E H Q^T + ||Q X||^2`` with
    ``W = E + Q``. The record needs ``||W X||^2`` and ``||E X||^2`` anyway.
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
    """Concatenate ``some(rows)`` over parts of the rows (``(R,)``); computed once."""

    def compute() -> Tensor:
        return torch.cat([some(rows) for rows in row_parts(problem.weight)])

    return quantized.recall((what, stats is problem.stats.heldout), (stats.output_form,), compute)


def magnitudes(scaled: Tensor, gram: Tensor) -> Tensor:
    """Return ``|Q_rc| sqrt(H_cc)`` ``(R, C)``, for a bound on round-off.

    By Cauchy-Schwarz, ``|Q| |H| |Q|^T`` of a row is at most the square of the row's sum of this.
    """
    return scaled.abs() * gram.diagonal().clamp(min=0).sqrt().to(scaled.dtype)
