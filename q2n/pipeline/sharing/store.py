"""Results of stages in the cache folder: addressed by content, bounded in size, safe to delete at any time.

One entry is one safetensors file, ``<root>/<kind>-<key>/<name>.safetensors``, written beside its place and
moved there in one step, so that processes may share the folder. A digest of names, shapes, numbers and facts
is part of the file: a changed entry counts as absent and is computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from q2n.data.local_files import kept
from q2n.records.fingerprint import canonical_json
from q2n.runtime.files import write_atomic

SUFFIX = ".safetensors"


class Address(NamedTuple):
    """Address: ``kind`` of result (``statistics``), ``key`` of its inputs, ``name`` of the part (a block)."""

    kind: str
    key: str
    name: str


class Part(NamedTuple):
    """Result of a stage for one block, layer or matrix; ``facts`` must have a JSON form."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class StoredPart:
    """File that was found whole; it stays readable if it is deleted in the meantime (except on Windows)."""

    _file: Any
    facts: Mapping[str, Any]

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors in memory of their own.

        A mapped tensor starts anywhere in its file, and the order of a sum may depend on the alignment of
        memory: only copies give the same bits as tensors that were never written.
        """
        return {name: self._file.get_tensor(name).clone() for name in self._file.keys()}  # noqa: SIM118


class StageStore:
    """Entries below ``root``, of at most ``limit`` bytes together; with 0 nothing is written."""

    def __init__(self, root: Path, limit: int) -> None:
        self._root, self._limit = root, limit

    def open(self, address: Address) -> StoredPart | None:
        """Return the entry, or None if it is absent, damaged or unreadable."""
        path = self._path(address)
        try:
            file: Any = safe_open(path, framework="pt")
            stored = file.metadata() or {}
            text = stored.get("facts", "")
            if not _verified(path, file, text, stored.get("digest", "")):
                return None
            with contextlib.suppress(OSError):
                os.utime(path.parent)  # the least recently used entries go first
            facts = json.loads(text)
            return StoredPart(file, facts) if isinstance(facts, dict) else None
        except (OSError, RuntimeError, ValueError, SafetensorError):
            return None  # not there, damaged, or deleted by another process in between (RuntimeError)

    def write(self, address: Address, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bool:
        """Keep an entry; return False if there was no room. A full or read-only disk costs only the entry."""
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = canonical_json(facts)
        metadata = {"facts": text, "digest": _digest(sorted(whole.items()), text)}
        path = self._path(address)
        if not self._make_room(sum(tensor.nbytes for tensor in whole.values()), path.parent):
            return False
        return kept(lambda: write_atomic(path, lambda file: save_file(whole, file, metadata)))

    def drop(self, kind: str, key: str) -> None:
        """Delete all entries of a key, whose set is incomplete."""
        shutil.rmtree(self._root / f"{kind}-{key}", ignore_errors=True)

    def size(self) -> int:
        """Return the bytes of all entries."""
        return sum(size for _, size, _ in self._folders())

    def _path(self, address: Address) -> Path:
        return self._root / f"{address.kind}-{address.key}" / f"{address.name}{SUFFIX}"

    def _make_room(self, wanted: int, keep: Path) -> bool:
        """Delete whole keys, the least recently used first but never ``keep``, until ``wanted`` bytes fit."""
        folders = sorted(self._folders())
        total = wanted + sum(size for _, size, _ in folders)
        for _, size, folder in folders:
            if total <= self._limit:
                break
            if folder != keep:
                shutil.rmtree(folder, ignore_errors=True)
                total -= size
        return total <= self._limit

    def _folders(self) -> Iterator[tuple[float, int, Path]]:
        """Yield time of the last use, bytes and path of the folder of every key."""
        for folder in self._root.glob("*"):
            with contextlib.suppress(OSError):  # another process may be deleting it
                yield folder.stat().st_mtime, sum(file.stat().st_size for file in folder.iterdir()), folder


_seen: dict[Path, tuple[int, int, int]] = {}
"""Inode, size and time of the files that this process has found whole."""


def _verified(path: Path, file: Any, facts: str, digest: str) -> bool:
    status = path.stat()
    state = (status.st_ino, status.st_size, status.st_mtime_ns)
    if _seen.get(path) != state:
        if _digest(((name, file.get_tensor(name)) for name in sorted(file.keys())), facts) != digest:
            return False
        _seen[path] = state
    return True


def _digest(tensors: Iterable[tuple[str, Any]], facts: str) -> str:
    found = hashlib.sha256(facts.encode())
    for name, tensor in tensors:
        found.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
