"""Labels of numbers in figures, and functions that shorten labels of several parts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from q2n.records.schema import Metric
from q2n.report.tables.lines import Column, Row


def measure(item: Metric | Column) -> str:
    """Data set and metric, as in the files of the studies: ``wiki perplexity``."""
    return f"{item.dataset} {item.name}".strip()


def bit_width(bits: float) -> str:
    """Number of bits as text: ``3 bit``."""
    return f"{bits:g} bit"


def parts_of(row: Row, bits: float) -> tuple[str, ...]:
    """Labels that identify a number in a study: model, baseline, settings, bits, line."""
    return (*row.key[:3], bit_width(bits), row.line)


def vary(parts: Sequence[Sequence[str]]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Split labels into the parts that differ (per label) and the parts that all have in common."""
    if not parts:
        return [], ()
    differing = [place for place, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    common = tuple(part for place, part in enumerate(parts[0]) if place not in differing and part)
    return [tuple(label[place] for place in differing) for label in parts], common


def joined(parts: Iterable[str]) -> str:
    """Nonempty parts of a label, joined: ``gptq, 3 bit``."""
    return ", ".join(filter(None, parts))


def plain(value: float) -> str:
    """Number as short text: ``0.05``, ``44.3``, ``2,093``, ``1.2e+06``."""
    size = abs(value)
    return f"{value:.1e}" if size >= 1e6 else f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"
