"""Uniform grid whose step and zero point are searched together (OWQ, arXiv 2306.02272)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from q2n.exceptions import UnsupportedError
from q2n.grids.clip import CLIP_NORM
from q2n.grids.uniform import UniformGrid
from q2n.kernels import usable

STEPS_MAIN = 100
"""Steps of the range tried for a whole row; groups and trial roundings use :data:`STEPS_COARSE`."""

STEPS_COARSE = 40

CHUNK_ENTRIES = 2**18
"""Numbers a temporary of the search may have: few enough for the cache, enough to hide the cost of a call."""

MARGIN = 1e-4
"""By how much a bound is mistrusted, for the rounding of what it is compared with."""

ROUND_OFF = 1e-13
"""Of a double-precision sum, in units of its largest possible value."""

MIN_SCALE = 1e-8


@dataclass(frozen=True)
class Mse2dGrid(UniformGrid):
    """Per row the step ``range i / (steps (2^b - 1))``, ``i = 1 .. steps``, and integer zero point that are
    least in ``sum |w - Q(w)|^2.4``; the first of equals, by ``i`` and then by zero point."""

    steps: int = STEPS_MAIN

    def parameters(self, weight: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if self.symmetric:
            raise UnsupportedError("the search for step and zero point has no symmetric variant")
        unit = (high - low) / (self.steps * self.levels)
        if usable(weight, unit):
            return _compiled(weight, unit, self.levels, self.steps)
        chunk = max(1, CHUNK_ENTRIES // max(weight.shape[1], 6 * self.steps * self.levels))
        parts = zip(weight.split(chunk), unit.split(chunk), strict=True)
        found = [_search(part.contiguous(), units, self.levels, self.steps) for part, units in parts]
        return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])


def _search(weight: Tensor, unit: Tensor, levels: int, steps: int) -> tuple[Tensor, Tensor]:
    """Exhaustive in effect: candidates whose bound is above an error already seen are not evaluated.

    A candidate's number is ``(i - 1) (levels + 1) + zero``.
    """
    bound = _lower_bounds(weight, unit, levels, steps)
    first = bound.argmin(dim=1)
    seen = _errors(weight, unit, first, levels)
    rows, candidates = torch.nonzero(bound <= seen[:, None] * (1 + MARGIN), as_tuple=True)
    errors = torch.cat(
        [
            _errors(weight[some], unit[some], tried, levels)
            for some, tried in zip(_portions(rows, weight), _portions(candidates, weight), strict=True)
        ]
    )
    least = torch.full_like(seen, torch.inf).scatter_reduce_(0, rows, errors, "amin")
    winners = torch.where(errors == least[rows], candidates, bound.shape[1])
    best = torch.full_like(first, bound.shape[1]).scatter_reduce_(0, rows, winners, "amin")
    return _parameters(best, unit, levels)


def _compiled(weight: Tensor, unit: Tensor, levels: int, steps: int) -> tuple[Tensor, Tensor]:
    """:func:`_search` of all rows, by a kernel."""
    from q2n.kernels.search import best_step_and_zero
    from q2n.kernels.threads import over_rows

    best = torch.empty(len(weight), dtype=torch.int64)
    arrays = (weight.contiguous().numpy(), unit.contiguous().numpy())
    over_rows(best_step_and_zero, len(weight), *arrays, levels, steps, MARGIN, ROUND_OFF, best.numpy())
    return _parameters(best, unit, levels)


def _parameters(candidate: Tensor, unit: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Scale and zero of a candidate's number."""
    step = (candidate // (levels + 1) + 1).to(unit)
    return (unit * step).clamp_(min=MIN_SCALE), (candidate % (levels + 1)).to(unit)


def _portions(values: Tensor, weight: Tensor) -> Sequence[Tensor]:
    return torch.split(values, max(1, CHUNK_ENTRIES // weight.shape[1]))


def _errors(weight: Tensor, unit: Tensor, candidate: Tensor, levels: int) -> Tensor:
    """``sum |w - Q(w)|^2.4`` of each row with its candidate, in powers of ``unit``; ``(R,)``."""
    multiple, zero = (candidate // (levels + 1) + 1).to(unit), candidate % (levels + 1)
    ratio = weight / (unit * multiple)[:, None]
    lowest = -zero[:, None].to(unit)
    level = torch.minimum(torch.maximum(ratio.round(), lowest), lowest + levels)
    # |d|^2.4 through logarithms of squares: several times faster than a power.
    powers = ratio.sub_(level).square_().log_().mul_(CLIP_NORM / 2).exp_()
    return powers.sum(dim=1).mul_(multiple**CLIP_NORM)


def _lower_bounds(weight: Tensor, unit: Tensor, levels: int, steps: int) -> Tensor:
    """A bound of every candidate's error from below, in powers of ``unit``; ``(R, steps (levels + 1))``.

    ``log sum |d|^p`` is convex in ``p``, so that ``sum |d|^2.4 >= (sum d^2)^1.4 / (sum |d|)^0.4``. These two
    sums need no pass over the weights: whatever the candidate, its levels ``m i`` and the boundaries
    ``(m +- 1/2) i`` between them are multiples of half a unit, and between two neighbouring multiples both
    sums are polynomials in the count, sum and sum of squares of the weights there.
    """
    reach = levels * steps
    # Extremes may lie a rounding outside, where distances from the outermost level would come out negative.
    units = (weight.double() / unit.double()[:, None]).clamp_(-reach, reach)
    below = _cumulated_powers(units, reach)
    step = torch.arange(1, steps + 1, device=weight.device)[:, None]
    level = torch.arange(-levels, levels + 1, device=weight.device)
    edge = torch.arange(-levels, levels + 2, device=weight.device)
    edges = _pick(below, step * (2 * edge - 1), reach)
    first, second = _between(edges, _pick(below[:2], step * (2 * level), reach), step * level)
    # Weights beyond the outermost levels count with their distance from those; levels by zero point.
    lowest = levels - torch.arange(levels + 1, device=weight.device)
    left = _deviations(edges[:, :, lowest], step * level[lowest])
    highest = lowest + levels
    right = _deviations(below[:, -1:, None] - edges[:, :, highest + 1], step * level[highest])
    first = first[:, highest + 1].sub_(first[:, lowest]).sub_(left[0]).add_(right[0])
    second = second[:, highest + 1].sub_(second[:, lowest]).add_(left[1]).add_(right[1])
    slack = ROUND_OFF * weight.shape[1] * reach
    bound = second.sub_(slack * reach).clamp_(min=0).pow_(1.4).div_(first.add_(slack).pow_(0.4))
    return torch.flatten(bound, 0, 1).T.to(weight).contiguous()


def _cumulated_powers(units: Tensor, reach: int) -> Tensor:
    """Count, sum and sum of squares of a row's values below each half unit from ``-reach`` to ``reach``:
    ``(3, 4 reach + 1, R)``. ``units`` ``(R, C)`` are values in units."""
    place = (2 * units).floor_().long().add_(2 * reach).clamp_(0, 4 * reach - 1).T
    powers = torch.stack([torch.ones_like(units), units, units.square()]).transpose(1, 2)
    sums: Tensor = units.new_zeros(3, 4 * reach + 1, len(units))
    sums[:, 1:].scatter_add_(1, place.expand_as(powers), powers)
    return torch.cumsum(sums, dim=1)


def _pick(below: Tensor, half_units: Tensor, reach: int) -> Tensor:
    """``below`` at the given places ``(S, M)``: ``(3, S, M, R)``."""
    places = (half_units + 2 * reach).clamp_(0, 4 * reach)
    return below.index_select(1, places.flatten()).view(len(below), *places.shape, -1)


def _between(edges: Tensor, middles: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of ``|x - value|`` and its square over all cells before each one, ``(S, M + 1, R)`` both.

    Cell ``m`` of a step lies between ``edges`` ``(3, S, M + 1, R)`` ``m`` and ``m + 1`` around ``value``
    ``(S, M)``, up to which ``middles`` ``(2, S, M, R)`` counts.
    """
    value = value[:, :, None].to(edges)
    count, total = edges[:2, :, 1:] + edges[:2, :, :-1] - 2 * middles
    first = total.sub_(count.mul_(value))
    second = _deviations(edges[:, :, 1:] - edges[:, :, :-1], value[:, :, 0])[1]
    start = (0, 0, 1, 0)
    pad = torch.nn.functional.pad
    return pad(first.cumsum_(dim=1), start), pad(second.cumsum_(dim=1), start)


def _deviations(powers: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of ``x - value`` and of its square from count, sum and sum of squares ``(3, S, M, R)``."""
    count, total, squares = powers.unbind()
    value = value[:, :, None].to(powers)
    shifted = torch.addcmul(total, value, count, value=-1)
    return shifted, torch.addcmul(squares, value, total + shifted, value=-1)
