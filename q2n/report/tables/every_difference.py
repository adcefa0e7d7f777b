"""The differences of all studies in one list, each once, told apart by what is unusual about its cells."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from q2n.records.fingerprint import canonical_json
from q2n.records.store import RunRecord
from q2n.report.tables.pairs import Pair
from q2n.report.tables.settings import distinguishing

MAIN = "on"
"""The correction that an overview is about: the paper's."""

MEASURED = ("calibration.heldout=", "diagnostics")
"""Settings that change what is measured of a cell with or without :data:`MAIN`, and not its model."""


@dataclass(frozen=True)
class Line:
    """A difference in the list over all studies. ``settings`` tell it from the others (only what departs
    from what most studies of its model have); ``studies`` have exactly these cells, ``pair`` is of the
    first one."""

    pair: Pair
    settings: tuple[str, ...]
    studies: tuple[str, ...]


def over_all(pairs: Sequence[Pair], records: Iterable[RunRecord]) -> tuple[Line, ...]:
    """The differences of all studies, each once: one whose cells are all behind another one too is left out,
    and where they are the same the first study's stands, with the p-value of its family.

    Cells that differ in nothing but what else was evaluated are the same: within a column, so is the number.
    """
    records = list(records)
    models = {record.fingerprint: _quantized_model(record) for record in records}
    labels = _labels(records)
    measured = [(pair, frozenset(models[cell] for cell in pair.cells)) for pair in pairs]
    by_measure: dict[object, list[tuple[Pair, frozenset[str]]]] = defaultdict(list)
    for pair, cells in measured:
        by_measure[pair.column, pair.row.correction].append((pair, cells))
    lines = []
    for pair, cells in measured:
        alike = by_measure[pair.column, pair.row.correction]
        same = [other for other, its in alike if its == cells]
        if pair is same[0] and not any(cells < its for _, its in alike):
            studies = tuple(dict.fromkeys(other.study for other in same))
            lines.append(Line(pair, labels[pair.corrected_cells[0]], studies))
    return tuple(lines)


def _quantized_model(record: RunRecord) -> str:
    """What decides the quantized model: the identity without what is measured of it."""
    identity = dict(record.identity)
    for part in ("config", "data"):
        if isinstance(identity.get(part), Mapping):
            identity[part] = {key: value for key, value in identity[part].items() if key != "evaluation"}
    return canonical_json(identity)


def main_lines(lines: Iterable[Line]) -> list[Line]:
    """What an overview shows: perplexity with and without :data:`MAIN`, at the settings most studies have, on
    texts that at least half as many differences are of as of any other; of several studies those with the
    most seeds."""
    usual = [
        line
        for line in lines
        if line.pair.row.correction == MAIN and not line.settings and line.pair.column.name == "perplexity"
    ]
    texts = Counter(line.pair.column.dataset for line in usual)
    usual = [line for line in usual if 2 * texts[line.pair.column.dataset] >= max(texts.values())]
    most: Counter[object] = Counter()
    for line in usual:
        most[_method(line)] = max(most[_method(line)], line.pair.seeds)
    return [line for line in usual if line.pair.seeds == most[_method(line)]]


def _method(line: Line) -> object:
    return line.pair.row.model, line.pair.row.baseline, line.pair.column


def _labels(records: Sequence[RunRecord]) -> dict[str, tuple[str, ...]]:
    """By fingerprint: the settings in which a cell departs from what most studies of its model have (of as
    many studies, most cells): one large study does not decide what is usual."""
    unique = list({record.fingerprint: record for record in records}.values())
    found = {
        record.fingerprint: tuple(
            label for label in (*labels.cell, *labels.correction) if not label.startswith(MEASURED)
        )
        for record, labels in zip(unique, distinguishing(unique, ("evaluation",)), strict=True)
    }
    cells: Counter[tuple[str, str]] = Counter()
    studies: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in records:
        for label in found[record.fingerprint]:
            place = (_context(record, label), label)
            cells[place] += 1
            studies[place].add(record.name)
    usual: dict[str, str] = {}
    for context, label in sorted(cells, key=lambda place: (len(studies[place]), cells[place])):
        usual[context] = label  # the last one stays
    return {
        record.fingerprint: tuple(
            label for label in found[record.fingerprint] if usual[_context(record, label)] != label
        )
        for record in unique
    }


def _context(record: RunRecord, label: str) -> str:
    """The key of a label, apart for each model and for each choice of the group it belongs to."""
    key = label.partition("=")[0]
    choice = {"baseline": record.cell.baseline, "q2n": record.cell.correction}.get(key.partition(".")[0], "")
    return f"{record.cell.model} {choice} {key}"
