"""What a results folder says: a report a study, and every difference of all studies in one list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from q2n.records import failure as failures
from q2n.records.kept_code import kept
from q2n.records.notes import State
from q2n.records.store import RunRecord, read_all
from q2n.report.studies.published import Beside, beside, published_table
from q2n.report.studies.study import Experiments, PublishedValue, Study
from q2n.report.tables.every_difference import Line, over_all
from q2n.report.tables.models import told_apart
from q2n.report.tables.pairs import Pair, pairs_of
from q2n.report.tables.select import NO_CODES, Codes, Unfinished, latest, of_today
from q2n.report.tables.table import Table, build_tables

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

    ``records`` are the current ones, ``pairs`` the differences of all ``tables``; ``published`` are numbers
    of the paper beside ours.
    """

    name: str
    study: Study | None
    records: tuple[RunRecord, ...]
    unfinished: tuple[Unfinished, ...]
    tables: tuple[Table, ...]
    pairs: tuple[Pair, ...]
    published: tuple[Beside, ...] = ()
    figures: tuple[Drawn, ...] = ()

    @property
    def title(self) -> str:
        return self.study.title if self.study else self.name

    @property
    def all_tables(self) -> tuple[Table, ...]:
        """The tables, and published numbers beside ours where there are any."""
        return (*self.tables, published_table(self.published)) if self.published else self.tables

    @property
    def empty(self) -> int:
        """Places of the tables (line and bits) where no cell finished or failed: it was not run, or not
        asked for."""
        return sum(
            row.kind == "value" and column.protocol is None and not (number.seeds or number.unfinished)
            for table in self.tables
            for (row, column), number in table.numbers.items()
        )


@dataclass(frozen=True)
class Report:
    """A results folder. ``faults`` are complaints about files that could not be read, ``overview`` is the
    main figure, ``of_today`` counts the shown records that today's code would make again."""

    studies: tuple[StudyReport, ...]
    lines: tuple[Line, ...]
    faults: tuple[str, ...] = ()
    overview: Drawn | None = None
    of_today: int = 0

    def currency(self, code: str) -> str:
        """The sentence on how current the records are; ``code`` in words."""
        shown = sum(len(study.records) for study in self.studies)
        return f"{self.of_today} of the {shown} records shown are of {code}."


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
    lost = [Unfinished(item.ref.axes, item.ref.configuration, State.FAILED.word, item) for item in left]
    records, unfinished = told_apart(found, lost)
    keys = sorted({record.identity["code"] for record in records if "code" in record.identity})
    codes = {key: parts for key in keys if (parts := kept(results_dir, key))}
    studies, names = experiments.studies, {record.name for record in records}
    ordered = [item for item in studies if item in names] + sorted(names - studies.keys())
    reports = []
    for item in ordered:
        own = [record for record in records if record.name == item]
        failed = [cell for cell in unfinished if cell.failure and cell.failure.ref.name == item]
        reports.append(study_report(item, own, failed, studies.get(item), experiments.published, codes))
    every = [record for report in reports for record in report.records]
    lines = over_all([pair for report in reports for pair in report.pairs], every)
    return Report(tuple(reports), lines, (*faults, *more), of_today=of_today(every))


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
    numbers = beside(published, name, tables, current)
    return StudyReport(name, study, tuple(current), tuple(unfinished), tables, pairs, numbers)
