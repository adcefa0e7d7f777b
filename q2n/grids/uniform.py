"""Uniform grids with one scale and zero point per (row, group of columns): spec of GPTQ's quantizer.

Values are ``scale * (code - zero)`` with ``code`` in ``0 .. 2^bits - 1``. The symmetric variant is the same
*offset* grid with ``zero = 2^(bits-1)`` (it keeps all levels), as GPTQ, LeanQuant and PB-LLM define it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from q2n.grids.base import SolverView

SCALE_BITS = 16
"""A stored scale is a float16; a stored zero point is an integer of as many bits as a code."""

CLIP_STEPS = 80
CLIP_RANGE = 100
CLIP_NORM = 2.4


@dataclass(frozen=True)
class UniformFormat:
    """``W = scale[:, group] * (codes - zero[:, group])``.

    ``codes`` ``(R, C)`` uint8, ``scale`` and ``zero`` ``(R, G)`` float32, ``group`` ``(C,)`` int64: the group of
    each column, so groups of permuted columns (act-order) need no special case.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    group: Tensor
    bits: int
    stores_group_index: bool = False
    stores_zero: bool = True

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def dequantize(self) -> Tensor:
        return self.scale[:, self.group] * (self.codes - self.zero[:, self.group])

    def scale_rows(self, alpha: Tensor) -> UniformFormat:
        return replace(self, scale=self.scale * alpha.to(self.scale)[:, None])

    def scale_groups(self, factor: Tensor) -> UniformFormat:
        """Scales multiplied by ``factor`` ``(R, G)``; codes unchanged."""
        return replace(self, scale=self.scale * factor.to(self.scale))

    def select_rows(self, start: int, stop: int) -> UniformFormat:
        rows = slice(start, stop)
        return replace(self, codes=self.codes[rows], scale=self.scale[rows], zero=self.zero[rows])

    def storage_bits(self) -> float:
        rows, columns = self.codes.shape
        parameters = self.scale.numel() * (SCALE_BITS + (self.bits if self.stores_zero else 0))
        index = columns * max(1, (self.scale.shape[1] - 1).bit_length()) if self.stores_group_index else 0
        return rows * columns * self.bits + parameters + index

    def tensors(self) -> Mapping[str, Tensor]:
        return {"codes": self.codes, "scale": self.scale, "zero": self.zero, "group": self.group}


@dataclass(frozen=True)
class UniformGrid:
    """Min-max range per (row, group), optionally shrunk by a search (``clip='mse'``).

    Groups are runs of ``group_size`` consecutive *solver* columns refitted on the compensated weight, or,
    with ``static_groups``, runs of the layer's own columns fitted once on the untouched weight. A last group
    may be shorter. ``group_size=-1`` is one group, fitted on the untouched weight.
    """

    bits: int
    group_size: int = -1
    symmetric: bool = False
    clip: Literal["minmax", "mse"] = "minmax"
    static_groups: bool = False

    @property
    def levels(self) -> int:
        return 2**self.bits - 1

    def fit(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero of each row of ``weight`` ``(R, g)``; both ``(R,)`` float32."""
        low = weight.amin(dim=1).clamp(max=0)
        high = weight.amax(dim=1).clamp(min=0)
        if self.symmetric:
            high = torch.maximum(low.abs(), high)
            low = torch.where(low < 0, -high, low)
        empty = (low == 0) & (high == 0)
        low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
        if self.clip == "mse":
            return self._search(weight, low, high)
        return self._parameters(low, high)

    def _parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        scale = (high - low) / self.levels
        if self.symmetric:
            return scale, torch.full_like(scale, (self.levels + 1) / 2)
        return scale, torch.round(-low / scale)

    def _search(self, weight: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Per row the shrink factor ``1 - i/100``, ``i < 80``, least in ``sum |Q(w) - w|^2.4`` (GPTQ's ``mse``)."""
        scale, zero = self._parameters(low, high)
        best = torch.full_like(scale, torch.inf)
        for step in range(CLIP_STEPS):
            factor = 1 - step / CLIP_RANGE
            trial_scale, trial_zero = self._parameters(factor * low, factor * high)
            values = round_to_grid(weight, trial_scale[:, None], trial_zero[:, None], self.levels)[1]
            error = (values - weight).abs_().pow_(CLIP_NORM).sum(dim=1)
            better = error < best
            best = torch.where(better, error, best)
            scale, zero = torch.where(better, trial_scale, scale), torch.where(better, trial_zero, zero)
        return scale, zero

    def encoder(self, view: SolverView) -> UniformEncoder:
        return UniformEncoder(self, view)

    def quantize(self, weight: Tensor) -> UniformFormat:
        """Round-to-nearest of a whole matrix ``(R, C)``: every group fitted on the matrix as it is."""
        rows, columns = weight.shape
        size = columns if self.group_size == -1 else self.group_size
        group = torch.arange(columns, device=weight.device) // size
        parameters = [self.fit(part) for part in weight.split(size, dim=1)]
        scale = torch.stack([scale for scale, _ in parameters], dim=1)
        zero = torch.stack([zero for _, zero in parameters], dim=1)
        codes, _ = round_to_grid(weight, scale[:, group], zero[:, group], self.levels)
        return UniformFormat(
            codes.to(torch.uint8), scale, zero, group, self.bits, stores_zero=not self.symmetric
        )


def round_to_grid(weight: Tensor, scale: Tensor, zero: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Codes (as float) and values of ``weight`` on the grid; shapes broadcast."""
    codes = torch.round(weight / scale).add_(zero).clamp_(0, levels)
    return codes, scale * (codes - zero)


class UniformEncoder:
    """Column-by-column rounding to a :class:`UniformGrid`; parameters kept as contiguous ``(G, R)``."""

    def __init__(self, grid: UniformGrid, view: SolverView) -> None:
        rows, columns = view.weight.shape
        self._grid, self._order, self._columns = grid, view.order, columns
        size = columns if grid.group_size == -1 else min(grid.group_size, columns)
        self._size = size
        self._codes = torch.empty(columns, rows, dtype=torch.uint8, device=view.weight.device)
        positions = torch.arange(columns, device=view.weight.device)
        self._fitted_ahead = grid.static_groups or size == columns
        source = view.order if grid.static_groups else positions
        group = source // size
        self._group_of_position: list[int] = group.tolist()
        count = -(-columns // size)
        self._scale = torch.zeros(count, rows, device=view.weight.device)
        self._zero = torch.zeros(count, rows, device=view.weight.device)
        if self._fitted_ahead:
            own = torch.empty_like(view.weight)
            own[:, source] = view.weight
            for index, part in enumerate(own.split(size, dim=1)):
                self._scale[index], self._zero[index] = grid.fit(part)

    def enter(self, position: int, buffer: Tensor) -> None:
        if self._fitted_ahead or position % self._size:
            return
        index = position // self._size
        part = buffer[position : position + self._size].T
        self._scale[index], self._zero[index] = self._grid.fit(part)

    def encode(self, position: int, column: Tensor) -> Tensor:
        index = self._group_of_position[position]
        codes, values = round_to_grid(column, self._scale[index], self._zero[index], self._grid.levels)
        self._codes[position] = codes
        return values

    def finish(self, compensated: Tensor) -> UniformFormat:
        inverse = torch.argsort(self._order)
        group = torch.tensor(self._group_of_position, device=self._order.device)[inverse]
        natural = torch.arange(self._columns, device=group.device) // self._size
        return UniformFormat(
            codes=self._codes[inverse].T.contiguous(),
            scale=self._scale.T.contiguous(),
            zero=self._zero.T.contiguous(),
            group=group,
            bits=self._grid.bits,
            stores_group_index=not torch.equal(group, natural),
            stores_zero=not self._grid.symmetric,
        )
