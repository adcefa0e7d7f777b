"""Which records a table is made of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from q2n.records.fingerprint import canonical_json, relevant
from q2n.records.kept_code import kept
from q2n.records.source_code import CHECKOUT, Parts, targets
from q2n.records.store import RunRecord

Codes = Mapping[str, Mapping[str, Parts]]
"""Digests by key of a code, module and function (:mod:`q2n.records.source_code`)."""

NO_CODES: Codes = MappingProxyType({})


def latest(records: Iterable[RunRecord]) -> tuple[list[RunRecord], int]:
    """The newest record of each configuration, and how many older ones were left out.

    After a change of the sources both results of a cell are on disk; a table shows the current one.
    """
    newest: dict[str, RunRecord] = {}
    total = 0
    for record in records:
        total += 1
        key = canonical_json(same_cell(record))
        if key not in newest or record.created >= newest[key].created:
            newest[key] = record
    return list(newest.values()), total - len(newest)


def same_cell(record: RunRecord) -> dict[str, Any]:
    """What two records of one cell agree in: the choices it is named by, and what was computed. (Bits and
    group size follow from that; early records have them as the top of the configuration said.)"""
    return {"cell": record.cell.model_dump(exclude={"bits", "group_size"}), **relevant(record.config)}


def by_protocol(records: Sequence[RunRecord]) -> list[list[RunRecord]]:
    """Records in groups whose models share evaluation protocols: one table a group.

    Models with different tokenizers share none; in one table each would leave the others' columns empty.
    """
    groups: list[tuple[set[str], list[RunRecord]]] = []
    for record in records:
        marks = {f"model {record.cell.model}", *(protocol.key() for protocol in record.protocols)}
        joined = [group for group in groups if group[0] & marks]
        groups = [group for group in groups if not group[0] & marks]
        marks = marks.union(*(group[0] for group in joined))
        groups.append((marks, [*(item for group in joined for item in group[1]), record]))
    order = {id(record): position for position, record in enumerate(records)}
    members = [sorted(group[1], key=lambda record: order[id(record)]) for group in groups]
    return sorted(members, key=lambda group: order[id(group[0])])


def kept_codes(records: Iterable[RunRecord], results_dir: str | Path) -> Codes:
    """The digests that the folder has of the records' codes."""
    keys = {record.identity["code"] for record in records if "code" in record.identity}
    return {key: found for key in sorted(keys) if (found := kept(results_dir, key))}


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
    libraries = len({canonical_json(record.identity.get("versions")) for record in records})
    for kinds, name in (
        (code_versions(records, codes), "versions of the sources"),
        (libraries, "sets of library versions"),
    ):
        if kinds > 1:
            notes.append(f"these records come from {kinds} different {name} (see python -m q2n.explain)")
    if any(record.provenance.git_dirty for record in records):
        notes.append("some records come from code with uncommitted changes")
    return notes


def processor_notes(
    records: Iterable[RunRecord], compared: Iterable[tuple[Mapping[int, str], Mapping[int, str]]]
) -> list[str]:
    """Whether records come from several kinds of processor, which add in different orders and so round
    differently; ``compared`` are fingerprints by seed of both sides of every difference."""
    made_by = {record.fingerprint: _processor(record) for record in records}
    kinds = sorted(set(made_by.values()))
    if len(kinds) < 2:
        return []
    mixed = sum(
        any(made_by[ours[seed]] != made_by[others[seed]] for seed in ours.keys() & others.keys())
        for ours, others in compared
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
