"""The code that records were computed by: ``<results_dir>/code/<key>.json``, a digest per function.

A fingerprint has only the key of the code. These files tell which functions differ between two keys, for
explaining why a cell is computed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from q2n.records.source_code import Code, Parts
from q2n.runtime.files import write_text_atomic

FOLDER = "code"
"""Folder below the results, one file per version."""


def keep(code: Code, results_dir: str | Path) -> None:
    """Write down what the functions of ``code`` digest to, once per results folder and version.

    Raises:
        OSError: the folder cannot be written.
    """
    path = _place(results_dir, code.key)
    if not path.exists():
        lines = (f"{json.dumps(name)}: {json.dumps(parts)}" for name, parts in code.parts.items())
        write_text_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")


def kept(results_dir: str | Path, key: str) -> dict[str, Parts] | None:
    """The digests by module and function of the code ``key``, or None if they are not there."""
    try:
        tree = json.loads(_place(results_dir, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None


def changes(old: Mapping[str, Parts], new: Mapping[str, Parts]) -> list[str]:
    """Modules that differ, a line each with the functions that do: ``q2n.linalg.dense: cholesky, solve``."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        if name not in new or name not in old:
            lines.append(f"{name} {'added' if name in new else 'removed'}")
        elif old[name] != new[name]:
            parts = sorted(old[name].keys() | new[name].keys())
            changed = [part for part in parts if old[name].get(part) != new[name].get(part)]
            lines.append(f"{name}: {', '.join(part or 'top level' for part in changed)}")
    return lines


def _place(results_dir: str | Path, key: str) -> Path:
    return Path(results_dir) / FOLDER / f"{key}.json"
