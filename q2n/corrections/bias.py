"""Output bias that removes the mean output error: ``b = (W - Q) m`` with the mean input ``m``.

``b`` minimises ``||(W - Q) X - b 1^T||^2``. The remaining error depends on the covariance of the inputs
instead of their second moment.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from q2n.corrections.base import RowwiseCorrection, free_rows
from q2n.options import option
from q2n.types import LinearProblem, QuantizedLinear, Statistic


@option
class OutputBias(RowwiseCorrection):
    """Adds the output bias to a layer.

    Attributes:
        layers: ``'all'``: every layer gets a bias, at 16 bits per output where the architecture has none;
            ``'biased'``: only layers that have a bias, at no storage.
        skip: patterns of the names of skipped layers.
    """

    layers: Literal["all", "biased"] = "all"
    skip: list[str] = Field(default_factory=list)
    requires: ClassVar[frozenset[Statistic]] = frozenset({Statistic.GRAM, Statistic.MEAN})

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        """Return the layer with its output bias ``(R,)`` float32, 0 for skipped layers.

        Raises:
            NumericalError: a weight or the mean input is not finite.
        """
        from q2n.linalg.dense import require_finite

        left_alone = [
            name
            for index, name in enumerate(problem.names)
            if self.layers == "biased" and not problem.has_bias(index)
        ]
        free = free_rows(problem, [*self.skip, *left_alone])
        if free is None:
            return quantized
        error, mean = quantized.original - quantized.weight, problem.stats[Statistic.MEAN]
        bias = error.double() @ mean.double()
        require_finite(bias, "mean output error (weight, quantized weight or mean input)")
        return replace(quantized, bias=bias.masked_fill(~free, 0).float())
