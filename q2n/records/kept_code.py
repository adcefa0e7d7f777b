"""Digests per function of the code that computed records: ``<results_dir>/code/<key>.json``.

A fingerprint has only the key of the code. From these files :mod:`q2n.explain` lists the functions that
differ between two keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from q2n.records.source_code import Code, Parts
from q2n.runtime.files import write_text_atomic

FOLDER = "code"
"""Folder below the results folder, one file per version of the code."""


def keep(code: Code, results_dir: str | Path) -> None:
    """Write the digests of the functions of ``code``, once per results folder and version.

    Raises:
        OSError: the folder cannot be written.
    """
    path = _place(results_dir, code.key)
    if not path.exists():
        lines = (f"{json.dumps(name)}: {json.dumps(parts)}" for name, parts in code.parts.items())
        write_text_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")


def kept(results_dir: str | Path, key: str) -> dict[str, Parts] | None:
    """Return the digests by module and function of the code ``key``, or None if they were not kept."""
    try:
        tree = json.loads(_place(results_dir, key).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None


def changes(old: Mapping[str, Parts], new: Mapping[str, Parts]) -> list[str]:
    """List the modules that differ, each with the functions: ``q2n.linalg.dense: cholesky, solve``."""
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
