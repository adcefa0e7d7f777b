"""Formats of a table: terminal, Markdown and LaTeX."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as RichTable

from q2n.records.store import RunRecord
from q2n.report.tables.select import Unfinished
from q2n.report.tables.table import Number, Table, build_tables

_TEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": r"\textless{}", ">": r"\textgreater{}", "\u2013": "--"},
        **{"±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$", "·": r"$\cdot$"},
    }
)
_MARKDOWN = str.maketrans(
    {"\\": r"\\", "|": r"\|", "*": r"\*", "_": r"\_", "`": r"\`", "<": "&lt;", ">": "&gt;", "\n": " "}
)


def print_report(
    records: Iterable[RunRecord], console: Console, unfinished: Iterable[Unfinished] = ()
) -> None:
    """Print the tables and their notes; ``unfinished`` cells are marked in their place.

    Raises:
        RecordError: two different cells cannot be told apart by their configuration.
    """
    tables = build_tables(records, unfinished)
    if not tables:
        console.print("No records: nothing to report.")
    print_tables(tables, console)


def print_tables(tables: Iterable[Table], console: Console) -> None:
    """Print tables and their notes; a table wider than the terminal is cut into pieces."""
    for table in tables:
        for part in _fitted(table, console):
            console.print(rich_table(part))
        for note in (*table.legend, *table.notes):
            console.print(f"  {escape(note)}", style="dim", highlight=False)


def _fitted(table: Table, console: Console) -> list[Table]:
    """The table cut by columns into pieces that fit the terminal's width."""
    pieces: list[list[int]] = [[]]
    unbounded = console.options.update_width(10_000)  # a measurement never exceeds the width it is given
    for position in range(len(table.heads)):
        wider = [*pieces[-1], position]
        needed = Measurement.get(console, unbounded, rich_table(table.select(wider))).maximum
        if pieces[-1] and needed > console.width:
            pieces.append([position])
        else:
            pieces[-1] = wider
    return [table.select(piece) for piece in pieces]


def rich_table(table: Table) -> RichTable:
    """The table for a terminal, without line breaks in numbers and names.

    Model and baseline share a column; a repeated model is left blank and its baselines are indented.
    """
    shown = RichTable(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1), collapse_padding=True)
    lines = []
    for (model, baseline, *rest), numbers, rule in table.printed():
        first = f"{model}, {baseline}" if model and baseline else model or f"  {baseline}"
        lines.append(([first, *rest], numbers, rule))
    for position, stub in enumerate(("model, baseline", *table.stubs[2:])):
        texts = [stub, *(labels[position] for labels, _, _ in lines)]
        longest = max(len(word) for text in texts for word in (text.split() if position else [text]))
        shown.add_column(escape(stub), vertical="bottom", min_width=longest)
    for head in table.heads:
        text = "\n".join(escape(line) for line in (head.above, *head.lines) if line)
        shown.add_column(text, justify="right", no_wrap=True)
    for labels, numbers, rule in lines:
        if rule:
            shown.add_section()
        texts = [
            f"[bold green]{escape(number.text)}[/]" if number.bold else escape(number.text)
            for number in numbers
        ]
        shown.add_row(*map(escape, labels), *texts)
    return shown


def markdown(table: Table, title: str) -> str:
    """The table in GitHub-flavoured Markdown, with a heading above and the notes as a list below."""
    heads = ["<br>".join(_md(line) for line in (head.above, *head.lines) if line) for head in table.heads]
    rows = [[*map(_md, labels), *_texts(numbers, _md, "**{}**")] for labels, numbers, _ in table.printed()]
    rules = ["---"] * len(table.stubs) + ["---:"] * len(heads)
    body = "\n".join(f"| {' | '.join(row)} |" for row in ([*table.stubs, *heads], rules, *rows))
    notes = "\n".join(f"* {_md(note)}" for note in (*table.legend, *table.notes))
    return f"## {_md(title)}\n\n{body}\n\n{notes}\n"


def latex(table: Table, title: str) -> str:
    """The table as a LaTeX ``table`` environment (package booktabs); special characters are escaped."""
    stubs = len(table.stubs)
    spans, rules, start = [], [], stubs + 1
    for above, same in itertools.groupby(head.above for head in table.heads):
        width = len(list(same))
        spans.append(rf"\multicolumn{{{width}}}{{c}}{{{_tex(above)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    stacks = [r" \\ ".join(map(_tex, head.lines)) for head in table.heads]
    body = []
    for labels, numbers, rule in table.printed():
        body += [r"\midrule"] * rule
        body.append(_line([*map(_tex, labels), *_texts(numbers, _tex, r"\textbf{{{}}}")]))
    notes = " ".join(_tex(note) + "." for note in (*table.legend, *table.notes))
    parts = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(title)}. {notes}}}",
        rf"\begin{{tabular}}{{{'l' * stubs}{'r' * len(table.heads)}}}",
        r"\toprule",
        _line([*[""] * stubs, *spans]),
        " ".join(rules),
        _line([*map(_tex, table.stubs), *(rf"\shortstack[r]{{{stack}}}" for stack in stacks)]),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(parts) + "\n"


def _texts(numbers: Sequence[Number], escape: Callable[[str], str], bold: str) -> list[str]:
    texts = ((escape(number.text), number.bold) for number in numbers)
    return [bold.format(text) if marked else text for text, marked in texts]


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _md(text: str) -> str:
    return text.translate(_MARKDOWN)


def _tex(text: str) -> str:
    return text.translate(_TEX)
