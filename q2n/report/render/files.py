"""A study's tables as files under ``<results_dir>/tables/``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from q2n.report.overview import FIGURES, Report, StudyReport
from q2n.report.render.formats import latex, markdown
from q2n.report.render.text import EMPTY, Grid, amount, line_grid, to_grid
from q2n.report.studies.published import FILE, Beside
from q2n.report.tables.frame import long_frame
from q2n.report.tables.lines import Row
from q2n.report.tables.pairs import counted
from q2n.report.tables.table import Table
from q2n.runtime.files import write_text_atomic

FOLDER = "tables"
KINDS = ("md", "csv", "tex")


def write_tables(report: StudyReport, results_dir: str | Path) -> list[Path]:
    """Write ``tables/<name>.md``, ``.csv`` and ``.tex`` and return their paths; none without records.

    The csv has one row per cell and metric, seeds apart, with wall times and peak memory.

    Raises:
        OSError: the folder cannot be written.
    """
    if not report.records:
        return []
    grids = [to_grid(table) for table in report.tables]
    titles = [_title(report, table) for table in report.tables]
    texts = {
        "md": _markdown(report, grids, titles),
        "csv": long_frame(report.records).to_csv(index=False, lineterminator="\n"),
        "tex": "\n".join(latex(grid, title) for grid, title in zip(grids, titles, strict=True)),
    }
    paths = []
    for kind, text in texts.items():
        path = Path(results_dir) / FOLDER / f"{report.name}.{kind}"
        write_text_atomic(path, text)
        paths.append(path)
    return paths


def leftovers(report: Report, results_dir: Path) -> list[Path]:
    """Tables and figures below the folder that a whole report does not make (any more)."""
    drawn = [item for study in report.studies for item in study.figures]
    drawn += [report.overview] if report.overview else []
    made = {results_dir / path for item in drawn for path in item.files}
    made |= {results_dir / FOLDER / f"{study.name}.{kind}" for study in report.studies for kind in KINDS}
    there = [path for part in (FOLDER, FIGURES) for path in sorted((results_dir / part).rglob("*"))]
    return [path for path in there if path.is_file() and path not in made]


def _title(report: StudyReport, table: Table) -> str:
    """Of a table: the models tell the tables of one study apart."""
    models = ", ".join(dict.fromkeys(row.model for row in table.rows))
    return report.title if len(report.tables) == 1 else f"{report.title}: {models}"


def _markdown(report: StudyReport, grids: Sequence[Grid], titles: Sequence[str]) -> str:
    parts = [markdown(grid, title) for grid, title in zip(grids, titles, strict=True)]
    if report.study is not None and report.pairs:
        said = "".join(f"* {line}\n" for line in counted(report.pairs))
        parts.append(f"### Established differences\n\n{said}")
    if report.published:
        parts.append(markdown(published_grid(report.published), "Published numbers"))
    elif report.study is not None:
        parts.append(f"{no_published()}\n")
    return "\n".join(parts)


def of_today(report: Report, code: str) -> str:
    """The sentence on how current the records are; ``code`` in words."""
    return f"{report.of_today} of the {report.shown} records shown are of {code}."


def no_published() -> str:
    """The sentence where there is nothing to set beside a table."""
    return f"Published numbers: not available (experiments/{FILE} has none for this study)."


def published_grid(lines: Sequence[Beside]) -> Grid:
    """Published, measured and their difference, a row a pair."""
    heads = ("column", "published", "measured", "difference", "where", "remark")
    notes = (
        "difference: measured minus published; none where the protocols differ in what is known of them",
    )
    return line_grid([(_row(line), _texts(line), False) for line in lines], heads, 0, notes)


def _row(line: Beside) -> Row:
    row = line.published.row
    return line.row or Row(row.model, row.baseline, (), row.q2n)


def _texts(line: Beside) -> tuple[str, ...]:
    value, column = line.published, line.published.column
    measured = EMPTY if line.measured is None else amount(line.measured)
    signed = EMPTY if line.difference is None else f"{line.difference:+.2f}"
    place = f"{column.bits:g} bit {column.dataset} {column.metric}"
    remark = "; ".join(part for part in (line.remark, value.note) if part)
    return (place, amount(value.value), measured, signed, value.table, remark)
