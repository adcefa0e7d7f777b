"""Defaults of a baseline that works layer by layer (such a method is one ``quantize`` method), and the types
of fields that several share, with their ranges."""

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
GroupSize = Annotated[int, AfterValidator(_group_size)]
Damping = Annotated[float, Field(gt=0, le=10)]
DampingSchedule = Annotated[list[Annotated[float, Field(gt=0, le=10)]], AfterValidator(_schedule)]
"""Fractions tried after ``percdamp`` when the Hessian does not factorise; empty: raise at once."""
ActivationBits = Annotated[int, AfterValidator(_activation_bits)]
ClipRatio = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


def layer_widths(adapter: ModelAdapter) -> dict[str, int]:
    """Input columns of every linear layer by its name inside a block."""
    return {
        name: block.linear(name).weight.shape[1]
        for block in adapter.blocks
        for group in block.groups
        for name in group.linears
    }


class LayerwiseBaseline(ABC):
    """A method whose solver works in the layer's own basis and needs no rewrite of the model."""

    stacks_rows: ClassVar[bool] = True
    released: ClassVar[ReleasedRecipe | None] = None
    """What the official release's Q2N step does after this method; ``None``: the release has none."""

    @property
    def code_bits(self) -> int | float:
        """The field ``bits``.

        Raises:
            ConfigurationError: there is no such field; a method without it overrides this property.
        """
        bits: int | float | None = getattr(self, "bits", None)
        if bits is None:
            name = type(self).__name__
            raise ConfigurationError(f"baseline: {name} has neither a field bits nor a property code_bits")
        return bits

    @property
    def columns_per_scale(self) -> int:
        """The field ``group_size``; -1 without one."""
        return int(getattr(self, "group_size", -1))

    @property
    def no_groups(self) -> str:
        return ""

    def released_step(self) -> ReleasedRecipe | None:
        """:attr:`released`, unless these settings have no counterpart in the release."""
        return self.released

    @property
    def requires(self) -> frozenset[Statistic]:
        return frozenset({Statistic.GRAM})

    @property
    def rewrite_fields(self) -> tuple[str, ...] | None:
        """Every field, for a method that changes the model before it is solved; see :class:`Baseline`."""
        rewrites = type(self).rewrite is not LayerwiseBaseline.rewrite
        return None if rewrites or self.prepares_blocks else ()

    @property
    def prepares_blocks(self) -> bool:
        return type(self).prepare_block is not LayerwiseBaseline.prepare_block

    def check(self, adapter: ModelAdapter) -> None:
        """Groups of columns (the field ``group_size``, where a method has it) fit into every layer.

        Raises:
            UnsupportedError: a layer has fewer columns than a group; says what would fit.
        """
        size = self.columns_per_scale
        for name, columns in layer_widths(adapter).items():
            if size > columns:
                raise UnsupportedError(
                    f"baseline.group_size={size}: {name} has only {columns} columns; "
                    f"use a group_size of at most {min(layer_widths(adapter).values())}, or -1 for whole rows"
                )

    def rewrite(self, adapter: ModelAdapter) -> None:
        """Nothing to rewrite."""

    def prepare_block(self, block: DecoderBlock, inputs: Sequence[Tensor]) -> None:
        """Nothing to prepare."""

    def finish(self, adapter: ModelAdapter) -> None:
        """Nothing to switch on."""

    @abstractmethod
    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """The layer in the method's number format."""

    def solve(
        self, problem: LinearProblem, correction: Correction, quantize: Quantize | None = None
    ) -> Solution:
        return corrected(problem, (quantize or self.quantize)(problem), correction)


def corrected(problem: LinearProblem, base: QuantizedLinear, correction: Correction) -> Solution:
    """Apply ``correction`` in the basis that ``problem`` and ``base`` are in, and take its time.

    Raises:
        NumericalError: a number is not finite; where it was one of the solver's already, says so.
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
