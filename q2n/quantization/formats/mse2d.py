"""Uniform grid with a joint search for step and zero point (OWQ, arXiv 2306.02272)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from q2n.exceptions import UnsupportedError
from q2n.linalg.kernels import usable
from q2n.quantization.formats.clip import CLIP_NORM, MARGIN, best_by_kernel, minorants
from q2n.quantization.formats.uniform import UniformSpec

STEPS_MAIN = 100
"""Number of steps tried per whole row; groups and trial roundings use :data:`STEPS_COARSE`."""

STEPS_COARSE = 40
"""Number of steps tried per group and in trial roundings."""

CHUNK_ENTRIES = 2**18
"""Entries per temporary of the search: few enough for the cache, enough to hide the cost of a call."""

MIN_SCALE = 1e-8
"""Lower bound of a scale."""


@dataclass(frozen=True)
class Mse2dSpec(UniformSpec):
    """Step and integer zero point per row with the least ``sum |w - Q(w)|^2.4``.

    The steps tried are ``range i / (steps (2^b - 1))``, ``i = 1 .. steps``. Ties go to the smaller ``i``,
    then to the smaller zero point.
    """

    steps: int = STEPS_MAIN

    def parameters(self, weight: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Find scale and zero point of each row of ``weight`` ``(R, g)`` with range ``low .. high``.

        Raises:
            UnsupportedError: the grid is symmetric.
        """
        if self.symmetric:
            raise UnsupportedError("the search for step and zero point has no symmetric variant")
        unit = (high - low) / (self.steps * self.levels)
        if usable(weight, unit):
            from q2n.linalg.kernels.search import best_step_and_zero

            multiples = np.arange(1, self.steps + 1)
            best = best_by_kernel(best_step_and_zero, [weight, unit], self.levels, multiples)
            return _parameters(best, unit, self.levels)
        chunk = max(1, CHUNK_ENTRIES // max(weight.shape[1], 6 * self.steps * self.levels))
        parts = zip(weight.split(chunk), unit.split(chunk), strict=True)
        found = [_search(part.contiguous(), units, self.levels, self.steps) for part, units in parts]
        return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])


def _search(weight: Tensor, unit: Tensor, levels: int, steps: int) -> tuple[Tensor, Tensor]:
    """Search all candidates, except those whose bound is above an error already computed.

    The result is that of an exhaustive search. A candidate's number is ``(i - 1) (levels + 1) + zero``.
    """
    bound = _lower_bounds(weight, unit, levels, steps)
    first = bound.argmin(dim=1)
    seen = _errors(weight, unit, first, levels)
    rows, candidates = torch.nonzero(bound <= seen[:, None] * (1 + MARGIN), as_tuple=True)
    size = max(1, CHUNK_ENTRIES // weight.shape[1])
    portions = zip(rows.split(size), candidates.split(size), strict=True)
    errors = torch.cat([_errors(weight[some], unit[some], tried, levels) for some, tried in portions])
    least = torch.full_like(seen, torch.inf).scatter_reduce_(0, rows, errors, "amin")
    winners = torch.where(errors == least[rows], candidates, bound.shape[1])
    best = torch.full_like(first, bound.shape[1]).scatter_reduce_(0, rows, winners, "amin")
    return _parameters(best, unit, levels)


def _parameters(candidate: Tensor, unit: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Return scale and zero point of the candidate with the given number."""
    step = (candidate // (levels + 1) + 1).to(unit)
    return (unit * step).clamp_(min=MIN_SCALE), (candidate % (levels + 1)).to(unit)


def _errors(weight: Tensor, unit: Tensor, candidate: Tensor, levels: int) -> Tensor:
    """Compute ``sum |w - Q(w)|^2.4`` of each row with its candidate, in powers of ``unit``; ``(R,)``."""
    multiple, zero = (candidate // (levels + 1) + 1).to(unit), candidate % (levels + 1)
    ratio = weight / (unit * multiple)[:, None]
    lowest = -zero[:, None].to(unit)
    level = torch.minimum(torch.maximum(ratio.round(), lowest), lowest + levels)
    # |d|^2.4 through logarithms of squares: several times faster than a power.
    powers = ratio.sub_(level).square_().log_().mul_(CLIP_NORM / 2).exp_()
    return powers.sum(dim=1).mul_(multiple**CLIP_NORM)


def _lower_bounds(weight: Tensor, unit: Tensor, levels: int, steps: int) -> Tensor:
    """Compute a lower bound of every candidate's error, in powers of ``unit``; ``(R, steps (levels + 1))``.

    The polynomials of :func:`~q2n.quantization.formats.clip.minorants` are summed by means of the weights'
    powers between half units.
    """
    reach = levels * steps
    # Round-off may put extremes outside, where distances from the outermost level would be negative.
    units = (weight.double() / unit.double()[:, None]).clamp_(-reach, reach).nan_to_num_(nan=0)
    below = _cumulated_powers(units, reach)
    coefficients = minorants(np.arange(1, steps + 1), levels, weight.shape[1])
    polynomials = torch.from_numpy(coefficients).to(units.device)
    inside, beyond, slack = polynomials[:, :3], polynomials[:, 3:6], polynomials[:, 6]
    step = torch.arange(1, steps + 1, device=weight.device)[:, None]
    level = torch.arange(-levels, levels + 1, device=weight.device)
    edges = _pick(below, step * (2 * torch.arange(-levels, levels + 2, device=weight.device) - 1), reach)
    middles = _pick(below, step * (2 * level), reach)
    value = step * level
    # Weights nearest to a level if the grid were continued without end: those above it, those below it.
    cells = _sum(edges[:, :, 1:] - middles, value, inside, first=1)
    cells += _sum(middles - edges[:, :, :-1], value, inside, first=1, under=True)
    between = torch.nn.functional.pad(cells.cumsum_(dim=1), (0, 0, 1, 0))
    # Weights beyond a level if it is the lowest or the highest one; levels by zero point.
    lowest = levels - torch.arange(levels + 1, device=weight.device)
    highest = lowest + levels
    bound = between[:, highest + 1] - between[:, lowest]
    bound += _sum(edges[:, :, lowest], value[:, lowest], beyond, first=0, under=True)
    bound += _sum(below[:, -1:, None] - edges[:, :, highest + 1], value[:, highest], beyond, first=0)
    return torch.flatten(bound.sub_(slack[:, None, None]), 0, 1).T.to(weight).contiguous()


def _cumulated_powers(units: Tensor, reach: int) -> Tensor:
    """Sum the powers 0 to 3 of a row's values below each half unit from ``-reach`` to ``reach``.

    ``units`` ``(R, C)`` are values in units; the result is ``(4, 4 reach + 1, R)``.
    """
    place = (2 * units).floor_().long().add_(2 * reach).clamp_(0, 4 * reach - 1).T
    powers = torch.stack([units**power for power in range(4)]).transpose(1, 2)
    sums: Tensor = units.new_zeros(4, 4 * reach + 1, len(units))
    sums[:, 1:].scatter_add_(1, place.expand_as(powers), powers)
    return torch.cumsum(sums, dim=1)


def _pick(below: Tensor, half_units: Tensor, reach: int) -> Tensor:
    """Return ``below`` at the given places ``(S, M)``: ``(4, S, M, R)``."""
    places = (half_units + 2 * reach).clamp_(0, 4 * reach)
    return below.index_select(1, places.flatten()).view(len(below), *places.shape, -1)


def _sum(powers: Tensor, value: Tensor, coefficients: Tensor, first: int, under: bool = False) -> Tensor:
    """Sum ``c_k |x - v|^k`` over ``k = first, first + 1, ...`` and over weights ``x``; ``(S, M, R)``.

    Args:
        powers: sums of the powers of the weights, ``(4, S, M, R)``.
        value: ``v`` ``(S, M)``.
        coefficients: ``c_k``, ``(S, 3)``.
        first: lowest degree.
        under: the weights are those below ``v``; if False, those above it.
    """
    value = value[:, :, None].to(powers)
    total = torch.zeros_like(powers[0])
    for index, column in enumerate(coefficients.unbind(1)):
        degree = first + index
        sign = (-1) ** degree if under else 1
        for power in range(degree + 1):
            binomial = sign * math.comb(degree, power) * column[:, None, None]
            total += binomial * (-value) ** (degree - power) * powers[power]
    return total
