"""Tables on the terminal and in files under ``<results_dir>/tables/``; from records only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as RichTable

from q2n.files import write_text_atomic
from q2n.record import RunRecord
from q2n.report.formats import latex, markdown
from q2n.report.frame import long_frame
from q2n.report.select import by_protocol, latest
from q2n.report.tables import build_tables
from q2n.report.text import Grid, select_columns, to_grid
from q2n.report.unfinished import Unfinished, by_group

FOLDER = "tables"
_NOTHING = "No records: nothing to report."


def print_report(
    records: Iterable[RunRecord], console: Console, unfinished: Iterable[Unfinished] = ()
) -> None:
    """The tables and their notes on the terminal; ``unfinished`` cells are marked in their place.

    Raises:
        RecordError: two different cells cannot be told apart by their configuration.
    """
    grids = [to_grid(table) for table in build_tables(records, unfinished)]
    if not grids:
        console.print(_NOTHING)
    for grid in grids:
        for part in _fitted(grid, console):
            console.print(rich_table(part))
        for note in grid.notes:
            console.print(f"  {escape(note)}", style="dim", highlight=False)


def _fitted(grid: Grid, console: Console) -> list[Grid]:
    """The grid cut into as many pieces, side by side, as the terminal's width needs."""
    pieces: list[list[int]] = [[]]
    unbounded = console.options.update_width(10_000)  # a measurement never exceeds the width it is given
    for position in range(len(grid.heads)):
        wider = [*pieces[-1], position]
        needed = Measurement.get(console, unbounded, rich_table(select_columns(grid, wider))).maximum
        if pieces[-1] and needed > console.width:
            pieces.append([position])
        else:
            pieces[-1] = wider
    return [select_columns(grid, piece) for piece in pieces]


def rich_table(grid: Grid) -> RichTable:
    """The grid for a terminal: model and baseline share a column, numbers and names are never broken."""
    table = RichTable(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1), collapse_padding=True)
    labels = [(row.labels[0] or f"  {row.labels[1]}", *row.labels[2:]) for row in grid.rows]
    for position, stub in enumerate(("model, baseline", *grid.stubs[2:])):
        texts = [stub, *(label[position] for label in labels)]
        longest = max(len(word) for text in texts for word in (text.split() if position else [text]))
        table.add_column(escape(stub), vertical="bottom", min_width=longest)
    for bits, lines in grid.heads:
        head = "\n".join(escape(line) for line in (bits, *lines))
        table.add_column(head, justify="right", no_wrap=True)
    for label, row in zip(labels, grid.rows, strict=True):
        if row.rule:
            table.add_section()
        texts = [
            f"[bold green]{escape(text)}[/]" if bold else escape(text)
            for text, bold in zip(row.texts, row.bold, strict=True)
        ]
        table.add_row(*map(escape, label), *texts)
    return table


def write_report(
    records: Iterable[RunRecord],
    results_dir: str | Path,
    name: str,
    unfinished: Iterable[Unfinished] = (),
) -> list[Path]:
    """Write ``tables/<name>.md``, ``.csv`` and ``.tex`` and return their paths; none without records.

    The csv has one row per cell and metric, seeds apart, with wall times and peak memory.

    Raises:
        RecordError: two different cells cannot be told apart by their configuration.
        OSError: the folder cannot be written.
    """
    records = list(records)
    if not records:
        return []
    current, _ = latest(records)
    unfinished = list(unfinished)
    grids = [to_grid(table) for table in build_tables(records, unfinished)]
    groups = by_group(by_protocol(current), unfinished)
    titles = [name if len(groups) == 1 else f"{name}: {_models(*group)}" for group in groups]
    texts = {
        "md": "\n".join(markdown(grid, title) for grid, title in zip(grids, titles, strict=True)),
        "csv": long_frame(current).to_csv(index=False, lineterminator="\n"),
        "tex": "\n".join(latex(grid, title) for grid, title in zip(grids, titles, strict=True)),
    }
    paths = []
    for kind, text in texts.items():
        path = Path(results_dir) / FOLDER / f"{name}.{kind}"
        write_text_atomic(path, text)
        paths.append(path)
    return paths


def _models(group: list[RunRecord], rest: list[Unfinished]) -> str:
    models = [record.cell.model for record in group] + [item.cell.model for item in rest]
    return ", ".join(dict.fromkeys(models))
