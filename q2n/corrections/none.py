"""``q2n=off``: the solver's result as it is, bit for bit."""

from __future__ import annotations

from q2n.options import option
from q2n.types import LinearProblem, QuantizedLinear, Statistic


@option
class NoCorrection:
    """Changes nothing and measures nothing."""

    @property
    def requires(self) -> frozenset[Statistic]:
        return frozenset()

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        return quantized
