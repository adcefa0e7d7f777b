"""Requantize after projection: round Q2N's target to the existing levels while the output error falls.

``B = W - (W - Q) P`` is not representable. Rounding ``B`` to the levels of ``Q`` changes the codes, hence the
error and the target. Each round keeps only the rows whose output error fell.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from q2n.corrections.base import RowwiseCorrection, free_rows
from q2n.corrections.nullspace.rank import RankFields
from q2n.options import option
from q2n.types import Format, LinearProblem, QuantizedLinear, Statistic

if TYPE_CHECKING:
    from torch import Tensor


@option
class RequantizeProjected(RankFields, RowwiseCorrection):
    """Rounds Q2N's target again; the null space is set by :class:`RankFields`.

    Attributes:
        rounds: largest number of rounds.
        skip: patterns of the names of skipped layers.
    """

    rounds: Annotated[int, Field(ge=1, le=1000)] = 10
    skip: list[str] = Field(default_factory=lambda: ["*down_proj"])
    requires: ClassVar[frozenset[Statistic]] = frozenset({Statistic.GRAM})

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        """Return the layer with new codes; the record notes the rounds and the share of changed weights.

        Raises:
            NumericalError: the Gram matrix or the output error of a row is not finite.
            UnsupportedError: the format cannot round another weight.
        """
        free = free_rows(problem, self.skip)
        if free is None:
            return quantized
        spectrum = problem.stats.spectrum(Statistic.GRAM)
        rank = self.rule.of_whole(spectrum.values.clamp(min=0))
        basis = spectrum.vectors[:, :rank].to(quantized.weight)
        form, rounds = rounded_towards(problem, quantized, basis, free, self.rounds)
        result = quantized.with_format(form, null_rank=len(spectrum.values) - rank)
        changed = (result.weight != quantized.weight).double().mean(dim=1).split(list(problem.rows))
        notes = [{"rounds": float(rounds), "changed": float(part.mean())} for part in changed]
        return result.with_format(form, notes=notes)


def rounded_towards(
    problem: LinearProblem, quantized: QuantizedLinear, basis: Tensor, free: Tensor, rounds: int
) -> tuple[Format, int]:
    """Return the format after the last round in which the output error of a row fell, and the rounds tried.

    Args:
        problem: layers with ``W`` and the Gram matrix.
        quantized: the solver's result, ``Q``.
        basis: ``V`` ``(C, k)``, orthonormal basis of the input subspace; the target is ``Q + (W - Q) V V^T``.
        free: ``(R,)`` bool, rows that may change.
        rounds: largest number of rounds.

    Raises:
        NumericalError: the output error of a row is not finite.
    """
    from q2n.corrections.output_error import output_errors
    from q2n.linalg.dense import quadratic_rows, require_finite
    from q2n.quantization.formats.base import requantized

    form, weight, wanted, gram = quantized.format, quantized.weight, problem.weight, problem.stats.gram
    least = output_errors(problem, quantized, problem.stats)
    require_finite(
        least,
        "output error of the rows (weight, quantized weight or Gram matrix, or a product exceeds float32)",
    )
    for tried in range(1, rounds + 1):
        target = weight + ((wanted - weight) @ basis) @ basis.T
        rounded = requantized(form, target).dequantize()
        errors = quadratic_rows(wanted - rounded, gram)
        better = free & (errors < least)
        if not bool(better.any()):
            return form, tried
        form = requantized(form, rounded.where(better[:, None], weight))
        weight, least = form.dequantize(), errors.where(better, least)
    return form, rounds
