"""The differences of a table: how sure one can be of each, and which of them are established."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from q2n.evaluation.base import expm1
from q2n.records.schema import Metric
from q2n.report.significance import Comparison, compare, holm

LEVEL = 0.05
"""Adjusted p-value below which a difference is established."""

FEWEST_SEEDS = 2
"""Seeds below which nothing is: another calibration sample could have given another order."""

Measured = Mapping[int, Metric]
"""What stands in one place of a table, by seed."""


Place = tuple[int, int]
"""Row and column of a table."""


@dataclass(frozen=True)
class Difference:
    """A compared pair of cells. ``low`` and ``high`` bound the difference with 95 % confidence, around
    ``estimate``, in per cent of the uncorrected value if ``relative``, in the metric's unit otherwise;
    ``p_value`` is adjusted for all differences of the table."""

    estimate: float
    low: float
    high: float
    p_value: float
    relative: bool
    seeds: int

    @property
    def established(self) -> bool:
        return self.seeds >= FEWEST_SEEDS and self.p_value < LEVEL


def differences(pairs: Mapping[Place, tuple[Measured, Measured]]) -> dict[Place, Difference]:
    """Every pair (corrected, uncorrected) that can be compared, adjusted for one another (Holm).

    Pairs without windows or items in common, and those too small for a statement, are left out.
    """
    compared = {place: _compared(on, off) for place, (on, off) in pairs.items()}
    usable = {
        place: found
        for place, found in compared.items()
        if found is not None and not math.isnan(found[0].p_value)
    }
    adjusted = holm([comparison.p_value for comparison, _ in usable.values()])
    return {
        place: _difference(comparison, relative, p_value)
        for (place, (comparison, relative)), p_value in zip(usable.items(), adjusted, strict=True)
    }


def _compared(on: Measured, off: Measured) -> tuple[Comparison, bool] | None:
    """The comparison over the seeds both have, and whether it is one of ratios."""
    seeds = sorted(on.keys() & off.keys())
    pairs = [(on[seed], off[seed]) for seed in seeds]
    if (
        not pairs
        or len({len(metric.parts) for pair in pairs for metric in pair}) != 1
        or not pairs[0][0].parts
    ):
        return None
    kinds = {metric.difference for pair in pairs for metric in pair}
    kind = kinds.pop()
    if kinds:
        return None
    first, second = zip(*((a.parts, b.parts) for a, b in pairs), strict=True)
    return compare(first, second, pairs[0][0].weights), kind == "ratio"


def _difference(comparison: Comparison, relative: bool, p_value: float) -> Difference:
    ends = (comparison.difference, comparison.low, comparison.high)
    estimate, low, high = (100 * expm1(end) if relative else end for end in ends)
    return Difference(estimate, low, high, p_value, relative, comparison.seeds)
