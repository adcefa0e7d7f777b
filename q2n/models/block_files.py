"""Finished blocks in safetensors files, of a checkpoint or of a model larger than memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from q2n.runtime.files import sha256_file, write_atomic, write_text_atomic

if TYPE_CHECKING:
    from torch import Tensor

FileSeal = tuple[int, str]
"""Size in bytes and SHA-256 of a file."""


class FinishedBlocks:
    """Blocks with final weights, one safetensors file per block; ``seals`` has the blocks that are written.

    Tensors are written in the model's dtype, so that a block is read back bit for bit.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seals: dict[int, FileSeal] = {}

    def __contains__(self, index: int) -> bool:
        return index in self.seals

    def path(self, index: int) -> Path:
        """Return the path of block ``index``, written or not."""
        return self.folder / f"block-{index:05d}.safetensors"

    def write(self, index: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of block ``index``.

        Raises:
            StorageError: the folder cannot be written.
        """
        if not self.seals:
            write_text_atomic(self.folder / ".gitignore", "*\n")  # gigabytes have no place in a repository
        self.seals[index] = write_tensors(self.path(index), tensors)

    def read(self, index: int) -> dict[str, Tensor]:
        """Read the tensors of block ``index``."""
        return read_tensors(self.path(index))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileSeal:
    """Write a safetensors file atomically, and return its size and digest."""
    from safetensors.torch import save_file

    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, lambda file: save_file(whole, file))
    return seal(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file into memory of their own.

    A mapped tensor starts anywhere in its file, and the order of a sum may depend on the alignment of memory:
    only copies give the same bits as tensors that were never written.
    """
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def seal(path: Path) -> FileSeal:
    """Return size and digest of a file.

    Raises:
        OSError: the file cannot be read.
    """
    return path.stat().st_size, sha256_file(path)
