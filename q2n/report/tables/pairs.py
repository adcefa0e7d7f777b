"""Differences as a list: each correction against doing nothing, with what is known of it and its records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from q2n.report.tables.columns import Column
from q2n.report.tables.comparisons import FEWEST_SEEDS, Difference
from q2n.report.tables.lines import NO_CORRECTION, Row, without_correction
from q2n.report.tables.table import Table

USELESS = 10
"""Times the unquantized perplexity above which even the corrected model is of no use."""

Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Pair:
    """A corrected line and the one without correction, in one column of a study's table.

    ``corrected``, ``uncorrected`` and ``reference`` are what the table shows (means over seeds; the
    unquantized model's value, None where it is not known), ``found`` what is known of the difference (None:
    there are no windows in common, or too few), ``corrected_cells`` and ``uncorrected_cells`` the
    fingerprints of the records behind it by seed.
    """

    study: str
    row: Row
    column: Column
    corrected: float
    uncorrected: float
    reference: float | None
    found: Difference | None
    corrected_cells: tuple[str, ...]
    uncorrected_cells: tuple[str, ...]

    @property
    def seeds(self) -> int:
        return len(self.corrected_cells)

    @property
    def verdict(self) -> Verdict:
        """What is established of it; ``undecided`` is what is not (:attr:`Difference.established`)."""
        if self.found is None or not self.found.established:
            return "undecided"
        return "better" if (self.found.estimate < 0) == self.column.lower_is_better else "worse"

    @property
    def useless(self) -> bool:
        """Whether the difference is one between models of no use (:data:`USELESS`)."""
        known = self.column.name == "perplexity" and self.reference is not None
        return known and not self.corrected <= USELESS * (self.reference or math.nan)

    @property
    def cells(self) -> frozenset[str]:
        """Fingerprints of all records behind it."""
        return frozenset(self.corrected_cells + self.uncorrected_cells)


@dataclass(frozen=True)
class Counts:
    """How many of a study's differences are established, and which way."""

    better: int = 0
    worse: int = 0
    undecided: int = 0

    @property
    def total(self) -> int:
        return self.better + self.worse + self.undecided


def pairs_of(table: Table, study: str) -> list[Pair]:
    """Every difference of a table that has a value on both sides, line by line."""
    places = {row: i for i, row in enumerate(table.rows)}
    mean = table.mean.to_numpy()
    pairs = []
    for (i, j), (on, off) in table.sources.items():
        row, seeds = table.rows[i], sorted(on.keys() & off.keys())
        if row.kind != "difference" or table.columns[j].protocol is None or not seeds:
            continue
        value, without = replace(row, kind="value"), without_correction(row)
        reference = _reference(table, row.model, j)
        pairs.append(
            Pair(
                study=study,
                row=value,
                column=table.columns[j],
                corrected=float(mean[places[value], j]),
                uncorrected=float(mean[places[without], j]),
                reference=reference,
                found=table.compared.get((i, j)),
                corrected_cells=tuple(on[seed] for seed in seeds),
                uncorrected_cells=tuple(off[seed] for seed in seeds),
            )
        )
    return pairs


def _reference(table: Table, model: str, j: int) -> float | None:
    mean, seeds = table.mean.to_numpy(), table.seeds.to_numpy()
    for i, row in enumerate(table.rows):
        if row.kind == "reference" and row.model == model and seeds[i, j]:
            return float(mean[i, j])
    return None


def counted(pairs: Sequence[Pair]) -> list[str]:
    """The verdict of the numbers, a line a correction: ``on - off: 1 established better, ...``."""
    sentences = []
    for correction, counts in count(pairs).items():
        mine = [pair for pair in pairs if pair.row.correction == correction]
        text = (
            f"{correction} - {NO_CORRECTION}: {counts.better} established better, {counts.worse} established "
            f"worse, {counts.undecided} undecided, of {counts.total}"
        )
        single = sum(pair.seeds < FEWEST_SEEDS for pair in mine)
        if single:
            which = "all" if single == len(mine) else str(single)
            text += f" ({which} with one seed, which cannot establish anything)"
        sentences.append(text)
    return sentences


def count(pairs: Iterable[Pair]) -> Mapping[str, Counts]:
    """The verdicts by correction, in the order the corrections are met."""
    counted: dict[str, Counts] = {}
    for pair in pairs:
        before = counted.get(pair.row.correction, Counts())
        more = {pair.verdict: getattr(before, pair.verdict) + 1}
        counted[pair.row.correction] = replace(before, **more)
    return counted
