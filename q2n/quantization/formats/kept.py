"""FP16 outlier columns beside any other format (OWQ's weak columns, arXiv 2306.02272)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from q2n.quantization.formats.base import (
    ColumnEncoder,
    FormatSpec,
    SolverView,
    StripRounder,
    TensorFormat,
    requantized,
    scale_count,
    scale_groups,
    scale_index,
    strip_rounder,
)
from q2n.types import Format

VALUE_BITS = 16
"""Bits of a stored value of an outlier column (FP16)."""


@dataclass(frozen=True)
class KeptFormat(TensorFormat):
    """Format with FP16 outlier columns, ``values`` ``(R, k)``; ``inner`` ``(R, C - k)`` has the others.

    ``columns`` ``(k,)`` int64, ascending, are the positions of the outlier columns. A row scale is not
    applied to FP16 outlier columns: it multiplies quantized columns only.
    """

    BY_ROW = "inner", "values"
    inner: Format
    columns: Tensor
    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns ``(R, C)`` of the matrix."""
        rows, columns = self.inner.shape
        return rows, columns + len(self.columns)

    @property
    def quantized(self) -> Tensor:
        """Indices of the columns that ``inner`` holds, ``(C - k,)`` ascending."""
        held = torch.ones(self.shape[1], dtype=torch.bool, device=self.columns.device)
        held[self.columns] = False
        return held.nonzero()[:, 0]

    def dequantize(self) -> Tensor:
        """Return the weight ``(R, C)``."""
        weight = torch.empty(self.shape, dtype=self.values.dtype, device=self.values.device)
        weight[:, self.quantized] = self.inner.dequantize()
        weight[:, self.columns] = self.values
        return weight

    def scale_rows(self, alpha: Tensor) -> KeptFormat:
        """Multiply every row of ``inner`` by its ``alpha`` ``(R,)``; outlier columns are unchanged."""
        return replace(self, inner=self.inner.scale_rows(alpha))

    @property
    def scale_count(self) -> int:
        """Number of scales per row, those of ``inner``."""
        return scale_count(self.inner)

    def scale_index(self) -> Tensor:
        """Return the index of each column's scale, ``(..., C)``; -1 for FP16 outlier columns."""
        inner = scale_index(self.inner)
        index = inner.new_full((*inner.shape[:-1], self.shape[1]), -1)
        index[..., self.quantized] = inner
        return index

    def scale_groups(self, factor: Tensor) -> KeptFormat:
        """Multiply the scales of ``inner`` by ``factor`` ``(R, G)``; outlier columns are unchanged."""
        return replace(self, inner=scale_groups(self.inner, factor))

    def requantized(self, weight: Tensor) -> KeptFormat:
        """Round the quantized columns of ``weight`` ``(R, C)``; outlier columns are unchanged.

        Raises:
            UnsupportedError: ``inner`` has no rounding with given scales.
        """
        return replace(self, inner=requantized(self.inner, weight[:, self.quantized]))

    def storage_bits(self) -> float:
        """Return the size in bits: ``inner``, 16 per outlier value, and the outlier columns' indices."""
        index = len(self.columns) * max(1, (self.shape[1] - 1).bit_length())
        return self.inner.storage_bits() + self.values.numel() * VALUE_BITS + index


@dataclass(frozen=True)
class KeptColumnsSpec:
    """Number format ``inner`` for all but the solver's last ``view.kept`` columns.

    Those are FP16 outlier columns and hold compensated values.
    """

    inner: FormatSpec

    def encoder(self, view: SolverView) -> ColumnEncoder:
        """Create the encoder of one layer; that of ``inner`` if the layer has no FP16 outlier columns."""
        return KeptColumnsEncoder(self.inner, view) if view.kept else self.inner.encoder(view)


class KeptColumnsEncoder:
    """Encoder that passes only the rounded columns to the encoder of the inner format."""

    def __init__(self, inner: FormatSpec, view: SolverView) -> None:
        self._order, self._count = view.order, len(view.order) - view.kept
        count = self._count
        self._inner = inner.encoder(
            SolverView(
                weight=view.weight[:, :count],
                order=torch.argsort(torch.argsort(view.order[:count])),
                dead=view.dead[:count],
                factor_diagonal=view.factor_diagonal[:count],
            )
        )

    def enter(self, position: int, buffer: Tensor) -> None:
        """Enter a column of the inner encoder, whose buffer ends before the outlier columns."""
        self._inner.enter(position, buffer[: self._count])

    def encode(self, position: int, column: Tensor) -> Tensor:
        """Round one column ``(R,)`` with the inner encoder."""
        return self._inner.encode(position, column)

    def strips(self) -> StripRounder | None:
        """Return the kernel of the inner encoder, or None if it has none."""
        return strip_rounder(self._inner)

    def finish(self, compensated: Tensor) -> KeptFormat:
        """Return the format in the layer's own column order; outlier columns are those of ``compensated``."""
        columns, place = torch.sort(self._order[self._count :])
        values = compensated[self._count :][place].T.contiguous()
        return KeptFormat(self._inner.finish(compensated[: self._count]), columns, values)
