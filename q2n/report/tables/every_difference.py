"""One list of the differences of all studies, each once, labelled by its cells' unusual settings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from q2n.records.fingerprint import canonical_json
from q2n.records.store import RunRecord
from q2n.report.tables.pairs import Pair
from q2n.report.tables.settings import distinguishing

MAIN = "on"
"""Correction shown in the overview: the paper's."""

MEASURED = ("calibration.heldout=", "diagnostics")
"""Settings that change the measurements of a cell with or without :data:`MAIN`, but not its model."""


@dataclass(frozen=True)
class Line:
    """A difference in the list over all studies.

    ``settings`` has only the settings that depart from those of most studies of its model. ``studies`` are
    the studies with exactly these cells; ``pair`` is from the first of them.
    """

    pair: Pair
    settings: tuple[str, ...]
    studies: tuple[str, ...]


def over_all(pairs: Sequence[Pair], records: Iterable[RunRecord]) -> tuple[Line, ...]:
    """List the differences of all studies, each once.

    A difference is left out if another one of the same column and correction has all of its cells and more.
    If studies have the same cells, the first study's difference stays, with the p-value adjusted in that
    study. Cells that differ only in their evaluation are the same here: a column has one number of them.

    Args:
        pairs: differences of all studies, study by study.
        records: records of all studies; a cell that several studies share is repeated.
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
    """Identity of the quantized model: the cell's identity without its evaluation."""
    identity = dict(record.identity)
    for part in ("config", "data"):
        if isinstance(identity.get(part), Mapping):
            identity[part] = {key: value for key, value in identity[part].items() if key != "evaluation"}
    return canonical_json(identity)


def main_lines(lines: Iterable[Line]) -> list[Line]:
    """Differences shown in the overview: perplexity with and without :data:`MAIN` at the usual settings.

    Texts with fewer than half as many differences as the most frequent text are left out. Of several studies
    of a method, those with the most seeds are shown.
    """
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
    """Settings by fingerprint in which a cell departs from those of most studies of its model.

    Studies are counted first and cells only break ties, so that one large study does not decide which
    settings are usual.
    """
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
        usual[context] = label  # sorted by frequency: the most frequent one comes last and stays
    return {
        record.fingerprint: tuple(
            label for label in found[record.fingerprint] if usual[_context(record, label)] != label
        )
        for record in unique
    }


def _context(record: RunRecord, label: str) -> str:
    """Key of a label together with the model and the choice of the key's group."""
    key = label.partition("=")[0]
    choice = {"baseline": record.cell.baseline, "q2n": record.cell.correction}.get(key.partition(".")[0], "")
    return f"{record.cell.model} {choice} {key}"
