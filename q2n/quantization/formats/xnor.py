"""One bit per weight: ``mean + scale * sign`` per row and group, PB-LLM's low part (arXiv 2310.00034)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from q2n.linalg.kernels import GroupedCodes
from q2n.quantization.formats.base import CodesEncoder, GroupScaledFormat, SolverView, StripRounder

PARAMETER_BITS = 16
"""Bits of a stored mean or scale."""


@dataclass(frozen=True)
class XnorFormat(GroupScaledFormat):
    """One-bit format ``W = mean[:, group] + scale[:, group] * signs``.

    ``signs`` ``(R, C)`` int8 in -1, 0, 1 (zero only for a weight equal to its mean, and where another format
    holds the weight); ``mean`` and ``scale`` ``(R, G)``; ``group`` ``(C,)`` int64.
    """

    BY_ROW = "signs", "mean", "scale"
    SCALES = "mean", "scale"
    signs: Tensor
    mean: Tensor
    scale: Tensor
    group: Tensor

    def dequantize(self) -> Tensor:
        """Return the weight ``(R, C)``."""
        deviation = self.scale.index_select(1, self.group).mul_(self.signs)
        return deviation.add_(self.mean.index_select(1, self.group))

    def requantized(self, weight: Tensor) -> XnorFormat:
        """Choose the sign nearest to ``weight`` ``(R, C)``; means and scales are unchanged."""
        side = torch.sign(weight - self.mean[:, self.group]) * torch.sign(self.scale[:, self.group])
        return replace(self, signs=side.to(self.signs.dtype))

    def storage_bits(self) -> float:
        """Return the size in bits: one per weight, 16 per mean and scale."""
        return self.signs.numel() + PARAMETER_BITS * (self.mean.numel() + self.scale.numel())


@dataclass(frozen=True)
class XnorSpec:
    """Mean and mean absolute deviation per row and group, fitted once on the untouched weight."""

    group_size: int = -1

    def encoder(self, view: SolverView, mask: Tensor | None = None) -> XnorEncoder:
        """Create the encoder of one layer.

        ``mask`` ``(R, C)``, solver order, marks the entries of this format; None marks all. The others enter
        the statistics as zeros: PB-LLM's official code averages over the whole group.
        """
        return XnorEncoder(self, view, mask)


class XnorEncoder(CodesEncoder):
    """Column-by-column rounding to an :class:`XnorSpec`."""

    def __init__(self, grid: XnorSpec, view: SolverView, mask: Tensor | None) -> None:
        super().__init__(view)
        columns = len(view.order)
        size = columns if grid.group_size == -1 else min(grid.group_size, columns)
        self._group = torch.arange(columns, device=view.weight.device) // size
        weight = view.live_columns()
        if mask is not None:
            weight = weight * mask.T
        means, scales = [], []
        for part in weight.split(size):
            means.append(part.mean(dim=0))
            scales.append((part - means[-1]).abs_().mean(dim=0))
        self._mean, self._scale = torch.stack(means), torch.stack(scales)
        parameters = list(zip(self._mean.unbind(), self._scale.unbind(), strict=True))
        self._parameters = [parameters[index] for index in self._group.tolist()]

    def encode(self, position: int, column: Tensor) -> Tensor:
        """Round one column ``(R,)`` and store its signs."""
        mean, scale = self._parameters[position]
        signs = torch.sub(column, mean, out=self._codes[position]).sign_()
        return torch.addcmul(mean, scale, signs)

    def arrays(self, columns: slice) -> GroupedCodes:
        """Return the arguments of a kernel for ``columns``: signs, mean, scale, groups."""
        signs, group = self._codes[columns], self._group[columns]
        return signs.numpy(), self._mean.numpy(), self._scale.numpy(), group.numpy()

    def strips(self) -> StripRounder:
        """Return the compiled kernel, without a uniform part."""
        from q2n.linalg.kernels.columns import round_salient

        none = np.empty((0, 0), np.float32)
        uniform = none, none, none, np.empty(0, np.int64)
        return lambda strip: round_salient(strip.arrays(), self.arrays(strip.columns), none, uniform, 0.0)

    def finish(self, compensated: Tensor) -> XnorFormat:
        """Return the format in the layer's own column order."""
        return XnorFormat(
            signs=self._stored(torch.int8),
            mean=self._mean.T.contiguous(),
            scale=self._scale.T.contiguous(),
            group=self._group[torch.argsort(self._order)],
        )
