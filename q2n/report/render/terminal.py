"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as RichTable

from q2n.records.store import RunRecord
from q2n.report.render.text import Grid, select_columns, to_grid
from q2n.report.tables.table import build_tables
from q2n.report.tables.unfinished import Unfinished

_NOTHING = "No records: nothing to report."


def print_report(
    records: Iterable[RunRecord], console: Console, unfinished: Iterable[Unfinished] = ()
) -> None:
    """The tables and their notes on the terminal; ``unfinished`` cells are marked in their place.

    Raises:
        RecordError: two different cells cannot be told apart by their configuration.
    """
    tables = build_tables(records, unfinished)
    if not tables:
        console.print(_NOTHING)
    print_grids(map(to_grid, tables), console)


def print_grids(grids: Iterable[Grid], console: Console) -> None:
    """Printable tables on the terminal, cut into pieces where it is too narrow, and their notes."""
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


def _first(labels: tuple[str, ...]) -> str:
    """Model and baseline in one column; a repeated model is left blank and its baselines are indented."""
    model, baseline = labels[:2]
    return f"{model}, {baseline}" if model and baseline else model or f"  {baseline}"


def rich_table(grid: Grid) -> RichTable:
    """The grid for a terminal: model and baseline share a column, numbers and names are never broken."""
    table = RichTable(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1), collapse_padding=True)
    labels = [(_first(row.labels), *row.labels[2:]) for row in grid.rows]
    for position, stub in enumerate(("model, baseline", *grid.stubs[2:])):
        texts = [stub, *(label[position] for label in labels)]
        longest = max(len(word) for text in texts for word in (text.split() if position else [text]))
        table.add_column(escape(stub), vertical="bottom", min_width=longest)
    for bits, lines in grid.heads:
        head = "\n".join(escape(line) for line in (bits, *lines) if line)
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
