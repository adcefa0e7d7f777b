"""Per-group scales: the scales that are stored anyway are refitted, the codes stay.

Each row is a small linear system; all rows are solved at once (docs/method.md). A format without groups
(per-channel scales, codebooks, per-tensor scales) counts as one group per row. The correction is then the row
scale of :mod:`q2n.corrections.lstsq` or :mod:`q2n.corrections.null_space`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from q2n.corrections.base import RowwiseCorrection, free_rows, scaled_part
from q2n.corrections.nullspace.rank import RankFields, RuleName
from q2n.options import ReadIf, option
from q2n.types import LinearProblem, QuantizedLinear, Statistic

if TYPE_CHECKING:
    from torch import Tensor


@option
class GroupwiseScale(RankFields, RowwiseCorrection):
    """Refits the scale of every group of every row.

    Attributes:
        objective: ``'output'`` minimises the output error ``||(W - Q(s)) X||^2`` over the scales ``s`` of
            each row; ``'q2n'`` minimises ``||B - Q(s)||^2``, where ``B`` is the original weight in the input
            subspace and the quantized weight in the null space (:class:`RankFields`).
        lam: weight of the penalty that keeps scales near one, relative to the group's diagonal entry of the
            objective.
        rank_rule: rule of the rank of the input subspace.
        skip: patterns of the names of skipped layers.
    """

    objective: Literal["output", "q2n"] = "output"
    lam: Annotated[float, Field(ge=0)] = 0.01
    rank_rule: Annotated[RuleName, ReadIf(objective="q2n")] = "prefix_suffix"
    skip: list[str] = Field(default_factory=list)
    requires: ClassVar[frozenset[Statistic]] = frozenset({Statistic.GRAM})

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        """Scale every group of the quantized weight; the diagnostic ``alpha`` is ``(R, G)``.

        Raises:
            NumericalError: a product or a scale is not finite.
        """
        from q2n.linalg.dense import require_finite
        from q2n.quantization.formats.base import scale_groups

        free = free_rows(problem, self.skip)
        if free is None:
            return quantized
        factor, noted = self._factors(problem, quantized)
        require_finite(factor, "group scale alpha (the weight, or a product exceeds float32)")
        factor = factor.masked_fill(~free[:, None], 1)
        return quantized.with_format(scale_groups(quantized.format, factor), alpha=factor, **noted)

    def _factors(self, problem: LinearProblem, quantized: QuantizedLinear) -> tuple[Tensor, dict[str, int]]:
        """Return the factors of the scales, ``(R, G)``, and the diagnostics that go with them."""
        from q2n.corrections.group_systems import null_space_factors, output_factors
        from q2n.quantization.formats.base import scale_count, scale_index

        form = quantized.format
        error, scaled = quantized.original - quantized.weight, scaled_part(quantized)
        index, count = scale_index(form), scale_count(form)
        if self.objective == "output":
            return output_factors(error, scaled, index, count, problem.stats.gram, self.lam), {}
        spectrum = problem.stats.spectrum(Statistic.GRAM)
        rank = self.rule.of_whole(spectrum.values.clamp(min=0))
        basis = spectrum.vectors[:, :rank]
        noted = {"null_rank": len(spectrum.values) - rank}
        return null_space_factors(error, scaled, index, count, basis, self.lam), noted
