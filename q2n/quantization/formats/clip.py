"""Search for a smaller range of a uniform grid (GPTQ's ``mse`` option, QuaRot's ``w_clip``).

The search minimises the error in the power 2.4. Polynomials below that power bound a candidate grid's error
from below, here and in :mod:`q2n.quantization.formats.mse2d`. With ``d`` a weight's distance from its level
and ``h`` half a step, ``u = |d| / h``:

* between two levels, ``u <= 1``, the cubic that equals ``u^2.4`` at 0, at 1, and at 1/2 with its slope. The
  remainder of ``u^2.4`` is its fourth derivative, which is negative, times ``u (u - 1/2)^2 (u - 1) / 24``;
* beyond the outermost levels, ``u >= 1``, the square that equals ``u^2.4`` at 1, and at :data:`TOUCH` with
  its slope. The remainder is the third derivative, which is positive, times ``(u - 1) (u - TOUCH)^2 / 6``.

So sums of the polynomials over a row are sums of moments, which need no pass over the weights: for every
candidate, its levels ``m i`` and the boundaries ``(m +- 1/2) i`` between them are multiples of half a unit,
and between two neighbouring multiples the moments are polynomials in those of the weights there. For Gaussian
weights at 3 bits the bound is about 1 % below the error itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from q2n.linalg.kernels import Doubles, Places, usable

CLIP_NORM = 2.4
"""Power of the error that the search minimises."""

TOUCH = 2.5
"""Point of contact, near the mean distance, in half steps, of Gaussian weights beyond the outermost of 4 to
16 levels."""

ROUND_OFF = 1e-13
"""Round-off of a double-precision sum, in units of its largest possible value."""

MARGIN = 1e-4
"""Relative tolerance of a bound, for the round-off of the float32 error it is compared with."""

CLIP_STEPS = 80
"""Number of candidate ranges, from the full range downwards."""

CLIP_RANGE = 100
"""Steps into which the full range is divided."""

CHUNK_ENTRIES = 2**16
"""Weights per block of the search, which stay in the cache for all candidates."""

Parameters = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Function that maps two ends of a range, of any shape, to scale and zero point, elementwise."""


def search_range(
    parameters: Parameters, weight: Tensor, low: Tensor, high: Tensor, levels: int
) -> tuple[Tensor, Tensor]:
    """Find scale and zero point with the least ``sum |Q(w) - w|^2.4`` per row.

    Candidates have both ends of the range multiplied by ``1 - i/100``, ``i < 80``.

    Args:
        parameters: function that maps the ends of a range to scale and zero point.
        weight: ``(R, g)``.
        low: lower ends of the full range, ``(R,)``.
        high: upper ends of the full range, ``(R,)``.
        levels: largest code.

    Returns:
        Scale and zero point, both ``(R,)``.
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
    """Return each row's best candidate, ``(R,)`` int64, by a kernel of :mod:`q2n.linalg.kernels.search`.

    The first of ``tensors`` is the weight ``(R, g)``.
    """
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
    """Compute the polynomial that equals ``u^2.4`` at ``ends`` and, with its slope, at ``place``.

    Returns:
        Coefficients of ``u^first, u^(first+1), ...``.
    """
    powers = np.arange(first, first + len(ends) + 2)
    points = np.array([*ends, place])
    slopes = powers * place ** (powers - 1.0)
    values = np.array([*points**CLIP_NORM, CLIP_NORM * place ** (CLIP_NORM - 1)])
    found: Doubles = np.linalg.solve(np.vstack([points[:, None] ** powers, slopes]), values)
    return found


INSIDE = _touching([1], 0.5, first=1)
"""Coefficients of ``u, u^2, u^3`` between two levels."""

BEYOND = _touching([1], TOUCH, first=0)
"""Coefficients of ``1, u, u^2`` beyond the outermost levels."""


def minorants(multiples: Places, levels: int, columns: int) -> Doubles:
    """Compute the polynomials below the error of a weight, for steps of ``multiples`` units.

    Returns:
        ``(S, 7)``, in powers of the unit: coefficients in ``|d|`` of :data:`INSIDE` and :data:`BEYOND`, and
        the largest round-off of their sum over ``columns`` weights.
    """
    half = multiples[:, None] / 2
    inside = INSIDE * half ** (CLIP_NORM - np.arange(1, 4))
    beyond = BEYOND * half ** (CLIP_NORM - np.arange(3))
    reach = float(levels * multiples.max()) ** np.arange(1, 4)
    largest = np.abs(inside) @ reach + np.abs(beyond) @ np.array([1, *reach[:2]])
    return np.column_stack([inside, beyond, ROUND_OFF * columns * largest])
