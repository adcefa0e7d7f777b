"""The search for a smaller range of a uniform grid (GPTQ's ``mse`` option, QuaRot's ``w_clip``).

What is least is the 2.4-th power of an error. Polynomials below that power bound a candidate grid's error
from below, here and in :mod:`q2n.quantization.formats.mse2d`. With ``d`` a weight's distance from its level
and ``h`` half a step, ``u = |d| / h``:

* between two levels, ``u <= 1``, the cubic that is ``u^2.4`` at 0, at 1, and at 1/2 with its slope. What is
  left of ``u^2.4`` is its fourth derivative, which is negative, times ``u (u - 1/2)^2 (u - 1) / 24``;
* beyond the outermost levels, ``u >= 1``, the square that is ``u^2.4`` at 1, and at :data:`TOUCH` with its
  slope. What is left is the third derivative, which is positive, times ``(u - 1) (u - TOUCH)^2 / 6``.

So sums of them over a row are sums of moments, which need no pass over the weights: whatever the candidate,
its levels ``m i`` and the boundaries ``(m +- 1/2) i`` between them are multiples of half a unit, and between
two neighbouring multiples the moments are polynomials in those of the weights there. For Gaussian weights at
3 bits the sum is about 1 % below that of the power.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from q2n.linalg.kernels import Doubles, Places, usable

CLIP_NORM = 2.4

TOUCH = 2.5
"""Near the mean distance, in half steps, of Gaussian weights beyond the outermost of 4 to 16 levels."""

ROUND_OFF = 1e-13
"""Of a double-precision sum, in units of its largest possible value."""

MARGIN = 1e-4
"""By how much a bound is mistrusted, for the rounding of what it is compared with."""

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

    factors = torch.tensor([1 - step / CLIP_RANGE for step in range(CLIP_STEPS)])[:, None]
    scales, zeros = (trials.contiguous() for trials in parameters(factors * low, factors * high))
    multiples = np.arange(CLIP_RANGE, CLIP_RANGE - CLIP_STEPS, -1)
    best = best_by_kernel(best_shrinkage, [weight, scales, zeros], levels, multiples)
    return scales.gather(0, best[None])[0], zeros.gather(0, best[None])[0]


def best_by_kernel(
    kernel: Callable[..., None], tensors: Sequence[Tensor], levels: int, multiples: Places
) -> Tensor:
    """Each row's candidate, ``(R,)`` int64, that a kernel of :mod:`q2n.linalg.kernels.search` finds best; the
    first of ``tensors`` is the weight ``(R, g)``."""
    from q2n.linalg.kernels.threads import over_rows

    rows, columns = tensors[0].shape
    best, below = torch.zeros(rows, dtype=torch.int64), minorants(multiples, levels, columns)
    arrays = [tensor.contiguous().numpy() for tensor in tensors]
    over_rows(kernel, rows, *arrays, levels, (multiples, below, MARGIN), best.numpy())
    return best


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


def _touching(ends: Sequence[float], place: float, first: int) -> Doubles:
    """Coefficients of ``u^first, u^(first+1), ...`` for ``u^2.4`` at ``ends`` and, with its slope, at
    ``place``."""
    powers = np.arange(first, first + len(ends) + 2)
    points = np.array([*ends, place])
    slopes = powers * place ** (powers - 1.0)
    values = np.array([*points**CLIP_NORM, CLIP_NORM * place ** (CLIP_NORM - 1)])
    found: Doubles = np.linalg.solve(np.vstack([points[:, None] ** powers, slopes]), values)
    return found


INSIDE = _touching([1], 0.5, first=1)
"""Of ``u, u^2, u^3``."""

BEYOND = _touching([1], TOUCH, first=0)
"""Of ``1, u, u^2``."""


def minorants(multiples: Places, levels: int, columns: int) -> Doubles:
    """One row a step of ``multiples`` units: coefficients in ``|d|`` of :data:`INSIDE` and :data:`BEYOND`,
    and what round-off can add to their sum over ``columns`` weights; ``(S, 7)``, in powers of the unit."""
    half = multiples[:, None] / 2
    inside = INSIDE * half ** (CLIP_NORM - np.arange(1, 4))
    beyond = BEYOND * half ** (CLIP_NORM - np.arange(3))
    reach = float(levels * multiples.max()) ** np.arange(1, 4)
    largest = np.abs(inside) @ reach + np.abs(beyond) @ np.array([1, *reach[:2]])
    return np.column_stack([inside, beyond, ROUND_OFF * columns * largest])
