"""``q2n=off``: the solver's result, bit for bit."""

from __future__ import annotations

from q2n.corrections.base import RowwiseCorrection
from q2n.options import option
from q2n.types import LinearProblem, QuantizedLinear


@option
class NoCorrection(RowwiseCorrection):
    """Changes nothing and needs no statistics."""

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        """Return ``quantized`` itself."""
        return quantized
