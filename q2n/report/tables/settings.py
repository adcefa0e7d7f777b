"""Labels that tell two cells apart besides model, baseline, correction, bits and seed.

Two different cells must never share a line of a table. Every configuration key whose value differs among the
records becomes a label of its row (``group_size=64``); there is no list of such keys.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from q2n.records.fingerprint import canonical_json, flatten, relevant
from q2n.records.store import RunRecord
from q2n.report.tables.select import Unfinished

_LABELLED = {"model": "model", "baseline": "baseline", "q2n": "correction"}
_IN_THE_COLUMN = frozenset({"bits", "seed"})
_AXES = {"baseline.group_size": "group_size"}
_GROUPS = {axis: key.partition(".")[0] for key, axis in _AXES.items()}
_TARGET = "_target_"
_ABSENT = "absent"


class Settings(NamedTuple):
    """Labels of one record: ``correction`` has those of keys under ``q2n``, ``cell`` all others."""

    cell: tuple[str, ...]
    correction: tuple[str, ...]


def distinguishing(
    records: Sequence[RunRecord | Unfinished], ignore: Collection[str] = (), absent: bool = False
) -> list[Settings]:
    """The labels of each record, in order.

    A key of a group is compared only among records with the same choice for the group: another baseline has
    other fields, and its name already tells it apart.

    Args:
        records: the records of one table.
        ignore: top-level keys to leave out (``evaluation``, which the columns' protocols tell apart).
        absent: whether a missing key counts as a difference. Normally another key differs as well if an
            option does not read a field.
    """
    leaves = [
        {k: v for k, v in settings(record).items() if k.partition(".")[0] not in {*_IN_THE_COLUMN, *ignore}}
        for record in records
    ]
    keys = sorted({key for tree in leaves for key in tree}, key=lambda key: (key.count("."), key))
    shown: dict[str, dict[int, Any]] = {}
    for key in keys:
        values = _differing(key, leaves, records, absent)
        # a shorter key may already give the same records the same values (``group_size`` and its copies)
        said_before = any(values.items() <= earlier.items() for earlier in shown.values())
        if values and not said_before and not _follows(values, records):
            shown[key] = values
    return [_labels(index, shown) for index in range(len(records))]


def settings(record: RunRecord | Unfinished) -> dict[str, Any]:
    """Settings that decide the result, by dotted key.

    The group size is always under ``group_size``, whatever its key in the configuration.
    """
    leaves = flatten(relevant(record.config))
    return {_AXES.get(key, key): value for key, value in leaves.items()}


def values_by_key(record: RunRecord) -> dict[str, Any]:
    """Values by dotted key for figures and protocols: the record's settings, bits and group size."""
    axes = {"bits": record.cell.bits, "group_size": record.cell.group_size}
    return {**flatten(relevant(record.config)), **settings(record), **axes}


def _differing(
    key: str, leaves: list[dict[str, Any]], records: Sequence[RunRecord | Unfinished], absent: bool
) -> dict[int, Any]:
    """Value of ``key`` by record index, for records in a context whose values differ."""
    contexts: dict[str, list[int]] = defaultdict(list)
    for index, (tree, record) in enumerate(zip(leaves, records, strict=True)):
        contexts[_context(key, tree, record)].append(index)
    found: dict[int, Any] = {}
    for members in contexts.values():
        there = {index: leaves[index][key] for index in members if key in leaves[index]}
        values = {index: there.get(index, _ABSENT) for index in members} if absent else there
        if len({canonical_json(value) for value in values.values()}) > 1:
            found.update(values)
    return found


def _context(key: str, tree: dict[str, Any], record: RunRecord | Unfinished) -> str:
    group = _GROUPS.get(key, key.partition(".")[0])
    if group == key:
        return ""
    label = str(getattr(record.cell, _LABELLED[group])) if group in _LABELLED else ""
    return label if key == f"{group}.{_TARGET}" else f"{label} {tree.get(f'{group}.{_TARGET}')}"


def _follows(values: dict[int, Any], records: Sequence[RunRecord | Unfinished]) -> bool:
    """True if the key only repeats the bits or the seed (``baseline.bits: ${bits}``)."""
    return any(
        all(
            type(value) in (int, float) and value == getattr(records[index].cell, axis)
            for index, value in values.items()
        )
        for axis in _IN_THE_COLUMN
    )


def _labels(index: int, shown: dict[str, dict[int, Any]]) -> Settings:
    said = {key: _label(key, values[index]) for key, values in shown.items() if index in values}
    correction = tuple(label for key, label in said.items() if key.startswith("q2n."))
    return Settings(tuple(label for label in said.values() if label not in correction), correction)


def _label(key: str, value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    if key.endswith(f".{_TARGET}"):
        return f"{key.removesuffix(f'.{_TARGET}')}={text.rpartition('.')[2]}"
    return f"{key}={text}"
