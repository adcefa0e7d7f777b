"""Defaults of baselines that work layer by layer, and types of fields that several baselines share.

A layer-by-layer method needs one method only: ``quantize``.
"""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field

from q2n.corrections.base import ReleasedRecipe
from q2n.exceptions import ConfigurationError, NumericalError, UnsupportedError
from q2n.runtime.clock import timed
from q2n.types import Correction, LinearProblem, Quantize, QuantizedLinear, Solution, Statistic

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.models.adapter import DecoderBlock, ModelAdapter


def _group_size(value: int) -> int:
    if value != -1 and value < 1:
        raise ValueError("must be a positive number of columns, or -1 for the whole row")
    return value


def _schedule(value: list[float]) -> list[float]:
    if any(later <= earlier for earlier, later in itertools.pairwise(value)):
        raise ValueError("must increase")
    return value


def _activation_bits(value: int) -> int:
    if value != 16 and not 2 <= value <= 8:
        raise ValueError("must be 2 to 8, or 16 for no quantization")
    return value


Bits = Annotated[int, Field(ge=2, le=8)]
"""Bits per code, 2 to 8."""
GroupSize = Annotated[int, AfterValidator(_group_size)]
"""Columns per scale, or -1 for whole rows."""
Damping = Annotated[float, Field(gt=0, le=10)]
"""Damping of the Hessian in units of its mean diagonal."""
DampingSchedule = Annotated[list[Annotated[float, Field(gt=0, le=10)]], AfterValidator(_schedule)]
"""Increasing dampings tried after ``percdamp`` if the Hessian does not factorise; if empty, raise at once."""
ActivationBits = Annotated[int, AfterValidator(_activation_bits)]
"""Bits of activations, 2 to 8, or 16 for no quantization."""
ClipRatio = Annotated[float, Field(gt=0, le=1)]
"""Quantized range as a fraction of the full range."""
Seed = Annotated[int, Field(ge=0, lt=2**31)]
"""Seed of a random transform."""


def layer_widths(adapter: ModelAdapter) -> dict[str, int]:
    """Return the number of input columns of every linear layer, by its name inside a block."""
    return {
        name: block.linear(name).weight.shape[1]
        for block in adapter.blocks
        for group in block.groups
        for name in group.linears
    }


class LayerwiseBaseline(ABC):
    """Base class of methods whose solver works in the layer's own basis, without a rewrite of the model."""

    stacks_rows: ClassVar[bool] = True
    """See :attr:`q2n.types.Baseline.stacks_rows`."""
    released: ClassVar[ReleasedRecipe | None] = None
    """Q2N step of the official code after this method, or None if it has none."""

    @property
    def code_bits(self) -> int | float:
        """Average bits per code: the field ``bits``.

        Raises:
            ConfigurationError: there is no such field; a method without one overrides this property.
        """
        bits: int | float | None = getattr(self, "bits", None)
        if bits is None:
            name = type(self).__name__
            raise ConfigurationError(f"baseline: {name} has neither a field bits nor a property code_bits")
        return bits

    @property
    def columns_per_scale(self) -> int:
        """Columns per scale: the field ``group_size``, or -1 without one."""
        return int(getattr(self, "group_size", -1))

    @property
    def no_groups(self) -> str:
        """Reason why a group size does not apply; empty, since one applies by default."""
        return ""

    def released_step(self) -> ReleasedRecipe | None:
        """Return :attr:`released`, or None if the official code has no counterpart of these settings."""
        return self.released

    @property
    def requires(self) -> frozenset[Statistic]:
        """Statistics the solver needs: the Gram matrix by default."""
        return frozenset({Statistic.GRAM})

    @property
    def rewrite_fields(self) -> tuple[str, ...] | None:
        """Fields that the rewrite of the model depends on (:class:`q2n.types.Baseline`).

        None, for any field, if the method changes the model before it is solved; otherwise empty.
        """
        rewrites = type(self).rewrite is not LayerwiseBaseline.rewrite
        return None if rewrites or self.prepares_blocks else ()

    @property
    def prepares_blocks(self) -> bool:
        """True if the class overrides :meth:`prepare_block`."""
        return type(self).prepare_block is not LayerwiseBaseline.prepare_block

    def check(self, adapter: ModelAdapter) -> None:
        """Check that the group size fits every layer.

        Raises:
            UnsupportedError: a layer has fewer columns than a group; the message contains sizes that fit.
        """
        size = self.columns_per_scale
        for name, columns in layer_widths(adapter).items():
            if size > columns:
                raise UnsupportedError(
                    f"baseline.group_size={size}: {name} has only {columns} columns; "
                    f"use a group_size of at most {min(layer_widths(adapter).values())}, or -1 for whole rows"
                )

    def rewrite(self, adapter: ModelAdapter) -> None:
        """Do nothing by default."""

    def prepare_block(self, block: DecoderBlock, inputs: Sequence[Tensor]) -> None:
        """Do nothing by default."""

    def finish(self, adapter: ModelAdapter) -> None:
        """Do nothing by default."""

    @abstractmethod
    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """Return the layer in the method's number format."""

    def solve(
        self, problem: LinearProblem, correction: Correction, quantize: Quantize | None = None
    ) -> Solution:
        """Quantize and correct in the layer's own basis."""
        return corrected(problem, (quantize or self.quantize)(problem), correction)


def corrected(problem: LinearProblem, base: QuantizedLinear, correction: Correction) -> Solution:
    """Apply ``correction`` in the basis of ``problem`` and ``base``, and measure its wall time.

    Raises:
        NumericalError: a number is not finite; the message names the solver's result if the fault is there.
    """
    from q2n.linalg.dense import require_finite

    began = time.perf_counter()
    with timed("correct"):
        try:
            result = correction.correct(problem, base)
        except NumericalError:
            require_finite(base.weight, "quantized weight before the correction")
            raise
    return Solution(base, result, time.perf_counter() - began)
