"""Frozen objects that travel between the stages, and the protocols the stages implement.

Shapes: a linear layer is ``y = W x`` with ``W`` of shape ``(R, C)``: ``R`` output rows, ``C`` input
columns. Every tensor here is in the layer's own column order; a solver that permutes columns undoes
it before it returns (released code that did not is the subject of docs/reproduction.md).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from q2n.exceptions import UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.linalg import Spectrum
    from q2n.models.adapter import DecoderBlock, ModelAdapter


T = TypeVar("T")


class Statistic(StrEnum):
    """What can be measured of a layer's calibration inputs ``X_s`` (sequence ``s``, ``(T, C)``)."""

    GRAM = "gram"
    """``H = (2/n) sum_s X_s^T X_s``, ``(C, C)`` float32; ``n`` counts sequences (GPTQ's convention)."""
    TRIANGLE = "triangle"
    """The lower triangle of that, packed by :func:`q2n.gram.triangle`: enough to measure errors with."""
    HALF_GRAM = "half_gram"
    """The Gram matrix of every other sequence, from the first, normalised by their number."""
    POSITION_MEAN = "position_mean"
    """``A = (1/n) sum_s X_s``, ``(T, C)`` float32: what the official release uses in place of ``X``."""
    SQRT_POSITION_MEAN = "sqrt_position_mean"
    """``A = (1/n) sum_k sqrt(2/k) X_k``, ``(T, C)``: the weighting of the release's PB-LLM."""
    MEAN = "mean"
    """Mean input over all tokens, ``(C,)`` float32."""
    ABS_MEAN = "abs_mean"
    """mean ``|x|`` per channel, ``(C,)`` float32."""
    ABS_MAX = "abs_max"
    """max ``|x|`` per channel, ``(C,)`` float32."""
    TOKEN_SAMPLE = "token_sample"
    """Evenly spaced input rows, ``(m, C)`` float32."""


QUADRATIC = frozenset({Statistic.GRAM, Statistic.HALF_GRAM})
"""Statistics that move as ``H -> R H R^T``."""


@dataclass(frozen=True)
class Statistics:
    """What was measured of one input shared by one or more linear layers.

    Statistics move only together with the weight (:class:`LinearProblem`), so that a weight and the
    statistics it is solved with are always in the same basis.

    ``heldout``, if any, is the same of sequences that were kept from all this: nothing may be fitted to it,
    but choices may be judged by it.
    """

    values: Mapping[Statistic, Tensor]
    sequences: int
    tokens: int
    heldout: Statistics | None = None
    decompose: Callable[[Tensor], Spectrum] | None = field(default=None, repr=False, compare=False)
    """How a symmetric ``(C, C)`` float64 matrix is decomposed; None: by ``q2n.linalg.symmetric_spectrum``."""

    def __getitem__(self, statistic: Statistic) -> Tensor:
        return self.values[statistic]

    def __contains__(self, statistic: Statistic) -> bool:
        return statistic in self.values

    @property
    def gram(self) -> Tensor:
        """``(C, C)``."""
        return self.values[Statistic.GRAM]

    @property
    def output_form(self) -> Tensor:
        """The Gram matrix, or its packed triangle where that is all there is, for
        :func:`q2n.linalg.quadratic_rows`."""
        return self.values[Statistic.GRAM if Statistic.GRAM in self.values else Statistic.TRIANGLE]

    @property
    def centred_gram(self) -> Tensor:
        """``H - (2 N / n) m m^T`` with ``m`` the mean input: the Gram matrix of ``x - m`` over the same ``N``
        tokens, in Gram's normalisation; ``(C, C)`` float64.

        Directions with hardly any variance have only the digits that the float32 sums leave them: where the
        mean dominates, eigenvalues near ``1e-7`` of the largest of ``H`` are round-off of either sign.
        """
        mean = self.values[Statistic.MEAN].double()
        return self.gram.double() - 2 * self.tokens / self.sequences * mean[:, None] * mean

    @property
    def covariance(self) -> Tensor:
        """``(1/N) sum (x - m)(x - m)^T`` over all ``N`` tokens; ``(C, C)`` float64."""
        return self.centred_gram * (self.sequences / (2 * self.tokens))

    @cached_property
    def _cache(self) -> dict[Hashable, Any]:
        return {}

    def cached(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What ``compute`` returned the first time it was asked for under ``key``: work that follows from
        the statistics is done once for all layers that share the input."""
        if key not in self._cache:
            self._cache[key] = compute()
        value: T = self._cache[key]
        return value

    def spectrum(self, statistic: Statistic) -> Spectrum:
        """Full eigendecomposition of the statistic's ``(C, C)`` second moment in float64, computed once.

        Raises:
            NumericalError: the statistic is not finite.
        """
        from q2n.linalg import symmetric_spectrum

        def compute() -> Spectrum:
            value = self.values[statistic].double()
            matrix = value if statistic is Statistic.GRAM else value.T @ value
            return (self.decompose or symmetric_spectrum)(matrix)

        return self.cached((statistic.value, "eigh", "float64", "full"), compute)

    def mapped(self, right: Tensor) -> Statistics:
        """Statistics of ``x' = R x``, ``R = right`` ``(C', C)``: ``H -> R H R^T``, rows ``A -> A R^T``,
        mean ``m -> R m``.

        The element-wise statistics (absolute mean and maximum) have no image under a general matrix and
        are dropped; asking for one afterwards is a ``KeyError``, never a wrong number.
        """
        return self.mapped_by(lambda rows: rows @ right.to(rows).T)

    def mapped_by(self, rotate: Callable[[Tensor], Tensor]) -> Statistics:
        """:meth:`mapped` with ``right`` given as what it does to rows, ``rotate(A) = A R^T``: for maps that
        are applied faster than they can be written down."""
        images: dict[Statistic, Tensor] = {}
        for statistic, value in self.values.items():
            if statistic in QUADRATIC:
                images[statistic] = rotate(rotate(value).T)
            elif statistic is Statistic.MEAN:
                images[statistic] = rotate(value[None])[0]
            elif value.ndim == 2:
                images[statistic] = rotate(value)
        heldout = self.heldout.mapped_by(rotate) if self.heldout else None
        return replace(self, values=images, heldout=heldout)

    def damped(self, fraction: float) -> Statistics:
        """The same with ``fraction`` of the mean diagonal added to the Gram matrix."""
        gram = self.gram.clone()
        gram.diagonal().add_(fraction * gram.diagonal().mean())
        return replace(self, values={**self.values, Statistic.GRAM: gram})

    def scaled(self, factor: Tensor) -> Statistics:
        """Statistics of ``x' = factor * x`` (``factor`` of shape ``(C,)``, positive)."""
        images: dict[Statistic, Tensor] = {}
        for statistic, value in self.values.items():
            if statistic is Statistic.TRIANGLE:
                continue
            moved = factor.to(value)
            images[statistic] = value * moved
            if statistic in QUADRATIC:
                images[statistic] = images[statistic] * moved[:, None]
        heldout = self.heldout.scaled(factor) if self.heldout else None
        return replace(self, values=images, heldout=heldout)


@dataclass(frozen=True)
class LinearProblem:
    """Linear layers that share one input: their rows stacked, one set of statistics.

    ``weight`` is ``(R, C)`` float32, rows of layer ``i`` in order, ``rows[i]`` of them; ``names`` are the
    layers' names inside the block (``self_attn.q_proj``); ``biased`` says which of them have a bias (none if
    empty).
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    weight: Tensor
    stats: Statistics
    biased: tuple[bool, ...] = ()

    def has_bias(self, index: int) -> bool:
        """Whether layer ``index`` of the problem has a bias."""
        return bool(self.biased) and self.biased[index]


class Format(Protocol):
    """A stored number format: everything needed to rebuild a weight matrix.

    Formats are immutable; ``dequantize`` is the only definition of the weight they stand for.
    """

    @property
    def shape(self) -> tuple[int, int]: ...

    def dequantize(self) -> Tensor:
        """``(R, C)`` float32."""
        ...

    def scale_rows(self, alpha: Tensor) -> Format:
        """The format of ``diag(alpha) W`` with the same codes: alpha ``(R,)`` goes into the scales."""
        ...

    def select_rows(self, start: int, stop: int) -> Format:
        """The format of rows ``start:stop``."""
        ...

    def storage_bits(self) -> float:
        """Bits this matrix needs on disk: codes, scales, zeros, masks, tables, kept columns, vectors."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """The stored tensors by name, for export and for tests."""
        ...


@runtime_checkable
class GroupedFormat(Format, Protocol):
    """A format with scales finer than one a row. The weight is linear in them."""

    @property
    def scale_count(self) -> int:
        """Scales of a row, ``G``."""
        ...

    def scale_index(self) -> Tensor:
        """Which scale of its row multiplies each weight: ``(C,)``, or ``(R, C)`` where rows differ, int64;
        ``-1``: none does."""
        ...

    def scale_groups(self, factor: Tensor) -> Format:
        """Every scale multiplied by its factor ``(R, G)``; codes unchanged."""
        ...


@runtime_checkable
class RoundingFormat(Format, Protocol):
    """A format that can round another weight to the levels it has."""

    def requantized(self, weight: Tensor) -> Format:
        """The nearest codes for ``weight`` ``(R, C)``; scales, tables and kept columns as they are."""
        ...


@dataclass(frozen=True)
class QuantizedLinear:
    """What a solver returns for a :class:`LinearProblem`, in the problem's own column order.

    ``original`` is the weight the problem asked for. ``compensated`` is the buffer an error-compensating
    solver was approximating when it rounded each block of columns (equal to ``original`` for the others):
    both are kept so that a correction chooses explicitly which one it compares with.
    ``order`` is the column order the solver worked in (solver column ``j`` is column ``order[j]``), kept
    only so that the released code's misaligned step can be reproduced; ``kept`` marks columns that stay in
    full precision. ``bias`` ``(R,)`` is to be added to the layer's output, beside a bias it may have.
    ``scaling`` says that this is another layer with scaled rows, so that what is known of that one serves.
    """

    format: Format
    original: Tensor
    compensated: Tensor
    order: Tensor | None = None
    kept: Tensor | None = None
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    bias: Tensor | None = None
    scaling: RowScaling | None = None

    @cached_property
    def weight(self) -> Tensor:
        """The dequantized weight ``(R, C)`` float32: always ``format.dequantize()``."""
        return self.format.dequantize()

    def weight_rows(self, rows: slice) -> Tensor:
        """Rows of :attr:`weight`; of a large one nothing else is made, unless rows cannot be told apart."""
        from q2n.linalg import ENTRIES_AT_ONCE

        if "weight" not in self.__dict__ and math.prod(self.format.shape) > ENTRIES_AT_ONCE:
            with suppress(UnsupportedError):
                return self.format.select_rows(rows.start, rows.stop).dequantize()
        return self.weight[rows]

    def recall(self, what: Hashable, of: tuple[Any, ...], compute: Callable[[], T]) -> T:
        """``compute()``, once: what follows from this layer and the objects ``of``, as long as those are the
        very same ones.

        Cells that differ after the solver only may share a layer (:mod:`q2n.stages`); what is asked of it
        under the same ``what`` must follow from it and ``of`` alone.
        """
        known = self._recalled.get(what)
        if known is None or not all(ref() is item for ref, item in zip(known[0], of, strict=True)):
            known = self._recalled[what] = (tuple(weakref.ref(item) for item in of), compute())
        value: T = known[1]
        return value

    @cached_property
    def _recalled(self) -> dict[Hashable, tuple[tuple[weakref.ref[Any], ...], Any]]:
        return {}

    @property
    def bits_per_weight(self) -> float:
        """Of the format; what a bias takes depends on whether the layer has one anyway."""
        rows, columns = self.format.shape
        return self.format.storage_bits() / (rows * columns)

    def scaled_rows(self, alpha: Tensor, **diagnostics: Any) -> QuantizedLinear:
        """``diag(alpha)`` folded into the format, codes unchanged; ``alpha`` is noted in the diagnostics."""
        scaled = self.with_format(self.format.scale_rows(alpha), alpha=alpha, **diagnostics)
        return replace(scaled, scaling=RowScaling(self, alpha))

    def with_format(self, form: Format, **diagnostics: Any) -> QuantizedLinear:
        """The layer stored otherwise, with more diagnostics."""
        return replace(self, format=form, diagnostics={**self.diagnostics, **diagnostics}, scaling=None)


@dataclass(frozen=True)
class RowScaling:
    """Rows of ``base`` times ``alpha`` ``(R,)``, but for columns kept in full precision."""

    base: QuantizedLinear
    alpha: Tensor


@dataclass(frozen=True)
class Solution:
    """A layer before and after the correction, both in the layer's own basis."""

    base: QuantizedLinear
    corrected: QuantizedLinear


@dataclass(frozen=True)
class NullSpaceReport:
    """Measures of the null space of a layer's inputs, from their Gram matrix in the layer's own basis
    (:mod:`q2n.nullspace.measures` defines each). ``spectrum`` holds eigenvalues over the largest at
    ``spectrum_places``, counted from 1. Names with ``half`` compare two halves of the calibration
    sequences."""

    spectrum: tuple[float, ...]
    spectrum_places: tuple[int, ...]
    rank: int
    effective_rank: float
    projection_error: float
    heldout_projection_error: float | None = None
    half_ranks: tuple[int, int] | None = None
    half_projection_error: float | None = None
    half_angles: tuple[float, ...] = ()
    reach: float | None = None
    reached: float | None = None
    error_sources: tuple[float, float, float] | None = None
    error_sources_after: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class LayerReport:
    """What the record keeps of one linear layer. Errors are relative squared output errors
    ``||(W - Q) X||^2 / ||W X||^2`` on the calibration inputs, before and after the correction; ``heldout_``
    on inputs from held-out sequences, ``None`` without any. ``decomposition`` says how the spectrum was made
    and why not as asked, ``decomposition_residual`` how exact an iteration was."""

    block: int
    name: str
    shape: tuple[int, int]
    bits_per_weight: float
    error_before: float
    error_after: float
    alpha_min: float | None = None
    alpha_max: float | None = None
    null_rank: int | None = None
    damping: float | None = None
    solve_seconds: float = 0.0
    correct_seconds: float = 0.0
    heldout_error_before: float | None = None
    heldout_error_after: float | None = None
    decomposition: str | None = None
    decomposition_residual: float | None = None
    null_space: NullSpaceReport | None = None
    extra: Mapping[str, float] = field(default_factory=dict)


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


__all__ = [
    "Baseline",
    "Correction",
    "Format",
    "GroupedFormat",
    "LayerReport",
    "LinearProblem",
    "NullSpaceReport",
    "Quantize",
    "QuantizedLinear",
    "RoundingFormat",
    "Solution",
    "Statistic",
    "Statistics",
]
