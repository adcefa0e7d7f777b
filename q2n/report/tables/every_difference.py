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
    cells = [frozenset(models[cell] for cell in pair.cells) for pair in pairs]
    kept: dict[int, list[str]] = {}
    by_measure: dict[object, list[int]] = {}
    for place, pair in enumerate(pairs):
        by_measure.setdefault((pair.column, pair.row.correction), []).append(place)
    for alike in by_measure.values():
        for place in alike:
            same = [other for other in alike if cells[other] == cells[place]]
            if place == same[0] and not any(cells[place] < cells[other] for other in alike):
                kept[place] = list(dict.fromkeys(pairs[other].study for other in same))
    labels = _labels(records)
    return tuple(
        Line(pairs[place], labels[pairs[place].corrected_cells[0]], tuple(kept[place]))
        for place in sorted(kept)
    )


def _quantized_model(record: RunRecord) -> str:
    """What decides the quantized model: the identity without what is measured of it."""
    identity = dict(record.identity)
    for part, measured in (("config", "evaluation"), ("data", "evaluation")):
        if isinstance(identity.get(part), Mapping):
            identity[part] = {key: value for key, value in identity[part].items() if key != measured}
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
    most: dict[object, int] = {}
    for line in usual:
        most[_place(line)] = max(most.get(_place(line), 0), line.pair.seeds)
    return [line for line in usual if line.pair.seeds == most[_place(line)]]


def _place(line: Line) -> object:
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
