"""Published numbers beside ours, for the page."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from q2n.report.page.ledger import Number, finite
from q2n.report.render.text import amount
from q2n.report.studies.published import Beside


@dataclass(frozen=True)
class PublishedLine:
    """A published number and one of ours; ``remark`` says why they may not be compared."""

    model: str
    baseline: str
    settings: str
    correction: str
    bits: int | float
    metric: str
    published: Number
    measured: Number
    difference: Number
    table: str
    remark: str


def published_lines(lines: Iterable[Beside]) -> list[PublishedLine]:
    """In the order of the file they are from."""
    return [_line(line) for line in lines]


def _line(line: Beside) -> PublishedLine:
    value, row, column = line.published, line.published.row, line.published.column
    measured, signed = Number(), Number()
    if line.measured is not None:
        measured = Number(amount(line.measured), finite(line.measured), line.cells)
    if line.difference is not None:
        signed = Number(f"{line.difference:+.2f}", finite(line.difference), line.cells)
    return PublishedLine(
        model=row.model,
        baseline=row.baseline,
        settings=", ".join(line.row.settings) if line.row else "",
        correction=line.row.line if line.row else row.q2n,
        bits=column.bits,
        metric=f"{column.dataset} {column.metric}".strip(),
        published=Number(amount(value.value), value.value),
        measured=measured,
        difference=signed,
        table=value.table,
        remark="; ".join(part for part in (line.remark, value.note) if part),
    )
