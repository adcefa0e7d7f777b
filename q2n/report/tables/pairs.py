"""Differences as a list: each correction against no correction, with its significance and records."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from q2n.report.tables.comparisons import FEWEST_SEEDS, Difference
from q2n.report.tables.lines import NO_CORRECTION, Column, Row, reference_of, without_correction
from q2n.report.tables.table import Table

USELESS = 10
"""Multiple of the unquantized perplexity above which even the corrected model has collapsed."""

Verdict = Literal["better", "worse", "undecided"]


@dataclass(frozen=True)
class Pair:
    """A corrected line and the uncorrected one, in one column of a study's table.

    ``corrected`` and ``uncorrected`` are means over seeds, ``reference`` is the unquantized model's value or
    None if it is not known. ``found`` is the tested difference, or None if there are no or too few common
    windows. ``corrected_cells`` and ``uncorrected_cells`` are the records' fingerprints, ordered by seed.
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
        """Number of seeds behind the difference."""
        return len(self.corrected_cells)

    @property
    def verdict(self) -> Verdict:
        """Verdict on the difference; ``undecided`` if it is not :attr:`Difference.significant`."""
        if self.found is None or not self.found.significant:
            return "undecided"
        return "better" if (self.found.estimate < 0) == self.column.lower_is_better else "worse"

    @property
    def useless(self) -> bool:
        """True if even the corrected model has collapsed (:data:`USELESS`)."""
        known = self.column.name == "perplexity" and self.reference is not None
        return known and not self.corrected <= USELESS * (self.reference or math.nan)

    @property
    def cells(self) -> frozenset[str]:
        """Fingerprints of all records behind the difference."""
        return frozenset(self.corrected_cells + self.uncorrected_cells)


@dataclass(frozen=True)
class Counts:
    """Numbers of differences by verdict; ``single`` of them have one seed only."""

    better: int = 0
    worse: int = 0
    undecided: int = 0
    single: int = 0

    @property
    def total(self) -> int:
        """Number of all differences."""
        return self.better + self.worse + self.undecided


def pairs_of(table: Table, study: str) -> list[Pair]:
    """Differences of a table that have a value on both sides, line by line."""
    pairs = []
    for line in table.lines:
        value, without = replace(line.row, kind="value"), without_correction(line.row)
        for column, number in zip(table.columns, line.numbers, strict=True):
            if not number.others:
                continue
            reference = table.numbers.get((reference_of(value.model), column))
            pairs.append(
                Pair(
                    study=study,
                    row=value,
                    column=column,
                    corrected=table.numbers[value, column].value,
                    uncorrected=table.numbers[without, column].value,
                    reference=reference.value if reference and reference.seeds else None,
                    found=number.found,
                    corrected_cells=number.cells,
                    uncorrected_cells=number.others,
                )
            )
    return pairs


def counted(pairs: Sequence[Pair]) -> list[str]:
    """One sentence per correction on its verdicts: ``on - off: 1 significantly better, ...``."""
    sentences = []
    for correction, counts in count(pairs).items():
        text = (
            f"{correction} - {NO_CORRECTION}: {counts.better} significantly better, {counts.worse} "
            f"significantly worse, {counts.undecided} undecided, of {counts.total}"
        )
        if counts.single:
            which = "all" if counts.single == counts.total else counts.single
            text += f" ({which} with one seed, which decides nothing)"
        sentences.append(text)
    return sentences


def count(pairs: Iterable[Pair]) -> dict[str, Counts]:
    """Numbers of verdicts by correction, in the order of the pairs."""
    met: dict[str, Counter[str]] = defaultdict(Counter)
    for pair in pairs:
        met[pair.row.correction][pair.verdict] += 1
        met[pair.row.correction]["single"] += pair.seeds < FEWEST_SEEDS
    return {correction: Counts(**counts) for correction, counts in met.items()}
