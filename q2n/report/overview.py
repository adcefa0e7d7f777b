"""Reports of a results folder: one per study, and a list of the differences of all studies."""

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
"""Neither studies nor published numbers."""

FIGURES = "figures"
"""Folder of the figures below the results folder."""


@dataclass(frozen=True)
class Drawn:
    """A written figure: kind, caption, and paths relative to the results folder.

    A path is ``figures/<study>/differences.svg``, for example; ``png`` is None if no PNG was asked for.
    """

    kind: str
    caption: str
    svg: str
    png: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the SVG file and, if there is one, of the PNG file."""
        return (self.svg,) if self.png is None else (self.svg, self.png)


@dataclass(frozen=True)
class StudyReport:
    """Content of the report on one name; ``study`` is None if the records belong to no study.

    ``records`` has the newest record of each cell, ``pairs`` the differences of all ``tables``, ``published``
    the paper's numbers beside ours.
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
        """Title of the study, or the name of the records if they belong to no study."""
        return self.study.title if self.study else self.name

    @property
    def all_tables(self) -> tuple[Table, ...]:
        """The tables, followed by the table of published numbers if there are any."""
        return (*self.tables, published_table(self.published)) if self.published else self.tables

    @property
    def empty(self) -> int:
        """Number of places in the tables (line and bits) without a finished or failed cell.

        The cell of such a place was not run or not asked for.
        """
        return sum(
            row.kind == "value" and column.protocol is None and not (number.seeds or number.unfinished)
            for table in self.tables
            for (row, column), number in table.numbers.items()
        )


@dataclass(frozen=True)
class Report:
    """Report of a results folder.

    ``faults`` has one message per file that could not be read, ``overview`` is the main figure, ``of_today``
    the number of shown records made by code that does the same as today's.
    """

    studies: tuple[StudyReport, ...]
    lines: tuple[Line, ...]
    faults: tuple[str, ...] = ()
    overview: Drawn | None = None
    of_today: int = 0

    def currency(self, code: str) -> str:
        """Sentence on the number of records made by today's code; ``code`` names that code in words."""
        shown = sum(len(study.records) for study in self.studies)
        return f"{self.of_today} of the {shown} records shown are of {code}."


def gather(
    results_dir: str | Path, experiments: Experiments = NO_EXPERIMENTS, name: str | None = None
) -> Report:
    """Report of all records in a folder.

    Studies without records are left out; names without a study come last.

    Args:
        results_dir: folder of the records.
        experiments: studies and published numbers.
        name: only records of this name, or None for all names.

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
    """Report of the records of one name.

    Args:
        name: name of the records.
        records: all records of that name; of several for one cell the newest counts.
        unfinished: cells without a record.
        study: the study of that name, or None if there is none.
        published: published numbers; those of other studies are ignored.
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
