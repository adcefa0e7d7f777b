"""Labels that tell models apart by their weights: two models of the same name get two labels."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from q2n.records.fingerprint import canonical_json, fingerprint, flatten
from q2n.records.store import RunRecord
from q2n.report.tables.select import Unfinished

DIGEST = 12
"""Characters of a digest in a label, the same as in the notes below a table."""

_NO_SETTING = frozenset({"name", "path", "_target_"})

Item = RunRecord | Unfinished


def told_apart(
    records: Iterable[RunRecord], unfinished: Iterable[Unfinished] = ()
) -> tuple[list[RunRecord], list[Unfinished]]:
    """The same cells with a ``cell.model`` that is unique per model; a second call changes nothing.

    Models are the same if their weights are, by the cell's identity. If several models share a name, the
    label has the shortest end of their paths that differs, otherwise the settings that differ, otherwise a
    digest of the weights. A cell that failed before its weights were identified belongs to the model of other
    cells with the same model configuration.
    """
    records, unfinished = list(records), list(unfinished)
    items: list[Item] = [*records, *unfinished]
    found = {canonical_json(_section(item)): model for item in items if (model := _model(item))}
    models = [_model(item) or found.get(section := canonical_json(_section(item)), section) for item in items]
    sharing: dict[str, dict[str, Item]] = defaultdict(dict)
    for item, model in zip(items, models, strict=True):
        sharing[item.cell.model].setdefault(model, item)
    labels = {
        (name, model): label
        for name, members in sharing.items()
        for model, label in _labels(name, members).items()
    }
    cells = [
        item.cell.model_copy(update={"model": labels[item.cell.model, model]})
        for item, model in zip(items, models, strict=True)
    ]
    own, lost = cells[: len(records)], cells[len(records) :]
    return (
        [record.model_copy(update={"cell": cell}) for record, cell in zip(records, own, strict=True)],
        [dataclasses.replace(item, cell=cell) for item, cell in zip(unfinished, lost, strict=True)],
    )


def own_name(record: RunRecord) -> str:
    """Name that the user gave to the model of a record, whatever its label."""
    section = _section(record)
    return str(section.get("name") or PurePath(section.get("path", "")).name or record.cell.model)


def _section(item: Item) -> Mapping[str, Any]:
    """Section of the configuration about the model."""
    section: Mapping[str, Any] = item.config.get("model", {})
    return section


def _weights(item: Item) -> Mapping[str, Any]:
    """Identity of the weights; empty if it is not known."""
    source = item if isinstance(item, RunRecord) else item.failure and item.failure.ref
    weights: Mapping[str, Any] = source.identity.get("weights", {}) if source else {}
    return weights


def _model(item: Item) -> str:
    """Key of the weights: digest of their file or folder, else of their identity; empty if not known."""
    weights = _weights(item)
    digest: str | None = weights.get("sha256") or weights.get("folder")
    return digest or (fingerprint(weights) if weights else "")


def _labels(name: str, members: Mapping[str, Item]) -> dict[str, str]:
    """Labels of the models called ``name``, by model."""
    if len(members) == 1:
        return dict.fromkeys(members, name)
    sections = [flatten(_section(item)) for item in members.values()]
    labels = _by_path(name, [str(section.get("path", "")) for section in sections])
    if len(set(labels)) == 1:
        labels = _by_settings(name, sections)
    met = Counter(labels)
    return {
        model: label if met[label] == 1 else f"{label} ({model[:DIGEST] if _weights(item) else 'unknown'})"
        for (model, item), label in zip(members.items(), labels, strict=True)
    }


def _by_path(name: str, paths: Sequence[str]) -> list[str]:
    """Labels by path (``a/model`` and ``b/model``), or the name if the paths do not differ."""
    parts = [PurePath(path).parts for path in paths]
    different = len(set(parts))
    for length in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(part[-length:]) for part in parts]
        if different > 1 and len(set(ends)) == different:
            return [end if end.split("/")[-1] == name else f"{name} ({end})" for end in ends]
    return [name] * len(paths)


def _by_settings(name: str, sections: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels by settings (``tiny (weight_seed=1)``), or the name if the settings do not differ."""
    keys = [
        key
        for key in dict.fromkeys(key for section in sections for key in section)
        if key not in _NO_SETTING and len({canonical_json(section.get(key)) for section in sections}) > 1
    ]
    said = [", ".join(f"{key}={section.get(key)}" for key in keys) for section in sections]
    return [f"{name} ({text})" if text else name for text in said]
