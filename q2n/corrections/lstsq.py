"""Least-squares scale per row: the row scale of least output error on the calibration inputs.

    alpha_r = argmin ||(W_r - alpha Q_r) X||^2 = <W_r H, Q_r> / <Q_r H, Q_r>

``alpha`` follows from the Gram matrix alone, without a null space or a threshold (docs/method.md).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from q2n.corrections.base import RowwiseCorrection, free_rows
from q2n.options import option
from q2n.types import LinearProblem, QuantizedLinear, Statistic


@option
class LeastSquaresScale(RowwiseCorrection):
    """Scales every row by the factor of least output error.

    FP16 outlier columns are not scaled; their error counts.

    Attributes:
        lam: weight of the penalty that keeps scales near one, relative to the row's output energy: the step
            to the optimum is divided by ``1 + lam``.
        damping: fraction of the mean diagonal added to the Gram matrix, so that the error of the weights
            counts in addition to that of the outputs.
        skip: patterns of the names of skipped layers.
    """

    lam: Annotated[float, Field(ge=0)] = 0.0
    damping: Annotated[float, Field(ge=0)] = 0.0
    skip: list[str] = Field(default_factory=list)
    requires: ClassVar[frozenset[Statistic]] = frozenset({Statistic.GRAM})

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        """Fold the least-squares scale of each row into the scales of the format.

        Raises:
            NumericalError: an input is not finite, or a product overflows.
        """
        from q2n.corrections.output_error import row_products

        free = free_rows(problem, self.skip)
        if free is None:
            return quantized
        stats = problem.stats.damped(self.damping) if self.damping else problem.stats
        products = row_products(problem, quantized, stats)
        return quantized.scaled_rows(products.scale(self.lam).masked_fill(~free, 1))
