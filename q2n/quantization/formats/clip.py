"""The search for a smaller range of a uniform grid (GPTQ's ``mse`` option, QuaRot's ``w_clip``)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from q2n.linalg.kernels import usable
from q2n.quantization.formats.power import CLIP_NORM, MARGIN, minorants

CLIP_STEPS = 80
CLIP_RANGE = 100

CHUNK_ENTRIES = 2**16
"""Weights whose range is searched at once: they stay in the cache for all candidates."""

Parameters = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Scale and zero of the grids between two ends, number by number for ends of any shape."""


def search_range(
    parameters: Parameters, weight: Tensor, low: Tensor, high: Tensor, levels: int
) -> tuple[Tensor, Tensor]:
    """Scale and zero with both ends times ``1 - i/100``, ``i < 80``, least in a row's ``sum |Q(w) - w|^2.4``.

    Args:
        weight: ``(R, g)``.
        low, high: ends of the full range, ``(R,)``.
        levels: largest code.
    """
    if usable(weight, low, high):
        return _search_compiled(parameters, weight, low, high, levels)
    rows = max(1, CHUNK_ENTRIES // weight.shape[1])
    parts = zip(weight.split(rows), low.split(rows), high.split(rows), strict=True)
    found = [_search_rows(parameters, part.contiguous(), first, last, levels) for part, first, last in parts]
    return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])


def _search_compiled(
    parameters: Parameters, weight: Tensor, low: Tensor, high: Tensor, levels: int
) -> tuple[Tensor, Tensor]:
    from q2n.linalg.kernels.search import best_shrinkage
    from q2n.linalg.kernels.threads import over_rows

    factors = torch.tensor([1 - step / CLIP_RANGE for step in range(CLIP_STEPS)])[:, None]
    scales, zeros = (trials.contiguous() for trials in parameters(factors * low, factors * high))
    multiples = np.arange(CLIP_RANGE, CLIP_RANGE - CLIP_STEPS, -1)
    below = minorants(multiples, levels, weight.shape[1])
    best = torch.zeros(len(weight), dtype=torch.int64)
    arrays = (weight.contiguous().numpy(), scales.numpy(), zeros.numpy())
    over_rows(best_shrinkage, len(weight), *arrays, levels, multiples, below, MARGIN, best.numpy())
    return scales.gather(0, best[None])[0], zeros.gather(0, best[None])[0]


def _search_rows(
    parameters: Parameters, weight: Tensor, low: Tensor, high: Tensor, levels: int
) -> tuple[Tensor, Tensor]:
    scale, zero = parameters(low, high)
    least = torch.full_like(scale, torch.inf)
    error = torch.empty_like(weight)
    for step in range(CLIP_STEPS):
        factor = 1 - step / CLIP_RANGE
        trial, point = parameters(factor * low, factor * high)
        ratio, lowest = weight / trial[:, None], -point[:, None]
        torch.round(ratio, out=error).clamp_(lowest, lowest + levels).sub_(ratio)
        # |e|^2.4 through logarithms of squares: several times faster than a power.
        cost = error.square_().log_().mul_(CLIP_NORM / 2).exp_().sum(dim=1) * trial**CLIP_NORM
        better = cost < least
        least = torch.where(better, cost, least)
        scale, zero = torch.where(better, trial, scale), torch.where(better, point, zero)
    return scale, zero
