"""Selection of a table's records and unfinished cells, and notes on their origin."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from q2n.records.fingerprint import canonical_json, relevant
from q2n.records.schema import Cell, RunRecord
from q2n.records.source_code import CHECKOUT, Parts, targets

if TYPE_CHECKING:
    from q2n.records.failure import Failure

Codes = Mapping[str, Mapping[str, Parts]]
"""Digests by key of the code, module and function (:mod:`q2n.records.source_code`)."""

NO_CODES: Codes = MappingProxyType({})
"""No digests are known."""


@dataclass(frozen=True)
class Unfinished:
    """A cell without a result.

    ``cell`` and ``config`` decide its place in the table, ``word`` is printed there (``failed``,
    ``not run``), ``failure`` is the reason or None if it is not known.
    """

    cell: Cell
    config: Mapping[str, Any]
    word: str
    failure: Failure | None = field(default=None, compare=False)


def latest(records: Iterable[RunRecord]) -> tuple[list[RunRecord], int]:
    """The newest record of each configuration, and the number of older records left out.

    After a change of the sources both results of a cell are on disk; a table shows the current one.
    """
    records = list(records)
    newest: dict[str, RunRecord] = {}
    for record in records:
        key = canonical_json(same_cell(record))
        if key not in newest or record.created >= newest[key].created:
            newest[key] = record
    return list(newest.values()), len(records) - len(newest)


def same_cell(record: RunRecord) -> dict[str, Any]:
    """Values that all records of one cell share: the choices in its name and the settings of its result.

    Bits and group size are left out: they follow from the settings, and early records have them as in the
    top level of the configuration.
    """
    return {"cell": record.cell.model_dump(exclude={"bits", "group_size"}), **relevant(record.config)}


def by_protocol(
    records: Sequence[RunRecord], unfinished: Iterable[Unfinished]
) -> list[tuple[list[RunRecord], list[Unfinished]]]:
    """Group records by shared evaluation protocols, one group per table, with the models' unfinished cells.

    Models with different tokenizers share no protocol: in one table, each would leave the others' columns
    empty. Models without any record come last.
    """
    groups: list[tuple[set[str], list[int]]] = []
    for place, record in enumerate(records):
        marks = {f"model {record.cell.model}", *(protocol.key() for protocol in record.protocols)}
        joined = [group for group in groups if group[0] & marks]
        groups = [group for group in groups if not group[0] & marks]
        places = [place, *(other for group in joined for other in group[1])]
        groups.append((marks.union(*(group[0] for group in joined)), places))
    members = sorted(sorted(places) for _, places in groups)
    found = [([records[place] for place in places], list[Unfinished]()) for places in members]
    homes = {record.cell.model: group for group in found for record in group[0]}
    for item in unfinished:
        if item.cell.model not in homes:
            homes[item.cell.model] = ([], [])
            found.append(homes[item.cell.model])
        homes[item.cell.model][1].append(item)
    return found


def of_today(records: Iterable[RunRecord]) -> int:
    """Number of records made by code that does the same as the code running now."""
    made_by = ((record.identity.get("code"), record) for record in records)
    return sum(key is not None and key == CHECKOUT.of_cell(record.config).key for key, record in made_by)


def code_versions(records: Iterable[RunRecord], codes: Codes) -> int:
    """Number of versions of the code behind the records: the largest number for any part of the code.

    Cells with different options use different modules, so their whole codes differ without a change. That is
    why the comparison is per module (if ``codes`` has it), and by whole code only among cells whose options
    use the same modules.
    """
    seen: dict[object, set[str]] = defaultdict(set)
    for record in records:
        key = record.identity.get("code")
        seen["sources"].add(
            canonical_json(record.identity.get("sources"))
        )  # older records have this instead of ``code``
        if key is not None:
            seen[frozenset(targets(record.config))].add(key)
            for module, parts in codes.get(key, {}).items():
                seen[module].add(canonical_json(parts))
    return max(map(len, seen.values()), default=0)


def code_notes(records: Sequence[RunRecord], superseded: int, codes: Codes = NO_CODES) -> list[str]:
    """Notes on the code behind the numbers: mixed versions, uncommitted changes, and omitted records.

    Args:
        records: the records shown.
        superseded: number of older records left out.
        codes: known digests by key of the code.
    """
    notes = []
    if superseded:
        are = "record is" if superseded == 1 else "records are"
        notes.append(f"{superseded} older {are} left out: the same cells were computed again since")
    libraries = {canonical_json(record.identity.get("versions")) for record in records}
    met = {
        "versions of the sources": code_versions(records, codes),
        "sets of library versions": len(libraries),
    }
    for name, kinds in met.items():
        if kinds > 1:
            notes.append(f"these records come from {kinds} different {name} (see python -m q2n.explain)")
    if any(record.provenance.git_dirty for record in records):
        notes.append("some records come from code with uncommitted changes")
    return notes


def processor_notes(
    records: Iterable[RunRecord], compared: Iterable[tuple[Sequence[str], Sequence[str]]]
) -> list[str]:
    """Note on records from several kinds of processor; empty if there is only one kind.

    Processors add in different orders and so round differently.

    Args:
        records: the records shown.
        compared: fingerprints of both sides of every difference, in the same order of seeds.
    """
    made_by = {record.fingerprint: _processor(record) for record in records}
    kinds = sorted(set(made_by.values()))
    if len(kinds) < 2:
        return []
    mixed = sum(
        [made_by[cell] for cell in ours] != [made_by[cell] for cell in others] for ours, others in compared
    )
    between = f"{mixed or 'no'} difference{' is' if mixed < 2 else 's are'} between two kinds"
    return [f"these records come from {len(kinds)} kinds of processor ({', '.join(kinds)}); {between}"]


def _processor(record: RunRecord) -> str:
    provenance = record.provenance
    return provenance.cpu if provenance.device == "cpu" else provenance.device


def weights_notes(records: Iterable[RunRecord]) -> list[str]:
    """Notes on the origin of the weights, one per model."""
    pairs = dict.fromkeys((record.cell.model, record.provenance.weights) for record in records)
    return [f"{model}: {weights or 'origin of the weights not recorded'}" for model, weights in pairs]


def allowed_notes(records: Iterable[RunRecord]) -> list[str]:
    """Notes per model on allowed deviations that make numbers hard to compare."""
    found = dict.fromkeys((record.cell.model, note) for record in records for note in record.notes)
    return [f"{model}: {note}" for model, note in found]
