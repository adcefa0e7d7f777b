"""What a results folder says: a report a study, and every difference of all studies in one list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from q2n.records import failure as failures
from q2n.records.store import RunRecord, read_all
from q2n.report.studies.experiments import Experiments
from q2n.report.studies.published import Beside, PublishedValue, beside
from q2n.report.studies.study import Study
from q2n.report.tables.every_difference import Line, over_all
from q2n.report.tables.models import told_apart
from q2n.report.tables.pairs import Counts, Pair, count, pairs_of
from q2n.report.tables.select import NO_CODES, Codes, kept_codes, latest, of_today
from q2n.report.tables.table import Table, build_tables
from q2n.report.tables.unfinished import Unfinished, failed

NO_EXPERIMENTS = Experiments()

FIGURES = "figures"
"""Folder below the results."""


@dataclass(frozen=True)
class Drawn:
    """A figure that was written: its kind, a sentence below it, and its files relative to the results folder
    (``figures/<study>/differences.svg``); None: no such file was asked for."""

    kind: str
    caption: str
    svg: str
    png: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        return (self.svg,) if self.png is None else (self.svg, self.png)


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
class Report:
    """A results folder. ``faults`` are complaints about files that could not be read, ``overview`` is the
    main figure, ``of_today`` counts the shown records that today's code would make again."""

    studies: tuple[StudyReport, ...]
    lines: tuple[Line, ...]
    faults: tuple[str, ...] = ()
    overview: Drawn | None = None
    of_today: int = 0

    @property
    def shown(self) -> int:
        """How many records are shown."""
        return sum(len(study.records) for study in self.studies)


def gather(
    results_dir: str | Path, experiments: Experiments = NO_EXPERIMENTS, name: str | None = None
) -> Report:
    """Everything the folder's records (of one name) say. Studies without records are left out; names without
    a study come last.

    Raises:
        RecordError: two different cells cannot be told apart by their configuration.
    """
    found, faults = read_all(results_dir, name)
    left, more = failures.read_all(results_dir, name)
    records, unfinished = told_apart(found, failed(left))
    codes = kept_codes(records, results_dir)
    studies, names = experiments.studies, {record.name for record in records}
    ordered = [item for item in studies if item in names] + sorted(names - studies.keys())
    reports = tuple(
        study_report(
            item,
            [record for record in records if record.name == item],
            [cell for cell in unfinished if cell.failure and cell.failure.ref.name == item],
            studies.get(item),
            experiments.published,
            codes,
        )
        for item in ordered
    )
    every = [record for report in reports for record in report.records]
    lines = over_all([pair for report in reports for pair in report.pairs], every)
    return Report(reports, lines, (*faults, *more), of_today=of_today(every))


def study_report(
    name: str,
    records: Iterable[RunRecord],
    unfinished: Sequence[Unfinished] = (),
    study: Study | None = None,
    published: Sequence[PublishedValue] = (),
    codes: Codes = NO_CODES,
) -> StudyReport:
    """The report of the records of one name; ``published`` may hold other studies' numbers too.

    Args:
        codes: see :func:`q2n.report.tables.select.code_notes`.

    Raises:
        RecordError: two different cells cannot be told apart by their configuration.
    """
    records, unfinished = told_apart(records, unfinished)
    current, superseded = latest(records)
    tables = tuple(build_tables(current, unfinished, superseded, codes))
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
