"""Per-row codebook (LUT), placed by weighted k-means (LeanQuant, arXiv 2407.10032)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from q2n.quantization.formats.base import CodesEncoder, SolverView, StripRounder, TensorFormat
from q2n.quantization.formats.kmeans import cluster_rows

ENTRY_BITS = 16
"""Bits of a stored codebook entry."""


@dataclass(frozen=True)
class LutFormat(TensorFormat):
    """Codebook format ``W_rc = table[r, codes_rc]``.

    ``codes`` ``(R, C)`` uint8, ``table`` ``(R, 2^bits)`` float32, ascending when fitted.
    """

    BY_ROW = "codes", "table"
    codes: Tensor
    table: Tensor
    bits: int

    def dequantize(self) -> Tensor:
        """Return the weight ``(R, C)``."""
        return self.table.gather(1, self.codes.long())

    def scale_rows(self, alpha: Tensor) -> LutFormat:
        """Multiply every row's codebook by its ``alpha`` ``(R,)``; codes are unchanged."""
        return replace(self, table=self.table * alpha.to(self.table)[:, None])

    def requantized(self, weight: Tensor) -> LutFormat:
        """Round ``weight`` ``(R, C)`` to the nearest level, the lower of two equally near ones."""
        table, order = self.table.sort(dim=1)  # a negative row scale reverses the order
        above = torch.searchsorted((table[:, 1:] + table[:, :-1]) / 2, weight.contiguous())
        return replace(self, codes=order.gather(1, above).to(torch.uint8))

    def storage_bits(self) -> float:
        """Return the size in bits: codes and codebooks."""
        return self.codes.numel() * self.bits + self.table.numel() * ENTRY_BITS


@dataclass(frozen=True)
class LutSpec:
    """Codebook of each row from k-means with sample weights ``d_j^-exponent``.

    ``d`` is the Cholesky diagonal of the inverse Hessian: columns whose rounding costs most decide where the
    levels are. ``tables`` ``(R, 2^bits)``, if given, are used instead of clustering.
    """

    bits: int
    exponent: float
    seed: int = 0
    tables: Tensor | None = None

    def encoder(self, view: SolverView) -> LutEncoder:
        """Create the encoder of one layer."""
        return LutEncoder(self, view)

    def fit(self, view: SolverView) -> Tensor:
        """Return the codebooks ``(R, 2^bits)``, ascending."""
        if self.tables is not None:
            return self.tables.sort(dim=1).values
        weight = view.live_columns().T.contiguous()
        importance = _importance(view.factor_diagonal, self.exponent)
        return cluster_rows(weight, importance, 2**self.bits, self.seed).to(weight)


def _importance(diagonal: Tensor, exponent: float) -> Tensor:
    """Return ``d^-exponent``, or a multiple of it if its largest entry is out of float32's range.

    Clusters do not depend on a common factor.
    """
    importance = diagonal**-exponent
    if torch.finfo(importance.dtype).tiny <= importance.max() < torch.inf:
        return importance
    logarithms = -exponent * diagonal.double().log()
    return (logarithms - logarithms.max()).exp().to(diagonal)


class LutEncoder(CodesEncoder):
    """Column-by-column rounding to the nearest codebook entry, the lower of two equally near ones."""

    def __init__(self, grid: LutSpec, view: SolverView) -> None:
        super().__init__(view)
        self._bits = grid.bits
        self._table = grid.fit(view).contiguous()
        halves = self._table / 2  # halved first: the sum of two large entries may overflow
        self._middles = (halves[:, 1:] + halves[:, :-1]).T.contiguous()
        self._above = torch.empty_like(self._middles)

    def encode(self, position: int, column: Tensor) -> Tensor:
        """Round one column ``(R,)`` and store its codes."""
        # For short codebooks, counting the midpoints below a weight is faster than a search per row.
        torch.gt(column, self._middles, out=self._above)
        codes = torch.sum(self._above, dim=0, out=self._codes[position])
        return self._table.gather(1, codes.long()[:, None])[:, 0]

    def strips(self) -> StripRounder:
        """Return the compiled kernel."""
        from q2n.linalg.kernels.columns import round_table

        codes, table, middles = self._codes.numpy(), self._table.T.contiguous().numpy(), self._middles.numpy()
        return lambda strip: round_table(strip.arrays(), codes[strip.columns], table, middles)

    def finish(self, compensated: Tensor) -> LutFormat:
        """Return the format in the layer's own column order."""
        return LutFormat(self._stored(), self._table, self._bits)
