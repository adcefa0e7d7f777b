"""What a results folder says: a report a study, and every difference of all studies in one list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from q2n import failure as failures
from q2n.record import RunRecord, read_all
from q2n.report.experiments import Experiments
from q2n.report.pairs import Counts, Pair, count, pairs_of
from q2n.report.published import Beside, PublishedValue, beside
from q2n.report.select import latest
from q2n.report.settings import distinguishing
from q2n.report.study import Study
from q2n.report.tables import Table, build_tables
from q2n.report.unfinished import Unfinished, failed

NO_EXPERIMENTS = Experiments()

MAIN = "on"
"""The correction that an overview is about: the paper's."""


@dataclass(frozen=True)
class Drawn:
    """A figure that was written: its kind, a sentence below it, and its files relative to the results folder
    (``figures/<study>/differences.svg``)."""

    kind: str
    caption: str
    svg: str
    png: str


@dataclass(frozen=True)
class StudyReport:
    """Everything a report shows of one name. ``study`` is None for records that belong to none.

    ``records`` are the current ones (``superseded`` older ones are left out); ``counts`` are the verdicts of
    all ``pairs`` by correction; ``empty`` counts the places of the tables (line and bits) where no cell
    finished or failed: it was not run, or not asked for; ``published`` are numbers of the paper beside ours.
    """

    name: str
    study: Study | None
    records: tuple[RunRecord, ...]
    superseded: int
    unfinished: tuple[Unfinished, ...]
    tables: tuple[Table, ...]
    pairs: tuple[Pair, ...]
    counts: Mapping[str, Counts]
    empty: int
    published: tuple[Beside, ...] = ()
    figures: tuple[Drawn, ...] = ()

    @property
    def title(self) -> str:
        return self.study.title if self.study else self.name


@dataclass(frozen=True)
class Line:
    """A difference in the list over all studies. ``settings`` tell it from the others (only what departs from
    what most cells of its model have); ``studies`` have exactly these cells, ``pair`` is the first one's."""

    pair: Pair
    settings: tuple[str, ...]
    studies: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """A results folder. ``faults`` are complaints about files that could not be read, ``overview`` is the
    main figure."""

    studies: tuple[StudyReport, ...]
    lines: tuple[Line, ...]
    faults: tuple[str, ...] = ()
    overview: Drawn | None = None


def gather(
    results_dir: str | Path, experiments: Experiments = NO_EXPERIMENTS, name: str | None = None
) -> Report:
    """Everything the folder's records (of one name) say. Studies without records are left out; names without
    a study come last.

    Raises:
        RecordError: two different cells cannot be told apart by their configuration.
    """
    records, faults = read_all(results_dir, name)
    left, more = failures.read_all(results_dir, name)
    studies, names = experiments.studies, {record.name for record in records}
    ordered = [item for item in studies if item in names] + sorted(names - studies.keys())
    reports = tuple(
        study_report(
            item,
            [record for record in records if record.name == item],
            failed(failure for failure in left if failure.name == item),
            studies.get(item),
            experiments.published,
        )
        for item in ordered
    )
    return Report(reports, over_all(reports), (*faults, *more))


def study_report(
    name: str,
    records: Iterable[RunRecord],
    unfinished: Sequence[Unfinished] = (),
    study: Study | None = None,
    published: Sequence[PublishedValue] = (),
) -> StudyReport:
    """The report of the records of one name; ``published`` may hold other studies' numbers too.

    Raises:
        RecordError: two different cells cannot be told apart by their configuration.
    """
    current, superseded = latest(records)
    tables = tuple(build_tables(current, unfinished, superseded))
    pairs = tuple(pair for table in tables for pair in pairs_of(table, name))
    empty = sum(map(_empty, tables))
    numbers = beside(published, name, tables, current)
    return StudyReport(
        name,
        study,
        tuple(current),
        superseded,
        tuple(unfinished),
        tables,
        pairs,
        count(pairs),
        empty,
        numbers,
    )


def _empty(table: Table) -> int:
    """Pairs of a line and a number of bits without any value."""
    filled = {
        (i, column.bits): bool(table.seeds.iat[i, j]) or (i, j) in table.marks
        for i, row in enumerate(table.rows)
        if row.kind == "value"
        for j, column in enumerate(table.columns)
        if column.protocol is None
    }
    return sum(not there for there in filled.values())


def over_all(reports: Sequence[StudyReport]) -> tuple[Line, ...]:
    """The differences of all studies, each once: one whose records are all behind another one too is left
    out, and where they are the same the first study's stands, with the p-value of its family."""
    pairs = [pair for report in reports for pair in report.pairs]
    kept: dict[int, list[str]] = {}
    by_measure: dict[object, list[int]] = {}
    for place, pair in enumerate(pairs):
        by_measure.setdefault((pair.column, pair.row.correction), []).append(place)
    for alike in by_measure.values():
        for place in alike:
            larger = [other for other in alike if _covers(pairs[other], pairs[place], other < place)]
            if not larger:
                same = [other for other in alike if pairs[other].cells == pairs[place].cells]
                kept[place] = list(dict.fromkeys(pairs[other].study for other in same))
    labels = _labels([record for report in reports for record in report.records])
    return tuple(
        Line(pairs[place], labels[pairs[place].corrected_cells[0]], tuple(kept[place]))
        for place in sorted(kept)
    )


def main_lines(lines: Iterable[Line]) -> list[Line]:
    """What an overview shows: perplexity with and without :data:`MAIN`, at the settings most cells have."""
    return [
        line
        for line in lines
        if line.pair.row.correction == MAIN and not line.settings and line.pair.column.name == "perplexity"
    ]


def _covers(one: Pair, other: Pair, earlier: bool) -> bool:
    """Whether ``one`` takes the place of ``other``: it has all of its records and more, or came earlier."""
    return other.cells < one.cells or (earlier and other.cells == one.cells)


def _labels(records: Sequence[RunRecord]) -> dict[str, tuple[str, ...]]:
    """By fingerprint: the settings in which a cell departs from what most cells of its model have."""
    unique = list({record.fingerprint: record for record in records}.values())
    found = [(*labels.cell, *labels.correction) for labels in distinguishing(unique, ("evaluation",))]
    counted: dict[str, Counter[str]] = {}
    for record, labels in zip(unique, found, strict=True):
        for label in labels:
            counted.setdefault(_context(record, label), Counter())[label] += 1
    return {
        record.fingerprint: tuple(
            label for label in labels if counted[_context(record, label)].most_common(1)[0][0] != label
        )
        for record, labels in zip(unique, found, strict=True)
    }


def _context(record: RunRecord, label: str) -> str:
    """The key of a label, apart for each model and for each choice of the group it belongs to."""
    key = label.partition("=")[0]
    choice = {"baseline": record.cell.baseline, "q2n": record.cell.correction}.get(key.partition(".")[0], "")
    return f"{record.cell.model} {choice} {key}"
