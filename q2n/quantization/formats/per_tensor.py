"""Per-tensor scale, set by the root mean square (QuIP's grid, arXiv 2307.13304, section 5)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from q2n.quantization.formats.base import CodesEncoder, SolverView, Strip, StripRounder, TensorFormat

RANGE_RMS = 2.4
"""Half the grid's range in units of the matrix's root mean square (QuIP)."""

SMALLEST_RANGE = 1e-16
"""Addend of half the range that avoids a division by zero. A matrix with a smaller half range is stored with
scale zero, since the grid has no level at zero."""

SCALE_BITS = 16
"""Bits of the stored scale and of a row factor."""


@dataclass(frozen=True)
class PerTensorFormat(TensorFormat):
    """Per-tensor format ``W = diag(rows) scale (2 codes / (2^bits - 1) - 1)``: symmetric, no level at zero.

    ``codes`` ``(R, C)`` uint8, ``scale`` a scalar. ``rows`` ``(R,)`` is None until a correction scales rows:
    a per-tensor scale cannot hold a factor per row, so the correction costs 16 bits per row here.
    """

    BY_ROW = "codes", "rows"
    codes: Tensor
    scale: Tensor
    bits: int
    rows: Tensor | None = None

    def dequantize(self) -> Tensor:
        """Return the weight ``(R, C)``."""
        levels = (1 << self.bits) - 1
        values = self.scale * (self.codes * (2 / levels) - 1)
        return values if self.rows is None else values * self.rows[:, None]

    def scale_rows(self, alpha: Tensor) -> PerTensorFormat:
        """Multiply every row by its ``alpha`` ``(R,)``, which is stored in ``rows``."""
        alpha = alpha.to(self.scale)
        return replace(self, rows=alpha if self.rows is None else self.rows * alpha)

    def requantized(self, weight: Tensor) -> PerTensorFormat:
        """Round ``weight`` ``(R, C)`` to the grid as it is; codes of rows with step zero are unchanged."""
        levels = (1 << self.bits) - 1
        step = 2 * self.scale / levels if self.rows is None else 2 * self.scale / levels * self.rows[:, None]
        codes = torch.round(weight / step + levels / 2).clamp_(0, levels)
        return replace(self, codes=torch.where(step == 0, self.codes, codes.to(torch.uint8)))

    def storage_bits(self) -> float:
        """Return the size in bits: codes, scale and row factors."""
        vector = 0 if self.rows is None else self.rows.numel()
        return self.codes.numel() * self.bits + SCALE_BITS * (1 + vector)


@dataclass(frozen=True)
class PerTensorSpec:
    """Per-tensor grid of ``2^bits`` levels between ``-2.4`` and ``2.4`` root mean squares."""

    bits: int

    def scale(self, weight: Tensor) -> Tensor:
        """Return half the grid's range, a scalar tensor."""
        rms: Tensor = torch.linalg.vector_norm(weight) / weight.numel() ** 0.5
        return rms.mul(RANGE_RMS).add(SMALLEST_RANGE)

    def target(self, weight: Tensor) -> Tensor:
        """Return the solver's target: ``weight`` clipped to the grid's range, as QuIP's lattice map does."""
        scale = self.scale(weight)
        return torch.clamp(weight, -scale, scale)

    def encoder(self, view: SolverView) -> PerTensorEncoder:
        """Create the encoder of one layer."""
        return PerTensorEncoder(self, view)


class PerTensorEncoder(CodesEncoder):
    """Column-by-column rounding to a :class:`PerTensorSpec`."""

    def __init__(self, grid: PerTensorSpec, view: SolverView) -> None:
        super().__init__(view)
        self._bits, self._levels = grid.bits, 2**grid.bits - 1
        self._scale = grid.scale(view.weight)
        # Tensors, not Python numbers, which would be converted at every column.
        self._step = 2 * self._scale / self._levels
        self._offset = torch.full_like(self._step, self._levels / 2)

    def encode(self, position: int, column: Tensor) -> Tensor:
        """Round one column ``(R,)`` and store its codes."""
        codes = torch.div(column, self._step, out=self._codes[position])
        codes.add_(self._offset).round_().clamp_(0, self._levels)
        return codes.sub(self._offset).mul_(self._step)

    def strips(self) -> StripRounder:
        """Return the compiled kernel."""
        from q2n.linalg.kernels.columns import round_uniform

        codes, levels = self._codes.numpy(), float(self._levels)
        group = np.zeros(len(codes), np.int64)
        step, before, after = (
            np.full((1, codes.shape[1]), float(value), np.float32) for value in (self._step, self._offset, 0)
        )

        def rounder(strip: Strip) -> None:
            grid = codes[strip.columns], step, after, group[strip.columns]
            round_uniform(strip.arrays(), grid, before, levels, strip.continued)

        return rounder

    def snap(self, position: int, column: Tensor) -> Tensor:
        """Return the nearest levels of the grid continued without end."""
        codes = torch.div(column, self._step).add_(self._offset).round_()
        return codes.sub_(self._offset).mul_(self._step)

    def finish(self, compensated: Tensor) -> PerTensorFormat:
        """Return the format in the layer's own column order; a matrix of zeros gets the scale zero."""
        scale = self._scale.where(self._scale > 2 * SMALLEST_RANGE, 0)
        return PerTensorFormat(self._stored(), scale, self._bits)
