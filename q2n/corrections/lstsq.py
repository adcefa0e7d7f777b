"""The row scale that minimises the layer's output error: the best any factor a row can do on its inputs.

    alpha_r = argmin ||(W_r - alpha Q_r) X||^2 = <W_r H, Q_r> / <Q_r H, Q_r>

from the Gram matrix alone, without a null space or a threshold (docs/method.md).
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from q2n.corrections.base import RowwiseCorrection, free_rows
from q2n.options import option
from q2n.types import LinearProblem, QuantizedLinear, Statistic


@option
class LeastSquaresScale(RowwiseCorrection):
    """``lam`` holds scales near one, in units of the row's own output energy (the step to the optimum is
    divided by ``1 + lam``); ``damping`` adds that fraction of the mean diagonal to the Gram matrix, so that
    the error of the weights counts beside that of the outputs. ``skip`` lists patterns of layer names that
    are left alone. Columns kept in full precision stay as they are; their error counts.
    """

    lam: Annotated[float, Field(ge=0)] = 0.0
    damping: Annotated[float, Field(ge=0)] = 0.0
    skip: list[str] = Field(default_factory=list)
    requires: ClassVar[frozenset[Statistic]] = frozenset({Statistic.GRAM})

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        from q2n.corrections.output_error import row_products

        free = free_rows(problem, self.skip)
        if free is None:
            return quantized
        stats = problem.stats.damped(self.damping) if self.damping else problem.stats
        products = row_products(problem, quantized, stats)
        return quantized.scaled_rows(products.scale(self.lam).masked_fill(~free, 1))
