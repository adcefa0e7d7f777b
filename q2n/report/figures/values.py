"""Values of a study's cells by configuration key, for heat maps and curves."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from q2n.records.schema import Metric, RunRecord
from q2n.report.figures.labels import joined, measure, vary
from q2n.report.overview import StudyReport
from q2n.report.tables.lines import NO_CORRECTION, Row, in_order, observations, row_of
from q2n.report.tables.settings import Settings, values_by_key


@dataclass(frozen=True)
class SeedMean:
    """Cells that differ only in the seed.

    ``place`` has the values of the requested keys, None for a key the cells do not have. ``values`` has the
    metric's value per seed; ``metric`` and ``first`` are the metric and record of one of the seeds.
    """

    place: tuple[Any, ...]
    row: Row
    bits: int | float
    metric: Metric
    values: tuple[float, ...]
    first: RunRecord

    @property
    def mean(self) -> float:
        """Mean over seeds; not finite if a value is not."""
        return (math.fsum if self._finite else sum)(self.values) / len(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; 0 for one seed or if a value is not finite."""
        if len(self.values) < 2 or not self._finite:
            return 0.0
        mean = self.mean
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / (len(self.values) - 1))

    @property
    def uncorrected(self) -> bool:
        """True for cells without correction."""
        return self.row.correction == NO_CORRECTION

    @property
    def _finite(self) -> bool:
        return all(map(math.isfinite, self.values))


def seed_means(report: StudyReport, keys: Sequence[str], metric: str | None) -> list[SeedMean]:
    """Means over seeds of all cells, sorted by bits and then in the order of the tables.

    Args:
        report: the study.
        keys: dotted configuration keys; the cells' settings no longer contain them.
        metric: ``<data set> <name>``, or None for each record's first metric.
    """
    labels, _ = observations(report.records)
    leaves = [values_by_key(record) for record in report.records]
    said = _said_by_axes(leaves, labels, keys)
    found: dict[tuple[Any, ...], list[tuple[RunRecord, Metric]]] = defaultdict(list)
    for record, tree, settings in zip(report.records, leaves, labels, strict=True):
        measured = next((item for item in record.metrics if metric in (None, measure(item))), None)
        if measured is not None:
            place = tuple(tree.get(key) for key in keys)
            kept = (tuple(label for label in side if _key(label) not in said) for side in settings)
            found[place, row_of(record, Settings(*kept)), record.cell.bits].append((record, measured))
    ranks = ranked(row for _, row, _ in found)
    means = [
        SeedMean(place, row, bits, members[0][1], tuple(item.value for _, item in members), members[0][0])
        for (place, row, bits), members in found.items()
    ]
    return sorted(means, key=lambda item: (item.bits, ranks[item.row]))


def _said_by_axes(
    leaves: Sequence[Mapping[str, Any]], labels: Sequence[Settings], keys: Sequence[str]
) -> set[str]:
    """Keys of labels that repeat an axis: the axis itself or a copy of it (``baseline.group_size``)."""
    names = {_key(label) for settings in labels for side in settings for label in side}

    def echoes(name: str, axis: str) -> bool:
        # a label names the choice of a group by the group alone, without ``_target_``
        pairs = [(leaf, tree) for tree in leaves for leaf in (name, f"{name}._target_") if leaf in tree]
        both = [(tree[leaf], tree[axis]) for leaf, tree in pairs if axis in tree]
        return bool(both) and all(one == other for one, other in both)

    return {name for name in names if any(echoes(name, axis) for axis in keys)}


def _key(label: str) -> str:
    return label.partition("=")[0]


def ranked(rows: Iterable[Row]) -> dict[Row, int]:
    """Rank of each row in the order of the tables."""
    return {row: rank for rank, row in enumerate(in_order(dict.fromkeys(rows)))}


def by_panel(
    items: Sequence[SeedMean], parts: Callable[[SeedMean], tuple[str, ...]]
) -> tuple[dict[str, list[SeedMean]], str]:
    """Means by title of their panel, and the labels that all panels have in common."""
    names, common = vary([parts(item) for item in items])
    panels: dict[str, list[SeedMean]] = defaultdict(list)
    for item, name in zip(items, names, strict=True):
        panels[joined(name)].append(item)
    return dict(panels), joined(common)


def is_number(value: Any) -> bool:
    """True if a configuration value is a number; booleans are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def measured_over(items: Sequence[SeedMean]) -> str:
    """Text on metric and seeds: ``wiki perplexity ↓ lower is better, mean of 3 seeds``."""
    metric, seeds = items[0].metric, sorted({len(item.values) for item in items})
    arrow = "↓ lower is better" if metric.lower_is_better else "↑ higher is better"
    counted = "one seed" if seeds == [1] else f"mean of {' or '.join(map(str, seeds))} seeds"
    return f"{measure(metric)} {arrow}, {counted}"
