"""The 2.4-th power of an error, and polynomials below it that bound a candidate grid's error from below.

With ``d`` a weight's distance from its level and ``h`` half a step, ``u = |d| / h``:

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

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

CLIP_NORM = 2.4

TOUCH = 2.5
"""Near the mean distance, in half steps, of Gaussian weights beyond the outermost of 4 to 16 levels."""

ROUND_OFF = 1e-13
"""Of a double-precision sum, in units of its largest possible value."""

MARGIN = 1e-4
"""By how much a bound is mistrusted, for the rounding of what it is compared with."""


def _touching(ends: Sequence[float], place: float, first: int) -> npt.NDArray[np.float64]:
    """Coefficients of ``u^first, u^(first+1), ...`` for ``u^2.4`` at ``ends`` and, with its slope, at
    ``place``."""
    powers = np.arange(first, first + len(ends) + 2)
    points = np.array([*ends, place])
    slopes = powers * place ** (powers - 1.0)
    values = np.array([*points**CLIP_NORM, CLIP_NORM * place ** (CLIP_NORM - 1)])
    found: npt.NDArray[np.float64] = np.linalg.solve(np.vstack([points[:, None] ** powers, slopes]), values)
    return found


INSIDE = _touching([1], 0.5, first=1)
"""Of ``u, u^2, u^3``."""

BEYOND = _touching([1], TOUCH, first=0)
"""Of ``1, u, u^2``."""


def minorants(multiples: npt.NDArray[np.int64], levels: int, columns: int) -> npt.NDArray[np.float64]:
    """One row a step of ``multiples`` units: coefficients in ``|d|`` of :data:`INSIDE` and :data:`BEYOND`,
    and what round-off can add to their sum over ``columns`` weights; ``(S, 7)``, in powers of the unit."""
    half = multiples[:, None] / 2
    inside = INSIDE * half ** (CLIP_NORM - np.arange(1, 4))
    beyond = BEYOND * half ** (CLIP_NORM - np.arange(3))
    reach = float(levels * multiples.max()) ** np.arange(1, 4)
    largest = np.abs(inside) @ reach + np.abs(beyond) @ np.array([1, *reach[:2]])
    return np.column_stack([inside, beyond, ROUND_OFF * columns * largest])
