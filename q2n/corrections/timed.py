"""How long a correction takes, apart from the solver that calls it."""

from __future__ import annotations

import time

from q2n.exceptions import NumericalError
from q2n.linalg.dense import require_finite
from q2n.runtime.clock import timed
from q2n.types import Baseline, Correction, LinearProblem, QuantizedLinear, Statistic


class TimedCorrection:
    """A correction with a stopwatch."""

    def __init__(self, inner: Correction) -> None:
        self._inner = inner
        self.seconds = 0.0

    @property
    def requires(self) -> frozenset[Statistic]:
        return self._inner.requires

    @property
    def heldout(self) -> int:
        return self._inner.heldout

    def bind(self, baseline: Baseline) -> Correction:
        return self._inner.bind(baseline)

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        """Correct, and add the time to :attr:`seconds`.

        Raises:
            NumericalError: a number is not finite; where it was one of the solver's already, says so.
        """
        began = time.perf_counter()
        with timed("correct"):
            try:
                result = self._inner.correct(problem, quantized)
            except NumericalError:
                require_finite(quantized.weight, "quantized weight before the correction")
                raise
        self.seconds += time.perf_counter() - began
        return result
