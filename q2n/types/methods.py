"""Protocols of a method: a baseline and the correction that follows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from q2n.types.layers import LinearProblem, QuantizedLinear, Solution

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.models.adapter import DecoderBlock, ModelAdapter
    from q2n.types.statistics import Statistic


class Correction(Protocol):
    """Step after the solver that changes the scales, codes or bias of a quantized layer."""

    @property
    def requires(self) -> frozenset[Statistic]:
        """Statistics of the layer's input that the correction needs."""
        ...

    @property
    def heldout(self) -> int:
        """Number of held-out sequences the correction needs; 0 if it uses none."""
        ...

    def bind(self, baseline: Baseline) -> Correction:
        """Return the correction after ``baseline``: itself, unless its definition depends on the baseline.

        Raises:
            UnsupportedError: the correction is not defined after this baseline.
        """
        ...

    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear:
        """Return the corrected layer; ``quantized`` is not modified.

        Raises:
            NumericalError: a number is not finite.
        """
        ...


Quantize = Callable[[LinearProblem], QuantizedLinear]
"""Solver of one problem, as :meth:`Baseline.quantize`."""


class Baseline(Protocol):
    """Quantization method.

    :class:`q2n.baselines.base.LayerwiseBaseline` has defaults for all members but :meth:`quantize`.
    """

    @property
    def code_bits(self) -> int | float:
        """Average bits per code: the ``bits`` of a cell's label and column."""
        ...

    @property
    def columns_per_scale(self) -> int:
        """Group size in columns, the ``group_size`` of a cell; -1 for per-channel or per-tensor scales."""
        ...

    @property
    def no_groups(self) -> str:
        """Reason why a group size does not apply (``one scale per tensor``); empty if it applies."""
        ...

    @property
    def stacks_rows(self) -> bool:
        """True if rows are independent, so that layers sharing an input are solved as one problem."""
        ...

    @property
    def requires(self) -> frozenset[Statistic]:
        """Statistics of every linear layer's input that the solver needs."""
        ...

    @property
    def rewrite_fields(self) -> tuple[str, ...] | None:
        """Fields that :meth:`rewrite` and :meth:`prepare_block` depend on.

        Cells that agree in these fields may share statistics. Empty if both methods do nothing, or None if
        any field may matter.
        """
        ...

    @property
    def prepares_blocks(self) -> bool:
        """True if :meth:`prepare_block` changes the model."""
        ...

    def check(self, adapter: ModelAdapter) -> None:
        """Raise :class:`UnsupportedError` if the model does not fit, before any calibration."""
        ...

    def rewrite(self, adapter: ModelAdapter) -> None:
        """Rewrite the whole model before calibration, function-preserving (rotations)."""
        ...

    def prepare_block(self, block: DecoderBlock, inputs: Sequence[Tensor]) -> None:
        """Rewrite one block before its layers are solved, function-preserving (scale migration)."""
        ...

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """Return the problem in the method's number format, in the basis of the problem: the solver."""
        ...

    def solve(
        self, problem: LinearProblem, correction: Correction, quantize: Quantize | None = None
    ) -> Solution:
        """Quantize, apply ``correction`` in the solver's basis, and return to the layer's own basis.

        Args:
            problem: layers in their own basis.
            correction: correction bound to this baseline.
            quantize: replacement of :meth:`quantize` that may have its result already.
        """
        ...

    def finish(self, adapter: ModelAdapter) -> None:
        """Switch on what calibration must run without (activation quantizers)."""
        ...
