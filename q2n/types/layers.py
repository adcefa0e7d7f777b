"""Linear layers before and after quantization, and the protocols of number formats."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

from q2n.exceptions import UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.types.statistics import Statistics

T = TypeVar("T")


@dataclass(frozen=True)
class LinearProblem:
    """Linear layers that share one input: their rows stacked, one set of statistics.

    Attributes:
        names: names of the layers inside the block (``self_attn.q_proj``).
        rows: number of rows of each layer.
        weight: ``(R, C)`` float32, the rows of the layers in order.
        stats: statistics of the shared input.
        biased: for each layer, True if it has a bias; empty if none has.
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    weight: Tensor
    stats: Statistics
    biased: tuple[bool, ...] = ()

    def has_bias(self, index: int) -> bool:
        """Return True if layer ``index`` of the problem has a bias."""
        return bool(self.biased) and self.biased[index]


class Format(Protocol):
    """Weight matrix in a number format: everything needed to rebuild the weight.

    Formats are immutable; ``dequantize`` is the only definition of the weight.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Shape ``(R, C)`` of the weight."""
        ...

    def dequantize(self) -> Tensor:
        """Return the weight ``(R, C)`` in float32."""
        ...

    def scale_rows(self, alpha: Tensor) -> Format:
        """Return the format of ``diag(alpha) W`` and the same codes; ``alpha`` ``(R,)`` is folded in."""
        ...

    def select_rows(self, start: int, stop: int) -> Format:
        """Return the format of rows ``start:stop``.

        Raises:
            UnsupportedError: rows of this format cannot be separated.
        """
        ...

    def storage_bits(self) -> float:
        """Return the storage in bits: codes, scales, zero points, masks, codebooks, FP16 columns, vectors."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the stored tensors by name, for export and for tests."""
        ...


@runtime_checkable
class GroupedFormat(Format, Protocol):
    """Number format with several scales per row; the weight is linear in the scales."""

    @property
    def scale_count(self) -> int:
        """Number of scales per row, ``G``."""
        ...

    def scale_index(self) -> Tensor:
        """Return the index of each weight's scale within its row, or -1 if it has none.

        The shape is ``(C,)``, or ``(R, C)`` if rows differ; int64.
        """
        ...

    def scale_groups(self, factor: Tensor) -> Format:
        """Return the format with every scale multiplied by its ``factor`` ``(R, G)``; codes unchanged."""
        ...


@runtime_checkable
class RoundingFormat(Format, Protocol):
    """Number format that can round another weight to its existing levels."""

    def requantized(self, weight: Tensor) -> Format:
        """Return the nearest codes for ``weight`` ``(R, C)``; scales, codebooks and FP16 columns are kept."""
        ...


@dataclass(frozen=True)
class QuantizedLinear:
    """Result of a solver for a :class:`LinearProblem`, in the problem's own column order.

    Attributes:
        format: the weight in its number format.
        original: weight of the problem, ``(R, C)``.
        compensated: buffer that an error-compensating solver approximated when it rounded each block of
            columns; equal to ``original`` for other solvers. A correction chooses between the two.
        order: column order of the solver (solver column ``j`` is column ``order[j]``), kept only to reproduce
            the misaligned step of the official code; None if columns were not permuted.
        kept: mask of FP16 outlier columns, or None without any.
        diagnostics: notes of solver and correction for the record.
        bias: ``(R,)``, added to the output in addition to a bias the layer may have.
        scaling: set if this is another layer with scaled rows, so that its cached results can be reused.
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
        """Dequantized weight ``(R, C)`` float32: always ``format.dequantize()``."""
        return self.format.dequantize()

    def weight_rows(self, rows: slice) -> Tensor:
        """Return rows of :attr:`weight`.

        Of a large weight only these rows are dequantized, if the format can separate rows.
        """
        from q2n.linalg.dense import ENTRIES_AT_ONCE

        if "weight" not in self.__dict__ and math.prod(self.format.shape) > ENTRIES_AT_ONCE:
            with suppress(UnsupportedError):
                return self.format.select_rows(rows.start, rows.stop).dequantize()
        return self.weight[rows]

    def recall(self, what: Hashable, of: tuple[Any, ...], compute: Callable[[], T]) -> T:
        """Return ``compute()``, cached while the objects ``of`` stay identical.

        Cells that differ only after the solver may share a layer (:mod:`q2n.pipeline.sharing`). A result must
        therefore depend on this layer, ``what`` and ``of`` alone.

        Args:
            what: key of the result.
            of: objects the result depends on, compared by identity.
            compute: computes the result.
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
        """Storage of the format in bits per weight, without the bias, which the layer may have anyway."""
        rows, columns = self.format.shape
        return self.format.storage_bits() / (rows * columns)

    def scaled_rows(self, alpha: Tensor, **diagnostics: Any) -> QuantizedLinear:
        """Fold ``alpha`` ``(R,)`` into the format and add it to the diagnostics; codes are unchanged.

        Raises:
            NumericalError: ``alpha`` is not finite.
        """
        from q2n.linalg.dense import require_finite

        require_finite(alpha, "row scale alpha (the weight, or a product exceeds float32)")
        scaled = self.with_format(self.format.scale_rows(alpha), alpha=alpha, **diagnostics)
        return replace(scaled, scaling=RowScaling(self, alpha))

    def with_format(self, form: Format, **diagnostics: Any) -> QuantizedLinear:
        """Return the layer with another format and further diagnostics."""
        return replace(self, format=form, diagnostics={**self.diagnostics, **diagnostics}, scaling=None)


@dataclass(frozen=True)
class RowScaling:
    """Rows of ``base`` times ``alpha`` ``(R,)``, except for FP16 outlier columns."""

    base: QuantizedLinear
    alpha: Tensor


@dataclass(frozen=True)
class Solution:
    """Layer before and after the correction, in its own basis, and the correction's wall time in seconds."""

    base: QuantizedLinear
    corrected: QuantizedLinear
    correct_seconds: float = 0.0
