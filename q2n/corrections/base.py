"""Defaults of a correction."""

from __future__ import annotations

from abc import ABC, abstractmethod

from q2n.types import Baseline, Correction, LinearProblem, QuantizedLinear, Statistic


class RowwiseCorrection(ABC):
    """A correction that is the same after every baseline and measures nothing of its own."""

    @property
    def requires(self) -> frozenset[Statistic]:
        return frozenset()

    @property
    def heldout(self) -> int:
        return 0

    def bind(self, baseline: Baseline) -> Correction:
        return self

    @abstractmethod
    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear: ...
