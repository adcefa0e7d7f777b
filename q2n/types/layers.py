"""Linear layers before and after they are quantized, and the number formats they are stored in."""

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
        from q2n.linalg.dense import ENTRIES_AT_ONCE

        if "weight" not in self.__dict__ and math.prod(self.format.shape) > ENTRIES_AT_ONCE:
            with suppress(UnsupportedError):
                return self.format.select_rows(rows.start, rows.stop).dequantize()
        return self.weight[rows]

    def recall(self, what: Hashable, of: tuple[Any, ...], compute: Callable[[], T]) -> T:
        """``compute()``, once: what follows from this layer and the objects ``of``, as long as those are the
        very same ones.

        Cells that differ after the solver only may share a layer (:mod:`q2n.pipeline.sharing`); what is asked
        of it under the same ``what`` must follow from it and ``of`` alone.
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
        """``diag(alpha)`` folded into the format, codes unchanged; ``alpha`` is noted in the diagnostics.

        Raises:
            NumericalError: ``alpha`` is not finite.
        """
        from q2n.linalg.dense import require_finite

        require_finite(alpha, "row scale alpha (the weight, or a product exceeds float32)")
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
    """A layer before and after the correction, both in the layer's own basis, and the seconds this took."""

    base: QuantizedLinear
    corrected: QuantizedLinear
    correct_seconds: float = 0.0
