"""An output bias for the error that inputs have on average: ``b = (W - Q) m`` with the mean input ``m``.

It minimises ``||(W - Q) X - b 1^T||^2`` over ``b``: what is left is the error that the inputs' covariance
makes in place of their second moment.
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
    """``layers='all'`` gives every layer a bias, 16 bits an output where the architecture has none;
    ``'biased'`` uses only those that have one, at no cost. ``skip`` lists patterns of layer names that are
    left alone."""

    layers: Literal["all", "biased"] = "all"
    skip: list[str] = Field(default_factory=list)
    requires: ClassVar[frozenset[Statistic]] = frozenset({Statistic.GRAM, Statistic.MEAN})

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        """Give the layer a bias.

        Raises:
            NumericalError: an input is not finite.
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
