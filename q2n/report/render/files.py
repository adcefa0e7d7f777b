"""A study's tables as files under ``<results_dir>/tables/``."""

from __future__ import annotations

from pathlib import Path

from q2n.report.overview import FIGURES, Report, StudyReport
from q2n.report.render.formats import latex, markdown
from q2n.report.tables.lines import long_frame
from q2n.report.tables.pairs import counted
from q2n.report.tables.table import Table
from q2n.runtime.files import write_text_atomic

FOLDER = "tables"
"""Folder of the tables below the results folder."""
KINDS = ("md", "csv", "tex")
"""File name extensions of a study's tables."""


def write_tables(report: StudyReport, results_dir: str | Path) -> list[Path]:
    """Write ``tables/<name>.md``, ``.csv`` and ``.tex`` and return their paths, empty without records.

    The CSV file has one row per cell and metric, not averaged over seeds, with wall times and peak memory.

    Raises:
        OSError: the folder cannot be written.
    """
    if not report.records:
        return []
    titled = [(table, _title(report, table)) for table in report.all_tables]
    parts = [markdown(*item) for item in titled]
    if report.study is not None and report.pairs:
        said = "".join(f"* {line}\n" for line in counted(report.pairs))
        parts.insert(len(report.tables), f"### Significant differences\n\n{said}")
    texts = {
        "md": "\n".join(parts),
        "csv": long_frame(report.records).to_csv(index=False, lineterminator="\n"),
        "tex": "\n".join(latex(*item) for item in titled),
    }
    paths = [Path(results_dir) / FOLDER / f"{report.name}.{kind}" for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text_atomic(path, text)
    return paths


def leftovers(report: Report, results_dir: Path) -> list[Path]:
    """Paths of files below ``tables`` and ``figures`` that the report of the whole folder does not make."""
    drawn = [item for study in report.studies for item in study.figures]
    drawn += [report.overview] if report.overview else []
    made = {results_dir / path for item in drawn for path in item.files}
    made |= {results_dir / FOLDER / f"{study.name}.{kind}" for study in report.studies for kind in KINDS}
    there = [path for part in (FOLDER, FIGURES) for path in sorted((results_dir / part).rglob("*"))]
    return [path for path in there if path.is_file() and path not in made]


def _title(report: StudyReport, table: Table) -> str:
    """Title of a table; if a study has several tables, it ends in the names of the table's models."""
    if table.title or len(report.tables) == 1:
        return table.title or report.title
    return f"{report.title}: {', '.join(table.models)}"
