"""Lloyd's iterations for weighted clusters of scalars, row by row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from q2n.kernels import Floats, Places
from q2n.kernels.jit import jit

Doubles = npt.NDArray[np.float64]


@jit
def lloyd_rows(
    values: Floats,
    place: Places,
    weights: Floats,
    tolerance: Doubles,
    iterations: int,
    centres: Doubles,
    first: int,
    last: int,
) -> None:
    """Iterate on ``centres`` ``(R, K)`` of rows ``first .. last-1`` of ``values`` ``(R, C)``.

    ``place`` ``(R, C)`` puts a row's values in rising order, ``weights`` ``(C,)`` belong to columns; a row
    stops when the squares of its centres' moves add up to no more than ``tolerance`` ``(R,)``. Conventions
    are those of :mod:`q2n.grids.kmeans`.
    """
    count, clusters = values.shape[1], centres.shape[1]
    ordered, mass, moment = np.empty(count, np.float32), np.zeros(count + 1), np.zeros(count + 1)
    ends, held, drawn = np.empty(clusters + 1, np.int64), np.empty(clusters), np.empty(clusters)
    for r in range(first, last):
        for c in range(count):
            weight, value = weights[place[r, c]], values[r, place[r, c]]
            ordered[c] = value
            mass[c + 1] = mass[c] + weight
            moment[c + 1] = moment[c] + np.float32(weight * value)
        for _ in range(iterations):
            _divide(ordered, centres[r], ends)
            for k in range(clusters):
                held[k] = mass[ends[k + 1]] - mass[ends[k]]
                drawn[k] = moment[ends[k + 1]] - moment[ends[k]]
            if np.any(ends[1:] == ends[:-1]):
                _relocate(ordered, weights[place[r]], centres[r], ends, held, drawn)
            moved = 0.0
            for k in range(clusters):
                new = drawn[k] / held[k] if held[k] > 0 else centres[r, k]
                moved += (new - centres[r, k]) ** 2
                centres[r, k] = new
            centres[r].sort()
            if moved <= tolerance[r]:
                break


@jit
def _divide(ordered: Floats, centres: Doubles, ends: Places) -> None:
    """Ends of the clusters of sorted values: a value belongs to its nearest centre, or the lower of two."""
    ends[0], ends[-1] = 0, len(ordered)
    for k in range(len(centres) - 1):
        middle = np.float32((centres[k + 1] + centres[k]) / 2)
        ends[k + 1] = np.searchsorted(ordered, middle, side="right")


@jit
def _relocate(
    ordered: Floats, weights: Floats, centres: Doubles, ends: Places, held: Doubles, drawn: Doubles
) -> None:
    """Give each empty cluster the value farthest from its own centre, taken from that cluster."""
    counts, owner = np.diff(ends), np.empty(len(ordered), np.int64)
    distance = np.empty(len(ordered))
    for k in range(len(centres)):
        for c in range(ends[k], ends[k + 1]):
            owner[c], distance[c] = k, (ordered[c] - centres[k]) ** 2
    if distance.max() == 0:
        return
    for k in range(len(centres)):
        if ends[k + 1] > ends[k]:
            continue
        c = int(np.argmax(distance))
        if distance[c] < 0:
            return
        distance[c] = -1
        weight, source = weights[c], owner[c]
        product = np.float32(weight * ordered[c])
        drawn[source] -= product
        held[source] -= weight
        drawn[k], held[k] = product, weight
        counts[source] -= 1
        if counts[source] == 0:
            # scikit-learn works on centred values and leaves the emptied cluster at zero.
            drawn[source], held[source] = ordered.mean(), 1
