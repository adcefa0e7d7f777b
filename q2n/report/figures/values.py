"""Values of a study's cells by configuration key: what maps and curves are drawn from."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from q2n.records.store import Metric, RunRecord
from q2n.report.figures.style import vary
from q2n.report.overview import StudyReport
from q2n.report.tables.lines import NO_CORRECTION, Row, in_order, observations, row_of
from q2n.report.tables.settings import Settings, values_by_key


@dataclass(frozen=True)
class Point:
    """Cells that differ in nothing but the seed. ``place`` are the values of the asked keys (None: there is
    no such key), ``values`` the metric of every seed, ``first`` one of the records."""

    place: tuple[Any, ...]
    row: Row
    bits: int | float
    metric: Metric
    values: tuple[float, ...]
    first: RunRecord

    @property
    def mean(self) -> float:
        return (math.fsum if _finite(self.values) else sum)(self.values) / len(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds; 0 for one."""
        if len(self.values) < 2 or not _finite(self.values):
            return 0.0
        mean = self.mean
        return math.sqrt(math.fsum((value - mean) ** 2 for value in self.values) / (len(self.values) - 1))


def _finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in values)


def chosen_metric(metric: str | None) -> Callable[[RunRecord], Metric | None]:
    """The metric called ``<data set> <name>`` of a record, or its first."""

    def choose(record: RunRecord) -> Metric | None:
        named = (item for item in record.metrics if metric in (None, f"{item.dataset} {item.name}"))
        return next(named, None)

    return choose


def points(report: StudyReport, keys: Sequence[str], metric: str | None) -> list[Point]:
    """Every cell of the study at its place, seeds together, by bits and then in the order of the tables.

    Args:
        keys: dotted configuration keys; they are no longer among the settings of a point.
        metric: ``<data set> <name>``; None: each record's first.
    """
    choose = chosen_metric(metric)
    labels, _ = observations(report.records)
    leaves = [values_by_key(record) for record in report.records]
    said = _said_by_axes(leaves, labels, keys)
    found: dict[tuple[Any, ...], list[tuple[RunRecord, Metric]]] = defaultdict(list)
    for record, tree, settings in zip(report.records, leaves, labels, strict=True):
        measured = choose(record)
        if measured is not None:
            place = tuple(tree.get(key) for key in keys)
            row = row_of(record, Settings(*(_without(side, said) for side in settings)))
            found[place, row, record.cell.bits].append((record, measured))
    ranks = {row: rank for rank, row in enumerate(in_order(dict.fromkeys(row for _, row, _ in found)))}
    return [
        Point(place, row, bits, members[0][1], tuple(item.value for _, item in members), members[0][0])
        for (place, row, bits), members in sorted(
            found.items(), key=lambda item: (item[0][2], ranks[item[0][1]])
        )
    ]


def _said_by_axes(
    leaves: Sequence[Mapping[str, Any]], labels: Sequence[Settings], keys: Sequence[str]
) -> set[str]:
    """Keys of labels that say what an axis says: the axis itself, or its echo (``baseline.group_size``)."""
    names = {_key(label) for settings in labels for side in settings for label in side}

    def echoes(name: str, axis: str) -> bool:
        both = [(tree[leaf], tree[axis]) for tree in leaves for leaf in _leaves(name, tree) if axis in tree]
        return bool(both) and all(one == other for one, other in both)

    return {name for name in names if any(echoes(name, axis) for axis in keys)}


def _key(label: str) -> str:
    return label.partition("=")[0]


def _leaves(name: str, tree: Mapping[str, Any]) -> list[str]:
    """The leaf a label stands for: a choice of a group is called by the group's name."""
    return [leaf for leaf in (name, f"{name}._target_") if leaf in tree]


def _without(labels: tuple[str, ...], said: set[str]) -> tuple[str, ...]:
    return tuple(label for label in labels if _key(label) not in said)


def by_panel(items: Iterable[Point], *parts: Callable[[Point], str]) -> tuple[dict[str, list[Point]], str]:
    """Points by what tells the panels of a figure apart, and what all panels have in common."""
    items = list(items)
    names, common = vary([tuple(part(item) for part in parts) for item in items])
    panels: dict[str, list[Point]] = defaultdict(list)
    for item, name in zip(items, names, strict=True):
        panels[", ".join(part for part in name if part)].append(item)
    return dict(panels), ", ".join(common)


def is_number(value: Any) -> bool:
    """Whether a configuration value has a place on a scale; true and false have none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def headline(title: str, common: str, items: Sequence[Point]) -> str:
    """Above a figure: its study, what all panels have in common, what was measured."""
    return "\n".join(part for part in (title, common, measured_over(items)) if part)


def measured_over(items: Sequence[Point]) -> str:
    """``wiki perplexity ↓ lower is better, mean of 3 seeds``."""
    metric, seeds = items[0].metric, sorted({len(item.values) for item in items})
    arrow = "↓ lower is better" if metric.lower_is_better else "↑ higher is better"
    counted = "one seed" if seeds == [1] else f"mean of {' or '.join(map(str, seeds))} seeds"
    return f"{metric.dataset} {metric.name} {arrow}, {counted}"


def model(item: Point) -> str:
    return item.row.model


def settings(item: Point) -> str:
    return ", ".join(item.row.settings)


def bits(item: Point) -> str:
    return f"{item.bits:g} bit"


def baseline(item: Point) -> str:
    return item.row.baseline


def line(item: Point) -> str:
    return item.row.line


def is_off(item: Point) -> bool:
    return item.row.correction == NO_CORRECTION
