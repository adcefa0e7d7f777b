"""Which records a table is made of, and the cells without a result that it shows all the same."""

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
"""Digests by key of a code, module and function (:mod:`q2n.records.source_code`)."""

NO_CODES: Codes = MappingProxyType({})


@dataclass(frozen=True)
class Unfinished:
    """``word`` stands in the table (``failed``, ``not run``); ``cell`` and ``config`` say where, ``failure``
    why, where that is known."""

    cell: Cell
    config: Mapping[str, Any]
    word: str
    failure: Failure | None = field(default=None, compare=False)


def latest(records: Iterable[RunRecord]) -> tuple[list[RunRecord], int]:
    """The newest record of each configuration, and how many older ones were left out.

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
    """What two records of one cell agree in: the choices it is named by, and what was computed. (Bits and
    group size follow from that; early records have them as the top of the configuration said.)"""
    return {"cell": record.cell.model_dump(exclude={"bits", "group_size"}), **relevant(record.config)}


def by_protocol(
    records: Sequence[RunRecord], unfinished: Iterable[Unfinished]
) -> list[tuple[list[RunRecord], list[Unfinished]]]:
    """Records in groups whose models share evaluation protocols, one table a group, each with the unfinished
    cells of its models; models without any record come at the end.

    Models with different tokenizers share none; in one table each would leave the others' columns empty.
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
    """How many records come from code that does what the code running now does."""
    made_by = ((record.identity.get("code"), record) for record in records)
    return sum(key is not None and key == CHECKOUT.of_cell(record.config).key for key, record in made_by)


def code_versions(records: Iterable[RunRecord], codes: Codes) -> int:
    """How many versions of the code the records show: the most in which any part of the code comes.

    Codes of cells with other options differ because other modules count. So what is compared is each module,
    as far as ``codes`` has it, and the whole code of cells whose options are of the same modules.
    """
    seen: dict[object, set[str]] = defaultdict(set)
    for record in records:
        key = record.identity.get("code")
        seen["sources"].add(canonical_json(record.identity.get("sources")))  # what older records have instead
        if key is not None:
            seen[frozenset(targets(record.config))].add(key)
            for module, parts in codes.get(key, {}).items():
                seen[module].add(canonical_json(parts))
    return max(map(len, seen.values()), default=0)


def code_notes(records: Sequence[RunRecord], superseded: int, codes: Codes = NO_CODES) -> list[str]:
    """What a reader must know of the code behind the numbers: mixtures and what was left out.

    Args:
        codes: digests by key of a code, as far as they are known.
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
    """Whether records come from several kinds of processor, which add in different orders and so round
    differently; ``compared`` are the fingerprints of both sides of every difference, the same seeds of each.
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
    """Per model, where its weights come from."""
    pairs = dict.fromkeys((record.cell.model, record.provenance.weights) for record in records)
    return [f"{model}: {weights or 'origin of the weights not recorded'}" for model, weights in pairs]


def allowed_notes(records: Iterable[RunRecord]) -> list[str]:
    """Per model, what was allowed although it makes numbers hard to compare."""
    found = dict.fromkeys((record.cell.model, note) for record in records for note in record.notes)
    return [f"{model}: {note}" for model, note in found]
