"""What a method is: a baseline, and a correction after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from q2n.types.layers import LinearProblem, QuantizedLinear, Solution

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.models.adapter import DecoderBlock, ModelAdapter
    from q2n.types.statistics import Statistic


class Correction(Protocol):
    """A step after the solver that changes a quantized layer: its scales, its codes, its bias."""

    @property
    def requires(self) -> frozenset[Statistic]: ...

    @property
    def heldout(self) -> int:
        """Held-out sequences it asks for; 0: it looks at none."""
        ...

    def bind(self, baseline: Baseline) -> Correction:
        """The correction as it follows ``baseline``: itself, unless its definition depends on the method.

        Raises:
            UnsupportedError: the correction is not defined after this baseline.
        """
        ...

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear: ...


Quantize = Callable[[LinearProblem], QuantizedLinear]


class Baseline(Protocol):
    """A quantization method. :class:`q2n.baselines.base.LayerwiseBaseline` has defaults for all but one."""

    @property
    def code_bits(self) -> int | float:
        """Average bits of a weight's code: the ``bits`` of a cell's label and column."""
        ...

    @property
    def columns_per_scale(self) -> int:
        """The ``group_size`` of a cell; -1: scales belong to whole rows or to the matrix."""
        ...

    @property
    def no_groups(self) -> str:
        """Why a group size does not apply (``one scale per tensor``); empty: it does."""
        ...

    @property
    def stacks_rows(self) -> bool:
        """Whether rows are independent, so that layers sharing an input are solved as one problem."""
        ...

    @property
    def requires(self) -> frozenset[Statistic]:
        """Statistics the solver needs of every linear layer's input."""
        ...

    @property
    def rewrite_fields(self) -> tuple[str, ...] | None:
        """Fields that decide what :meth:`rewrite` and :meth:`prepare_block` make of a model: cells that agree
        in them may share its statistics. Empty: they do nothing; None: any field may matter."""
        ...

    @property
    def prepares_blocks(self) -> bool:
        """Whether :meth:`prepare_block` does anything."""
        ...

    def check(self, adapter: ModelAdapter) -> None:
        """Raise :class:`UnsupportedError` if the model does not fit, before any calibration."""
        ...

    def rewrite(self, adapter: ModelAdapter) -> None:
        """Function-preserving rewrite of the whole model before calibration (rotations)."""
        ...

    def prepare_block(self, block: DecoderBlock, inputs: Sequence[Tensor]) -> None:
        """Function-preserving rewrite of one block before its layers are solved (scale migration)."""
        ...

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """The solver: the problem in the method's number format, in the basis it is given in."""
        ...

    def solve(
        self, problem: LinearProblem, correction: Correction, quantize: Quantize | None = None
    ) -> Solution:
        """Quantize, apply ``correction`` in the basis the solver worked in, and return to the layer's own.

        ``quantize`` stands in for :meth:`quantize` where its result may be known already.
        """
        ...

    def finish(self, adapter: ModelAdapter) -> None:
        """Switch on what must not be in force during calibration (activation quantizers)."""
        ...
