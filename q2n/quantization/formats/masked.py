"""Two formats in one matrix, entry by entry: a few salient weights in many bits, the others in one bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from q2n.linalg.dense import kth_smallest
from q2n.quantization.formats.base import SolverView, Strip, StripRounder, TensorFormat
from q2n.quantization.formats.uniform import UniformFormat, UniformSpec
from q2n.quantization.formats.xnor import XnorFormat, XnorSpec


@dataclass(frozen=True)
class MaskedFormat(TensorFormat):
    """Mixed format ``W = mask ? low : high`` with ``mask`` ``(R, C)`` bool.

    Both parts are whole matrices in memory, with code zero where the other part holds the weight; the storage
    counts only the codes that a part holds.
    """

    BY_ROW = "mask", "low", "high"
    mask: Tensor
    low: XnorFormat
    high: UniformFormat

    def dequantize(self) -> Tensor:
        """Return the weight ``(R, C)``."""
        return torch.where(self.mask, self.low.dequantize(), self.high.dequantize())

    def scale_rows(self, alpha: Tensor) -> MaskedFormat:
        """Multiply every row of both parts by its ``alpha`` ``(R,)``; codes are unchanged."""
        return replace(self, low=self.low.scale_rows(alpha), high=self.high.scale_rows(alpha))

    @property
    def scale_count(self) -> int:
        """Number of scales per row, those of both parts together."""
        return self.low.scale_count + self.high.scale_count

    def scale_index(self) -> Tensor:
        """Return the index of each weight's scale, ``(R, C)``; scales of the one-bit part come first."""
        high = self.low.scale_count + self.high.scale_index()
        return torch.where(self.mask, self.low.scale_index(), high)

    def scale_groups(self, factor: Tensor) -> MaskedFormat:
        """Multiply the scales of both parts by ``factor`` ``(R, G)``; codes are unchanged."""
        count = self.low.scale_count
        low, high = self.low.scale_groups(factor[:, :count]), self.high.scale_groups(factor[:, count:])
        return replace(self, low=low, high=high)

    def requantized(self, weight: Tensor) -> MaskedFormat:
        """Round ``weight`` ``(R, C)`` with the mask and the scales as they are."""
        return masked(self.mask, self.low.requantized(weight), self.high.requantized(weight))

    def storage_bits(self) -> float:
        """Return the size in bits: one per weight for the mask, and the codes that each part holds."""
        total, held = self.mask.numel(), int(self.mask.sum())
        low = self.low.storage_bits() - (total - held)
        high = self.high.storage_bits() - held * self.high.bits
        return total + low + high


def masked(mask: Tensor, low: XnorFormat, high: UniformFormat) -> MaskedFormat:
    """Combine two formats of the whole matrix; codes of entries that the other part holds become zero."""
    return MaskedFormat(mask, replace(low, signs=low.signs * mask), replace(high, codes=high.codes * ~mask))


@dataclass(frozen=True)
class SalientSpec:
    """One bit for the fraction ``low_fraction`` of least salient weights, the format ``high`` for the others.

    Saliency is ``w^2 / d^2`` (``hessian``; ``d`` the diagonal of the Cholesky factor of the inverse Hessian)
    or ``|w|`` (``magnitude``); its threshold is common to all rows, one per group of ``low``.
    """

    low: XnorSpec
    high: UniformSpec
    low_fraction: float
    saliency: Literal["hessian", "magnitude"]

    def mask(self, view: SolverView) -> Tensor:
        """Return True for weights in one bit; ``(R, C)``, solver order, contiguous by columns."""
        weight = view.live_columns().abs()
        if self.saliency == "hessian":
            weight = weight.div_(view.factor_diagonal[:, None]).square_()
        size = len(weight) if self.low.group_size == -1 else self.low.group_size
        groups = weight.split(size)
        return torch.cat([it <= kth_smallest(it, int(it.numel() * self.low_fraction)) for it in groups]).T

    def encoder(self, view: SolverView) -> SalientEncoder:
        """Create the encoder of one layer."""
        return SalientEncoder(self, view)


class SalientEncoder:
    """Column-by-column rounding, each entry with the part that holds it."""

    def __init__(self, grid: SalientSpec, view: SolverView) -> None:
        self._order = view.order
        mask = grid.mask(view)
        self._low, self._high = grid.low.encoder(view, mask), grid.high.encoder(view)
        self._mask = mask.T
        self._levels = grid.high.levels

    def enter(self, position: int, buffer: Tensor) -> None:
        """Fit the group of the high part that begins at ``position``, if any."""
        self._high.enter(position, buffer)

    def encode(self, position: int, column: Tensor) -> Tensor:
        """Round one column ``(R,)`` with both parts and return each entry from the part that holds it."""
        low, high = self._low.encode(position, column), self._high.encode(position, column)
        return torch.where(self._mask[position], low, high)

    def strips(self) -> StripRounder:
        """Return the compiled kernel of both parts."""
        from q2n.linalg.kernels.columns import round_salient

        held, levels = self._mask.to(torch.float32).numpy(), float(self._levels)

        def rounder(strip: Strip) -> None:
            low, high = self._low.arrays(strip.columns), self._high.arrays(strip.columns)
            round_salient(strip.arrays(), low, held[strip.columns], high, levels)

        return rounder

    def finish(self, compensated: Tensor) -> MaskedFormat:
        """Return the format in the layer's own column order."""
        mask = self._mask[torch.argsort(self._order)].T.contiguous()
        return masked(mask, self._low.finish(compensated), self._high.finish(compensated))
