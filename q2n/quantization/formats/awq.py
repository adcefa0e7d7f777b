"""AWQ's uniform grid and its search for clipped ranges (arXiv 2306.00978)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from q2n.linalg.kernels import usable
from q2n.quantization.formats.uniform import MIN_RANGE, UniformSpec, round_to_grid

CLIP_STEPS = 20
"""Steps into which the largest magnitude of a group is divided; the upper half of them are candidates."""


@dataclass(frozen=True)
class AwqSpec(UniformSpec):
    """Range from the smallest to the largest weight of a group, which need not contain zero.

    The zero point is clamped to the codes all the same.
    """

    def fit(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Fit scale and zero point of each row of ``weight`` ``(R, g)``; both ``(R,)``."""
        scale = (weight.amax(dim=1) - weight.amin(dim=1)).clamp(min=MIN_RANGE) / self.levels
        return scale, (-torch.round(weight.amin(dim=1) / scale)).clamp(0, self.levels)

    def rounded(self, weight: Tensor) -> Tensor:
        """Return ``quantize(weight).dequantize()``, bit for bit, without storing codes: for searches."""
        parts = []
        for part in weight.split(self.group_size if self.group_size != -1 else weight.shape[1], dim=1):
            scale, zero = self.fit(part)
            parts.append(round_to_grid(part, scale[:, None], zero[:, None], self.levels)[1])
        return torch.cat(parts, dim=1)

    def rounded_scaled(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Return ``rounded(weight * scale) / scale`` with ``scale`` ``(C,)``: a trial of the scale search."""
        if not usable(weight, scale):
            return self.rounded(weight * scale).div_(scale)
        from q2n.linalg.kernels.rounding import round_scaled
        from q2n.linalg.kernels.threads import over_rows

        rows, columns = weight.shape
        size = columns if self.group_size == -1 else self.group_size
        result = torch.empty(rows, columns)
        arrays = (weight.contiguous().numpy(), scale.contiguous().numpy(), size, self.levels, MIN_RANGE)
        over_rows(round_scaled, rows, *arrays, result.numpy())
        return result


def clip_limits(weight: Tensor, tokens: Tensor, grid: AwqSpec) -> Tensor:
    """Find per row and group the limit ``c`` for which quantizing ``clamp(w, -c, c)`` changes outputs least.

    Candidates are ``(1 - i/20) max|w|``, ``i = 0 .. 9``; ties go to the first. The error is
    ``(w - q)^T X_g^T X_g (w - q)`` over the sampled tokens, the group's contribution alone.

    Args:
        weight: ``(R, C)``.
        tokens: sampled inputs, ``(m, C)``.
        grid: number format, with its group size.

    Returns:
        ``(R, G)`` limits.
    """
    columns = weight.shape[1]
    size = columns if grid.group_size == -1 else grid.group_size
    parts = zip(weight.split(size, dim=1), tokens.to(weight).split(size, dim=1), strict=True)
    return torch.stack([_clip_group(part, inputs.T @ inputs, grid) for part, inputs in parts], dim=1)


def _clip_group(weight: Tensor, gram: Tensor, grid: AwqSpec) -> Tensor:
    largest = weight.abs().amax(dim=1)
    best = largest
    least = torch.full_like(largest, torch.inf)
    for step in range(CLIP_STEPS // 2):
        limit = largest * (1 - step / CLIP_STEPS)
        clipped = clamp_rows(weight, limit)
        scale, zero = grid.fit(clipped)
        error = round_to_grid(clipped, scale[:, None], zero[:, None], grid.levels)[1] - weight
        cost = ((error @ gram) * error).sum(dim=1)
        better = cost < least
        best, least = torch.where(better, limit, best), torch.where(better, cost, least)
    return best


def clamp_rows(weight: Tensor, limit: Tensor) -> Tensor:
    """Clamp rows ``(R, g)`` to ``-limit .. limit``, ``(R,)``."""
    return torch.maximum(torch.minimum(weight, limit[:, None]), -limit[:, None])


def clamp_groups(weight: Tensor, limits: Tensor, group_size: int) -> Tensor:
    """Clamp every group of a row ``(R, C)`` to its limit ``(R, G)``."""
    size = weight.shape[1] if group_size == -1 else group_size
    parts = zip(weight.split(size, dim=1), limits.unbind(dim=1), strict=True)
    return torch.cat([clamp_rows(part, limit) for part, limit in parts], dim=1)
