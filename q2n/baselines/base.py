"""Defaults of a baseline that works layer by layer: such a method is one ``quantize`` method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from q2n.types import Correction, LinearProblem, QuantizedLinear, Solution, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.models.adapter import DecoderBlock, ModelAdapter


class LayerwiseBaseline(ABC):
    """A method whose solver works in the layer's own basis and needs no rewrite of the model."""

    stacks_rows: ClassVar[bool] = True

    @property
    def requires(self) -> frozenset[Statistic]:
        return frozenset({Statistic.GRAM})

    def check(self, adapter: ModelAdapter) -> None:
        """Every model fits."""

    def rewrite(self, adapter: ModelAdapter) -> None:
        """Nothing to rewrite."""

    def prepare_block(self, block: DecoderBlock, inputs: Sequence[Tensor]) -> None:
        """Nothing to prepare."""

    def finish(self, adapter: ModelAdapter) -> None:
        """Nothing to switch on."""

    @abstractmethod
    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """The layer in the method's number format."""

    def solve(self, problem: LinearProblem, correction: Correction) -> Solution:
        base = self.quantize(problem)
        return Solution(base, correction.correct(problem, base))
