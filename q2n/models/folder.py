"""What identifies a model in a local folder, without torch and without reading its weights."""

from __future__ import annotations

from pathlib import Path

from q2n.exceptions import ModelError
from q2n.runtime.files import sha256_file, sha256_text

SMALL_FILES = ("json", "txt", "model", "py")
"""Suffixes of configuration, tokenizer and code in a model's folder."""


def folder_digest(folder: Path) -> str:
    """Digest of a folder's configuration and tokenizer, and of sizes and headers of its weight files.

    The weights themselves are not read (that takes minutes for a large model); a safetensors header holds
    the name, type and place of every tensor, and the modification time catches weights replaced in place.

    Raises:
        ModelError: the folder holds no model, or one whose weights are not safetensors.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: holds no config.json, so it is not a folder written by save_pretrained")
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        pickled = any(folder.glob("*.bin"))
        why = "; *.bin is not read, because pickled weights can run code" if pickled else ""
        raise ModelError(f"{folder}: holds no weights as *.safetensors{why}")
    small = sorted(path for suffix in SMALL_FILES for path in folder.glob(f"*.{suffix}"))
    parts = [f"{path.name} {sha256_file(path)}" for path in small]
    for weights in shards:
        status = weights.stat()
        parts.append(f"{weights.name} {status.st_size} {status.st_mtime_ns} {_header(weights)}")
    return sha256_text("\n".join(parts))


def _header(weights: Path) -> str:
    with weights.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")  # little-endian u64, then that much JSON
        return sha256_text(stream.read(min(length, 100_000_000)).decode("utf-8", errors="replace"))
