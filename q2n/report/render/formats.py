"""A grid as Markdown and as LaTeX."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from q2n.report.render.text import Grid, GridRow

_TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "·": r"$\cdot$",
    "\u2013": "--",
}
_MARKDOWN = str.maketrans(
    {"\\": r"\\", "|": r"\|", "*": r"\*", "_": r"\_", "`": r"\`", "<": "&lt;", ">": "&gt;", "\n": " "}
)


def markdown(grid: Grid, title: str) -> str:
    """A GitHub-flavoured table below a heading, notes as a list below it."""
    heads = ["<br>".join(_md(line) for line in (bits, *lines) if line) for bits, lines in grid.heads]
    rows = [" | ".join([*map(_md, row.labels), *_texts(row, _md, "**TEXT**")]) for row in grid.rows]
    lines = [" | ".join([*grid.stubs, *heads]), " | ".join(["---"] * len(grid.stubs) + ["---:"] * len(heads))]
    table = "\n".join(f"| {line} |" for line in (*lines, *rows))
    notes = "\n".join(f"* {_md(note)}" for note in grid.notes)
    return f"## {_md(title)}\n\n{table}\n\n{notes}\n"


def latex(grid: Grid, title: str) -> str:
    """A ``table`` environment for the package booktabs; every special character is escaped."""
    stubs = len(grid.stubs)
    groups = [(bits, len(list(same))) for bits, same in itertools.groupby(bits for bits, _ in grid.heads)]
    spans, rules, start = [], [], stubs + 1
    for bits, width in groups:
        spans.append(rf"\multicolumn{{{width}}}{{c}}{{{_tex(bits)}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    stacked = [rf"\shortstack[r]{{{_stack(lines)}}}" for _, lines in grid.heads]
    body = []
    for row in grid.rows:
        body += [r"\midrule"] * row.rule + [
            _line([*map(_tex, row.labels), *_texts(row, _tex, r"\textbf{TEXT}")])
        ]
    parts = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(title)}. {' '.join(_tex(note) + '.' for note in grid.notes)}}}",
        rf"\begin{{tabular}}{{{'l' * stubs}{'r' * len(grid.heads)}}}",
        r"\toprule",
        _line([*[""] * stubs, *spans]),
        " ".join(rules),
        _line([*map(_tex, grid.stubs), *stacked]),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(parts) + "\n"


def _texts(row: GridRow, escape: Callable[[str], str], bold: str) -> list[str]:
    return [
        bold.replace("TEXT", escape(text)) if marked else escape(text)
        for text, marked in zip(row.texts, row.bold, strict=True)
    ]


def _stack(lines: tuple[str, ...]) -> str:
    return r" \\ ".join(_tex(line) for line in lines)


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _md(text: str) -> str:
    return text.translate(_MARKDOWN)


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)
