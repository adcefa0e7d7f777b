"""Differences of a table with intervals, adjusted p-values and significance across seeds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from q2n.evaluation.base import expm1
from q2n.records.schema import Metric
from q2n.report.significance import Comparison, compare, holm

LEVEL = 0.05
"""Adjusted p-value below which a difference is significant."""

FEWEST_SEEDS = 2
"""Seeds below which nothing is: another calibration sample could have given another order."""

BySeed = Mapping[int, Metric]
"""Metric by seed, of one place of a table."""

Where = TypeVar("Where", bound=Hashable)


@dataclass(frozen=True)
class Difference:
    """A compared pair of cells.

    ``low`` and ``high`` bound the difference ``estimate`` with 95 % confidence, in per cent of the
    uncorrected value if ``relative``, in the metric's unit otherwise; ``p_value`` is adjusted for all
    differences of the table.
    """

    estimate: float
    low: float
    high: float
    p_value: float
    relative: bool
    seeds: int

    @property
    def significant(self) -> bool:
        """True if the difference is significant across seeds (:data:`LEVEL`, :data:`FEWEST_SEEDS`)."""
        return self.seeds >= FEWEST_SEEDS and self.p_value < LEVEL


def differences(pairs: Mapping[Where, tuple[BySeed, BySeed]]) -> dict[Where, Difference]:
    """Every pair (corrected, uncorrected) that can be compared, adjusted for one another (Holm).

    Pairs without windows or items in common, and those too small for a statement, are left out.
    """
    usable = {place: found for place, (on, off) in pairs.items() if (found := _compared(on, off))}
    adjusted = holm([comparison.p_value for comparison, _ in usable.values()])
    result = {}
    for (place, (item, relative)), p_value in zip(usable.items(), adjusted, strict=True):
        ends = (item.difference, item.low, item.high)
        estimate, low, high = (100 * expm1(end) if relative else end for end in ends)
        result[place] = Difference(estimate, low, high, p_value, relative, item.seeds)
    return result


def _compared(on: BySeed, off: BySeed) -> tuple[Comparison, bool] | None:
    """The comparison over the seeds both have, and whether it is one of ratios; None: nothing can be said."""
    seeds = sorted(on.keys() & off.keys())
    pairs = [(on[seed], off[seed]) for seed in seeds]
    metrics = [metric for pair in pairs for metric in pair]
    kinds = {metric.difference for metric in metrics}
    sizes = {len(metric.parts) for metric in metrics}
    if len(kinds) != 1 or len(sizes) != 1 or sizes == {0}:
        return None
    first, second = zip(*((a.parts, b.parts) for a, b in pairs), strict=True)
    found = compare(first, second, pairs[0][0].weights)
    return None if math.isnan(found.p_value) else (found, kinds == {"ratio"})
