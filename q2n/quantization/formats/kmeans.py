"""Weighted k-means of many short rows of scalars at once, with scikit-learn's conventions.

In one dimension a cluster is an interval, so with sorted values and running sums an iteration costs one
binary search per boundary instead of one distance per value and centre. Starts, stopping rule, handling of
empty clusters and random numbers are those of ``sklearn.cluster.KMeans`` (1.9, ``n_init='auto'``,
``max_iter=100``, ``tol=1e-6``), which LeanQuant calls row by row.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from q2n.linalg.kernels import usable

LINEAR_START = 8
"""Largest number of clusters that start evenly spaced between a row's extremes; more start by k-means++."""

ITERATIONS = 100
"""Largest number of iterations, LeanQuant's ``max_iter``."""

TOLERANCE = 1e-6
"""LeanQuant's ``tol``: share of a row's variance to which the sum of its centres' squared moves must fall."""

CHUNK_ENTRIES = 2**21
"""Values clustered at once: limits the scratch memory to some tens of megabytes."""

START_ENTRIES = 2**16
"""Values per block of k-means++, whose many passes then stay in the cache."""


def cluster_rows(values: Tensor, importance: Tensor, clusters: int, seed: int) -> Tensor:
    """Compute cluster centres of each row, float64 ``(R, clusters)``, ascending.

    Args:
        values: ``(R, C)``.
        importance: ``(C,)`` sample weights, common to all rows; none negative, not all zero.
        clusters: number of centres per row.
        seed: seed of k-means++; every row uses the same random numbers, as one seeded call per row would.
    """
    chunk = max(1, CHUNK_ENTRIES // values.shape[1])
    weights = importance.double()
    if not bool(torch.isfinite(importance.max() * values.abs().max())):
        # A common factor changes no cluster, but weighted values would overflow.
        weights = weights / weights.max()
    return torch.cat([_cluster(part, weights, clusters, seed) for part in values.split(chunk)])


def _cluster(values: Tensor, weights: Tensor, clusters: int, seed: int) -> Tensor:
    if clusters <= LINEAR_START:
        steps = torch.linspace(0, 1, clusters, dtype=torch.float64, device=values.device)
        low, high = values.amin(dim=1, keepdim=True).double(), values.amax(dim=1, keepdim=True).double()
        centres = low + (high - low) * steps
    else:
        size = max(1, START_ENTRIES // values.shape[1])
        starts = [_plus_plus(part.double(), weights, clusters, seed) for part in values.split(size)]
        centres = torch.cat(starts).sort(dim=1).values
    if not usable(values):
        return _Lloyd(values, weights).run(centres)
    from q2n.linalg.kernels.kmeans import lloyd_rows
    from q2n.linalg.kernels.threads import over_rows

    arrays = (values.contiguous().numpy(), weights.to(values).numpy())
    centres = centres.contiguous()
    over_rows(lloyd_rows, len(values), *arrays, TOLERANCE, ITERATIONS, centres.numpy())
    return centres


class _Lloyd:
    """Lloyd's iterations on sorted rows."""

    def __init__(self, values: Tensor, weights: Tensor) -> None:
        place = values.argsort(dim=1, stable=True)
        self._sorted = values.gather(1, place)
        self._weights = weights.to(values)[place]
        self._mass = _running(self._weights)
        self._moment = _running(self._weights * self._sorted)
        self._tolerance = TOLERANCE * values.double().var(dim=1, unbiased=False)

    def run(self, centres: Tensor) -> Tensor:
        """Iterate until every row has stopped; a row that has stopped does not change.

        Stopped rows are dropped from the work when more than half of the rows have stopped.
        """
        rows, values = torch.arange(len(centres), device=centres.device), self._sorted
        live = torch.ones_like(rows, dtype=torch.bool)
        for _ in range(ITERATIONS):
            old = centres[rows]
            new = self._step(rows, values, old)
            centres[rows] = torch.where(live[:, None], new.sort(dim=1).values, old)
            live &= (new - old).square_().sum(dim=1) > self._tolerance[rows]
            count = int(live.sum())
            if not count:
                break
            if 2 * count < len(rows):
                rows, values, live = rows[live], values[live], live[live]
        return centres

    def _step(self, rows: Tensor, values: Tensor, centres: Tensor) -> Tensor:
        middles = ((centres[:, 1:] + centres[:, :-1]) / 2).to(values)
        inner = torch.searchsorted(values, middles, right=True)
        start = torch.zeros_like(inner[:, :1])
        bounds = torch.cat([start, inner, torch.full_like(start, values.shape[1])], dim=1)
        places = (rows * self._mass.shape[1])[:, None] + bounds
        mass, moment = self._mass.take(places).diff(dim=1), self._moment.take(places).diff(dim=1)
        empty = bounds.diff(dim=1) == 0
        for at in empty.any(dim=1).nonzero()[:, 0].tolist():
            self._relocate(int(rows[at]), centres[at], bounds[at], mass[at], moment[at])
        return torch.where(mass > 0, moment / mass, centres)

    def _relocate(self, row: int, centres: Tensor, bounds: Tensor, mass: Tensor, moment: Tensor) -> None:
        """Give each empty cluster the value farthest from its own centre, taken from that cluster."""
        counts = bounds.diff()
        labels = torch.repeat_interleave(torch.arange(len(centres), device=centres.device), counts)
        distance = (self._sorted[row] - centres[labels]).square_()
        if float(distance.max()) == 0:
            return
        vacant = (counts == 0).nonzero()[:, 0].tolist()
        farthest = torch.topk(distance, min(len(vacant), len(distance))).indices.tolist()
        for cluster, index in zip(vacant, farthest, strict=False):
            weight, owner = self._weights[row, index], int(labels[index])
            product = weight * self._sorted[row, index]
            moment[owner] -= product
            mass[owner] -= weight
            moment[cluster], mass[cluster] = product, weight
            counts[owner] -= 1
            if not int(counts[owner]):
                # scikit-learn works on centred values and leaves the emptied cluster at zero.
                moment[owner], mass[owner] = _mean(self._sorted[row]), 1


def _mean(values: Tensor) -> Tensor:
    mean = values.mean()
    return mean if bool(mean.isfinite()) else values.double().mean()  # the sum of large numbers overflows


def _running(values: Tensor) -> Tensor:
    """Return the sums of the first ``0, 1, ..., C`` entries of each row, ``(R, C + 1)`` float64."""
    return torch.nn.functional.pad(values.cumsum(dim=1, dtype=torch.float64), (1, 0))


def _plus_plus(values: Tensor, weights: Tensor, clusters: int, seed: int) -> Tensor:
    """Draw greedy k-means++ starts (``2 + log k`` candidates per centre), the same draws for every row."""
    generator = np.random.RandomState(seed)  # scikit-learn's generator: the draws must be the same

    def draw(count: int) -> Tensor:
        return torch.from_numpy(generator.uniform(size=count)).to(values)

    rows = torch.arange(len(values), device=values.device)
    share = (weights / weights.sum()).cumsum(dim=0)
    first = torch.searchsorted(share / share[-1], draw(1), right=True)
    first = first.clamp_(max=values.shape[1] - 1)
    chosen = values[:, first].clone()
    nearest = _squared(values - chosen)
    candidates = 2 + int(math.log(clusters))
    for _ in range(1, clusters):
        potential = (nearest * weights).cumsum(dim=1)
        wanted = draw(candidates) * potential[:, -1:]
        picks = torch.searchsorted(potential, wanted).clamp_(max=values.shape[1] - 1)
        trials = values.gather(1, picks)
        costs = torch.stack(
            [torch.minimum(nearest, _squared(values - trial)) @ weights for trial in trials.split(1, dim=1)]
        )
        best = trials[rows, costs.argmin(dim=0)][:, None]
        nearest = torch.minimum(nearest, _squared(values - best))
        chosen = torch.cat([chosen, best], dim=1)
    return chosen


def _squared(difference: Tensor) -> Tensor:
    return difference.mul_(difference)
