"""A few columns stay in full precision beside any other format (OWQ's weak columns, arXiv 2306.02272)."""

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


@dataclass(frozen=True)
class KeptFormat(TensorFormat):
    """``inner`` ``(R, C - k)`` holds the columns not in ``columns``; those hold ``values`` ``(R, k)``.

    ``columns`` ``(k,)`` int64 ascending. A row scale is not applied to kept columns: they are no part of what
    a row's scale multiplies.
    """

    BY_ROW = "inner", "values"
    inner: Format
    columns: Tensor
    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.inner.shape
        return rows, columns + len(self.columns)

    @property
    def quantized(self) -> Tensor:
        """Indices of the columns that ``inner`` holds, ``(C - k,)`` ascending."""
        held = torch.ones(self.shape[1], dtype=torch.bool, device=self.columns.device)
        held[self.columns] = False
        return held.nonzero()[:, 0]

    def dequantize(self) -> Tensor:
        weight = torch.empty(self.shape, dtype=self.values.dtype, device=self.values.device)
        weight[:, self.quantized] = self.inner.dequantize()
        weight[:, self.columns] = self.values
        return weight

    def scale_rows(self, alpha: Tensor) -> KeptFormat:
        return replace(self, inner=self.inner.scale_rows(alpha))

    @property
    def scale_count(self) -> int:
        return scale_count(self.inner)

    def scale_index(self) -> Tensor:
        inner = scale_index(self.inner)
        index = inner.new_full((*inner.shape[:-1], self.shape[1]), -1)
        index[..., self.quantized] = inner
        return index

    def scale_groups(self, factor: Tensor) -> KeptFormat:
        """Scales of ``inner`` multiplied by ``factor`` ``(R, G)``; codes and kept columns unchanged."""
        return replace(self, inner=scale_groups(self.inner, factor))

    def requantized(self, weight: Tensor) -> KeptFormat:
        return replace(self, inner=requantized(self.inner, weight[:, self.quantized]))

    def storage_bits(self) -> float:
        index = len(self.columns) * max(1, (self.shape[1] - 1).bit_length())
        return self.inner.storage_bits() + self.values.numel() * VALUE_BITS + index


@dataclass(frozen=True)
class KeptColumnsSpec:
    """``inner`` for all but the solver's last ``view.kept`` columns, which stay as compensated values."""

    inner: FormatSpec

    def encoder(self, view: SolverView) -> ColumnEncoder:
        return KeptColumnsEncoder(self.inner, view) if view.kept else self.inner.encoder(view)


class KeptColumnsEncoder:
    """Hands the columns that are rounded to an encoder that knows of no others."""

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
        self._inner.enter(position, buffer[: self._count])

    def encode(self, position: int, column: Tensor) -> Tensor:
        return self._inner.encode(position, column)

    def strips(self) -> StripRounder | None:
        return strip_rounder(self._inner)

    def finish(self, compensated: Tensor) -> KeptFormat:
        columns, place = torch.sort(self._order[self._count :])
        values = compensated[self._count :][place].T.contiguous()
        return KeptFormat(self._inner.finish(compensated[: self._count]), columns, values)
