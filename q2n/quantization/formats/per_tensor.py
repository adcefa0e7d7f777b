"""One scale for a whole matrix, set by its root mean square (QuIP's grid, arXiv 2307.13304, section 5)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from q2n.quantization.formats.base import CodesEncoder, SolverView, Strip, StripRounder, TensorFormat

RANGE_RMS = 2.4
"""Half the grid's range in units of the matrix' root mean square."""

SMALLEST_RANGE = 1e-16
"""Added to half the range, so that it can be divided by. A matrix with less than that is stored as zeros:
there is no level at zero for its weights."""

SCALE_BITS = 16


@dataclass(frozen=True)
class PerTensorFormat(TensorFormat):
    """``W = diag(rows) scale (2 codes / (2^bits - 1) - 1)``: symmetric, no level at zero.

    ``codes`` ``(R, C)`` uint8, ``scale`` a scalar. ``rows`` ``(R,)`` is absent until a correction scales
    rows: the one scale cannot hold a factor a row, so the correction costs 16 bits a row here.
    """

    BY_ROW = "codes", "rows"
    codes: Tensor
    scale: Tensor
    bits: int
    rows: Tensor | None = None

    def dequantize(self) -> Tensor:
        levels = (1 << self.bits) - 1
        values = self.scale * (self.codes * (2 / levels) - 1)
        return values if self.rows is None else values * self.rows[:, None]

    def scale_rows(self, alpha: Tensor) -> PerTensorFormat:
        alpha = alpha.to(self.scale)
        return replace(self, rows=alpha if self.rows is None else self.rows * alpha)

    def requantized(self, weight: Tensor) -> PerTensorFormat:
        levels = (1 << self.bits) - 1
        step = 2 * self.scale / levels if self.rows is None else 2 * self.scale / levels * self.rows[:, None]
        codes = torch.round(weight / step + levels / 2).clamp_(0, levels)
        return replace(self, codes=torch.where(step == 0, self.codes, codes.to(torch.uint8)))

    def storage_bits(self) -> float:
        vector = 0 if self.rows is None else self.rows.numel()
        return self.codes.numel() * self.bits + SCALE_BITS * (1 + vector)


@dataclass(frozen=True)
class PerTensorSpec:
    """``2^bits`` levels between ``-2.4`` and ``2.4`` root mean squares."""

    bits: int

    def scale(self, weight: Tensor) -> Tensor:
        """Half the grid's range, a scalar tensor."""
        rms: Tensor = torch.linalg.vector_norm(weight) / weight.numel() ** 0.5
        return rms.mul(RANGE_RMS).add(SMALLEST_RANGE)

    def target(self, weight: Tensor) -> Tensor:
        """What a solver should aim at: ``weight`` clipped to the grid's range, as QuIP's lattice map does."""
        scale = self.scale(weight)
        return torch.clamp(weight, -scale, scale)

    def encoder(self, view: SolverView) -> PerTensorEncoder:
        return PerTensorEncoder(self, view)


class PerTensorEncoder(CodesEncoder):
    """Rounds columns to a :class:`PerTensorSpec`."""

    def __init__(self, grid: PerTensorSpec, view: SolverView) -> None:
        super().__init__(view)
        self._bits, self._levels = grid.bits, 2**grid.bits - 1
        self._scale = grid.scale(view.weight)
        # Scalars live in tensors: as numbers they would be converted at every column.
        self._step = 2 * self._scale / self._levels
        self._offset = torch.full_like(self._step, self._levels / 2)

    def encode(self, position: int, column: Tensor) -> Tensor:
        codes = torch.div(column, self._step, out=self._codes[position])
        codes.add_(self._offset).round_().clamp_(0, self._levels)
        return codes.sub(self._offset).mul_(self._step)

    def strips(self) -> StripRounder:
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
        """The nearest level of the grid continued without end."""
        codes = torch.div(column, self._step).add_(self._offset).round_()
        return codes.sub_(self._offset).mul_(self._step)

    def finish(self, compensated: Tensor) -> PerTensorFormat:
        scale = self._scale.where(self._scale > 2 * SMALLEST_RANGE, 0)
        return PerTensorFormat(self._stored(), scale, self._bits)
