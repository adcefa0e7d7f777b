"""Offline runs of Weights & Biases read back from the file the client writes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768


def entries(path: Path) -> Iterator[bytes]:
    """Entries of a LevelDB-style log: blocks of 32 KiB, each entry in one or more checksummed pieces."""
    data, position, pieces = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        pieces += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield pieces
            pieces = b""


def read_back(folder: Path) -> list[dict[str, Any]]:
    """What every offline run below ``folder`` holds: ``run``, ``history``, ``summary``, ``config``; nested
    keys are joined by slashes. ``tables`` are those the history points to, ``images`` the bytes of the image
    files it points to, both by key."""
    return [_read(path) for path in sorted(folder.rglob("run-*.wandb"))]


def _read(path: Path) -> dict[str, Any]:
    from wandb.proto import wandb_internal_pb2

    found: dict[str, Any] = {"history": [], "summary": {}, "config": {}, "run": None}
    for entry in entries(path):
        item = wandb_internal_pb2.Record()
        item.ParseFromString(entry)
        kind = item.WhichOneof("record_type")
        if kind == "run":
            found["run"] = item.run
            found["config"].update(_values(item.run.config.update))
        elif kind == "config":
            found["config"].update(_values(item.config.update))
        elif kind == "history":
            found["history"].append(_values(item.history.item))
        elif kind == "summary":
            found["summary"].update(_values(item.summary.update))
    values = {key: value for step in found["history"] for key, value in step.items()}
    tables, images = (_files(path.parent / "files", values, kind) for kind in ("table-file", "image-file"))
    found["tables"] = {key: json.loads(content) for key, content in tables.items()}
    found["images"] = images
    return found


def _files(folder: Path, values: dict[str, Any], kind: str) -> dict[str, bytes]:
    keys = [
        key.removesuffix("/_type")
        for key, value in values.items()
        if key.endswith("/_type") and value == kind
    ]
    return {key: (folder / values[f"{key}/path"]).read_bytes() for key in keys}


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
