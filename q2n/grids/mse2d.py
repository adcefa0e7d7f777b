"""Uniform grid whose step and zero point are searched together (OWQ, arXiv 2306.02272)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from q2n.exceptions import UnsupportedError
from q2n.grids.clip import CLIP_NORM
from q2n.grids.uniform import UniformGrid

STEPS_MAIN = 100
"""Steps of the range tried for a whole row; groups and trial roundings use :data:`STEPS_COARSE`."""

STEPS_COARSE = 40

CHUNK_ENTRIES = 2**18
"""Weights searched at once: few enough for the cache, enough to hide the cost of a call."""

LADDER = (0.3, 0.45, 0.6, 0.8, 1.0)
"""Fractions of the range that give the search its first bound."""

COMPACT_BELOW = 0.75
"""Share of a chunk's rows still being searched under which the others are dropped from its tensors."""

MIN_SCALE = 1e-8


@dataclass(frozen=True)
class Mse2dGrid(UniformGrid):
    """Per row the step ``range i / (steps (2^b - 1))``, ``i = 1 .. steps``, and integer zero point that are
    least in ``sum |w - Q(w)|^2.4``; the first of equals, by ``i`` and then by zero point."""

    steps: int = STEPS_MAIN

    def parameters(self, weight: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if self.symmetric:
            raise UnsupportedError("the search for step and zero point has no symmetric variant")
        weight = weight.contiguous()
        chunk = max(1, CHUNK_ENTRIES // weight.shape[1])
        parts = zip(weight.split(chunk), low.split(chunk), high.split(chunk), strict=True)
        found = [_search(*part, self.levels, self.steps) for part in parts]
        return torch.cat([scale for scale, _ in found]), torch.cat([zero for _, zero in found])


def _search(weight: Tensor, low: Tensor, high: Tensor, levels: int, steps: int) -> tuple[Tensor, Tensor]:
    """Exhaustive in effect, but few candidates are evaluated (see :meth:`_RowSearch.climb`)."""
    search = _RowSearch(weight, (high - low) / (steps * levels), levels, steps)
    natural = torch.round(-low / (high - low) * levels).clamp_(0, levels)
    points = torch.arange(levels + 1, device=weight.device, dtype=weight.dtype)
    by_distance = torch.argsort((points - natural[:, None]).abs(), dim=1, stable=True)
    for fraction in LADDER:
        step = torch.full_like(natural, max(1, round(fraction * steps)))
        search.try_all(step, natural)
    for rank in range(levels + 1):
        search.climb(by_distance[:, rank].to(weight))
    return (search.unit * search.step).clamp_(min=MIN_SCALE), search.zero


class _RowSearch:
    """The best candidate so far of every row of a chunk: its error's 2.4-th root, step and zero point."""

    def __init__(self, weight: Tensor, unit: Tensor, levels: int, steps: int) -> None:
        self.weight, self.unit, self.levels, self.steps = weight, unit, levels, steps
        self.root = torch.full_like(unit, torch.inf)
        self.step, self.zero = torch.zeros_like(unit), torch.zeros_like(unit)

    def try_all(self, step: Tensor, zero: Tensor) -> None:
        """One candidate for every row."""
        root, _ = _errors(self.weight, self.unit * step, zero, self.levels)
        self._offer(slice(None), root, step, zero)

    def climb(self, zero: Tensor) -> None:
        """All steps, upwards, for one zero point a row, leaving out those that cannot win.

        Let ``k_j`` be the levels that weights are rounded to with step ``s`` and ``k'_j`` those with ``s' >
        s``. Level ``k'_j`` of the grid with step ``s`` is within ``(s' - s) |k'_j|`` of the other grid's, so
        that by Minkowski's inequality ``root(s) <= root(s') + (s' - s) ||k'||``; and ``||k'|| <= ||k||``,
        levels falling as the step grows. What ``s`` shows therefore bounds from below the error of larger
        steps.
        """
        rows = torch.arange(len(zero), device=zero.device)
        weight, unit, position = self.weight, self.unit, torch.ones_like(zero)
        while len(rows):
            root, slope = _errors(weight, unit * position, zero, self.levels)
            inside = position <= self.steps
            self._offer(rows, torch.where(inside, root, torch.inf), position, zero)
            # A little less than the bound allows, for rounding.
            jump = (root - self.root[rows]) / (slope * unit) * (1 - 1e-4)
            position = position + jump.nan_to_num_(nan=1.0, posinf=float(self.steps)).floor_().clamp_(min=1)
            alive = position <= self.steps
            if int(alive.sum()) < COMPACT_BELOW * len(rows):
                rows, weight, unit = rows[alive], weight[alive], unit[alive]
                position, zero = position[alive], zero[alive]

    def _offer(self, rows: Tensor | slice, root: Tensor, step: Tensor, zero: Tensor) -> None:
        """Take what is better; of equals the smaller step, then the smaller zero point."""
        old, old_step, old_zero = self.root[rows], self.step[rows], self.zero[rows]
        first = (step < old_step) | ((step == old_step) & (zero < old_zero))
        better = (root < old) | ((root == old) & first)
        self.root[rows] = torch.where(better, root, old)
        self.step[rows] = torch.where(better, step, old_step)
        self.zero[rows] = torch.where(better, zero, old_zero)


def _errors(weight: Tensor, step: Tensor, zero: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """``(sum |w - Q(w)|^2.4)^(1/2.4)`` of each row and an upper bound of ``(sum |k|^2.4)^(1/2.4)``; ``(R,)``
    both."""
    ratio = weight / step[:, None]
    lowest = -zero[:, None]
    level = torch.minimum(torch.maximum(ratio.round(), lowest), lowest + levels)
    largest = torch.maximum(zero, levels - zero)
    energy = torch.linalg.vector_norm(level, dim=1).square_()
    # |d|^2.4 through logarithms of squares: several times faster than a power.
    powers = ratio.sub_(level).square_().log_().mul_(CLIP_NORM / 2).exp_()
    root = step * powers.sum(dim=1).pow_(1 / CLIP_NORM)
    return root, energy.mul_(largest.pow(CLIP_NORM - 2)).pow_(1 / CLIP_NORM)
