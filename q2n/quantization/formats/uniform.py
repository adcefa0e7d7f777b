"""Uniform grids with one scale and zero point per row and group of columns: GPTQ's quantizer.

Values are ``scale * (code - zero)`` with ``code`` in ``0 .. 2^bits - 1``. The symmetric variant is the same
*offset* grid with ``zero = 2^(bits-1)`` (it keeps all levels), as GPTQ, LeanQuant and PB-LLM define it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from q2n.linalg.dense import require_finite, row_parts
from q2n.linalg.kernels import GroupedCodes, usable
from q2n.quantization.formats.base import CodesEncoder, GroupScaledFormat, SolverView, StripRounder
from q2n.quantization.formats.clip import search_range

SCALE_BITS = 16
"""Bits of a stored scale (FP16); a stored zero point is an integer with as many bits as a code."""

SMALLEST_RANGE = 1e-30
"""Range below which rows and groups are rounded to zero: their step, and even more a search's unit of a few
thousandths of the step, would be subnormal, with too few digits to divide by, or zero."""

MIN_RANGE = 1e-5
"""Smallest range of a group in AWQ's official code, and largest magnitude of a group in QuaRot's."""


@dataclass(frozen=True)
class UniformFormat(GroupScaledFormat):
    """Uniform format ``W = scale[:, group] * (codes - zero[:, group])``.

    ``codes`` ``(R, C)`` uint8, ``scale`` and ``zero`` ``(R, G)`` float32, ``group`` ``(C,)`` int64: the group
    of each column, so groups of permuted columns (act-order) need no special case.
    """

    BY_ROW = "codes", "scale", "zero"
    SCALES = ("scale",)
    codes: Tensor
    scale: Tensor
    zero: Tensor
    group: Tensor
    bits: int
    stores_group_index: bool = False
    stores_zero: bool = True

    def dequantize(self) -> Tensor:
        """Return the weight ``(R, C)`` float32."""
        # index_select and in-place operations are five times faster than scale[:, group] * (...).
        weight = self.codes.to(self.scale)
        for rows in row_parts(weight):
            part = weight[rows].sub_(self.zero[rows].index_select(1, self.group))
            part.mul_(self.scale[rows].index_select(1, self.group))
        return weight

    def requantized(self, weight: Tensor) -> UniformFormat:
        """Round ``weight`` ``(R, C)`` to the grid as it is; codes of groups with scale zero are unchanged."""
        scale, zero = self.scale[:, self.group], self.zero[:, self.group]
        codes = torch.round(weight / scale + zero).clamp_(0, (1 << self.bits) - 1)
        # A scale of zero stands for zero whatever the code.
        return replace(self, codes=torch.where(scale == 0, self.codes, codes.to(torch.uint8)))

    def storage_bits(self) -> float:
        """Return the size in bits: codes, scales, zero points and, if stored, the group index."""
        rows, columns = self.codes.shape
        parameters = self.scale.numel() * (SCALE_BITS + (self.bits if self.stores_zero else 0))
        index = columns * max(1, (self.scale.shape[1] - 1).bit_length()) if self.stores_group_index else 0
        return rows * columns * self.bits + parameters + index


@dataclass(frozen=True)
class UniformSpec:
    """Min-max range per row and group, optionally shrunk by a search (``clip='mse'``).

    Groups are runs of ``group_size`` consecutive *solver* columns refitted on the compensated weight, or,
    with ``static_groups``, runs of the layer's own columns fitted once on the weight with dead columns at
    zero. A last group may be shorter. ``group_size=-1`` is one group, fitted on the untouched weight, dead
    columns included (GPTQ's official code does all three).
    """

    bits: int
    group_size: int = -1
    symmetric: bool = False
    clip: Literal["minmax", "mse"] = "minmax"
    static_groups: bool = False

    @property
    def levels(self) -> int:
        """Largest code, ``2^bits - 1``."""
        return (1 << self.bits) - 1

    def fit(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Fit scale and zero point of each row of ``weight`` ``(R, g)``; both ``(R,)`` float32."""
        low = weight.amin(dim=1).clamp(max=0)
        high = weight.amax(dim=1).clamp(min=0)
        if self.symmetric:
            high = torch.maximum(low.abs(), high)
            low = torch.where(low < 0, -high, low)
        empty = high - low < SMALLEST_RANGE
        low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
        return self.parameters(weight, low, high)

    def parameters(self, weight: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Compute scale and zero point of rows with the range ``low .. high`` ``(R,)``, zero included."""
        if self.clip == "minmax":
            return self._parameters(low, high)
        return search_range(self._parameters, weight, low, high, self.levels)

    def _parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        scale = (high - low) / self.levels
        if self.symmetric:
            return scale, torch.full_like(scale, (self.levels + 1) / 2)
        return scale, torch.round(-low / scale)

    def encoder(self, view: SolverView) -> UniformEncoder:
        """Create the encoder of one layer."""
        return UniformEncoder(self, view)

    def quantize(self, weight: Tensor) -> UniformFormat:
        """Round a whole matrix ``(R, C)`` to nearest; every group is fitted on the matrix as it is.

        Raises:
            NumericalError: a weight or the range of a group is not finite.
        """
        require_finite(weight, "weight to be rounded")
        columns = weight.shape[1]
        size = columns if self.group_size == -1 else self.group_size
        group = torch.arange(columns, device=weight.device) // size
        parameters = [self.fit(part) for part in weight.split(size, dim=1)]
        scale = torch.stack([scale for scale, _ in parameters], dim=1)
        zero = torch.stack([zero for _, zero in parameters], dim=1)
        require_finite(scale, "scales (the range of the weights overflows)")
        codes = torch.empty_like(weight, dtype=torch.uint8)
        for rows in row_parts(weight):
            steps, zeros = (part[rows].index_select(1, group) for part in (scale, zero))
            codes[rows] = (weight[rows] / steps).round_().add_(zeros).clamp_(0, self.levels).to(torch.uint8)
        return UniformFormat(codes, scale, zero, group, self.bits, stores_zero=not self.symmetric)


@dataclass(frozen=True)
class CentredSpec(UniformSpec):
    """Grid whose symmetric variant is centred on zero (QuaRot, arXiv 2404.00456).

    Symmetric: values ``s k`` with ``k`` in ``-2^(b-1) .. 2^(b-1) - 1`` and ``s = max|w| / (2^(b-1) - 1)``,
    so that ``+max`` is a level and ``-max`` the last but one. Stored as codes ``k + 2^(b-1)`` with the zero
    point ``2^(b-1)``. Asymmetric: the grid of :class:`UniformSpec`.
    """

    def fit(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Fit scale and zero point of each row of ``weight`` ``(R, g)``; both ``(R,)`` float32."""
        if not self.symmetric:
            return super().fit(weight)
        largest = weight.abs().amax(dim=1).clamp(min=MIN_RANGE)
        return self.parameters(weight, -largest, largest)

    def _parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if not self.symmetric:
            return super()._parameters(low, high)
        offset = 1 << (self.bits - 1)
        return high / (offset - 1), torch.full_like(high, float(offset))


def column_errors(weight: Tensor, scale: Tensor, zero: Tensor, levels: int) -> Tensor:
    """Compute the squared rounding error ``||W_j - Q(W_j)||^2`` of every column ``j``.

    Args:
        weight: ``(R, C)``.
        scale: per-channel scale, ``(R,)``.
        zero: zero point of each row, ``(R,)``.
        levels: largest code.

    Returns:
        ``(C,)``.
    """
    if not usable(weight, scale, zero):
        _, values = round_to_grid(weight, scale[:, None], zero[:, None], levels)
        return (weight - values).square().sum(dim=0)
    from q2n.linalg.kernels.rounding import add_column_errors

    errors = torch.zeros(weight.shape[1], dtype=torch.float64)
    rows = weight.contiguous().numpy()
    add_column_errors(rows, scale.contiguous().numpy(), zero.contiguous().numpy(), levels, errors.numpy())
    return errors.to(weight)


def round_to_grid(weight: Tensor, scale: Tensor, zero: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Return the codes (as float) and the rounded values of ``weight``; shapes broadcast."""
    codes = torch.round(weight / scale).add_(zero).clamp_(0, levels)
    return codes, scale * (codes - zero)


class UniformEncoder(CodesEncoder):
    """Column-by-column rounding to a :class:`UniformSpec`; parameters are contiguous ``(G, R)``."""

    def __init__(self, grid: UniformSpec, view: SolverView) -> None:
        super().__init__(view)
        rows, columns = view.weight.shape
        self._grid = grid
        size = columns if grid.group_size == -1 else min(grid.group_size, columns)
        self._size = size
        self._fitted_ahead = grid.static_groups or size == columns
        source = view.order if grid.static_groups else torch.arange(columns, device=view.weight.device)
        self._group = source // size
        count = -(-columns // size)
        self._scale = torch.zeros(count, rows, device=view.weight.device)
        self._zero = torch.zeros(count, rows, device=view.weight.device)
        if self._fitted_ahead:
            columns_to_fit = view.weight.T if grid.group_size == -1 else view.live_columns()
            own = columns_to_fit[torch.argsort(source)] if grid.static_groups else columns_to_fit
            for index, part in enumerate(own.split(size)):
                self._scale[index], self._zero[index] = grid.fit(part.T)
        parameters = list(zip(self._scale.unbind(), self._zero.unbind(), strict=True))
        self._parameters = [parameters[index] for index in self._group.tolist()]
        self._columns_of_codes = self._codes.unbind()

    def enter(self, position: int, buffer: Tensor) -> None:
        """Fit the group that begins at ``position``, unless all groups are fitted before the first column."""
        if self._fitted_ahead or position % self._size:
            return
        index = position // self._size
        part = buffer[position : position + self._size].T
        self._scale[index], self._zero[index] = self._grid.fit(part)

    def encode(self, position: int, column: Tensor) -> Tensor:
        """Round one column ``(R,)`` and store its codes."""
        scale, zero = self._parameters[position]
        codes = torch.div(column, scale, out=self._columns_of_codes[position]).round_().add_(zero)
        return codes.clamp_(0, self._grid.levels).sub(zero).mul_(scale)

    def arrays(self, columns: slice) -> GroupedCodes:
        """Return the arguments of a kernel for ``columns``: codes, scale, zero, groups."""
        codes, group = self._codes[columns], self._group[columns]
        return codes.numpy(), self._scale.numpy(), self._zero.numpy(), group.numpy()

    def strips(self) -> StripRounder:
        """Return the compiled kernel."""
        from q2n.linalg.kernels.columns import round_uniform

        before, levels = torch.zeros_like(self._scale).numpy(), float(self._grid.levels)
        return lambda strip: round_uniform(
            strip.arrays(), self.arrays(strip.columns), before, levels, strip.continued
        )

    def snap(self, position: int, column: Tensor) -> Tensor:
        """Return the nearest levels of the grid continued without end."""
        scale, _ = self._parameters[position]
        return torch.div(column, scale).round_().mul_(scale)

    def finish(self, compensated: Tensor) -> UniformFormat:
        """Return the format in the layer's own column order, with the group index if groups are permuted."""
        group = self._group[torch.argsort(self._order)]
        natural = torch.arange(len(group), device=group.device) // self._size
        return UniformFormat(
            codes=self._stored(),
            scale=self._scale.T.contiguous(),
            zero=self._zero.T.contiguous(),
            group=group,
            bits=self._grid.bits,
            stores_group_index=not torch.equal(group, natural),
            stores_zero=not self._grid.symmetric,
        )
