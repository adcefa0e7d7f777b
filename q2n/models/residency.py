"""Where the weights of a block are while nothing is computed with it, and finished blocks in files.

A model is computed block by block (:meth:`q2n.models.block.DecoderBlock.on`), so only one block need be on
the device, or in memory at all (:mod:`q2n.models.streaming`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from q2n.runtime.files import sha256_file, write_atomic, write_text_atomic

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from q2n.models.block import DecoderBlock

FileSeal = tuple[int, str]
"""Size in bytes and SHA-256 of a file."""


class FinishedBlocks:
    """Blocks that will not change any more, one safetensors file each; ``seals`` has those written or known.

    Tensors are written as they are, in the model's dtype: what is read back is the block bit for bit.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seals: dict[int, FileSeal] = {}

    def __contains__(self, index: int) -> bool:
        return index in self.seals

    def path(self, index: int) -> Path:
        return self.folder / f"block-{index:05d}.safetensors"

    def write(self, block: DecoderBlock) -> None:
        """
        Raises:
            StorageError: the folder cannot be written.
        """
        if not self.seals:
            write_text_atomic(self.folder / ".gitignore", "*\n")  # gigabytes have no place in a repository
        self.seals[block.index] = write_tensors(self.path(block.index), block.tensors())

    def read(self, index: int) -> dict[str, Tensor]:
        return read_tensors(self.path(index))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> FileSeal:
    """Write a safetensors file atomically."""
    from safetensors.torch import save_file

    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, lambda file: save_file(whole, file))
    return seal(path)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file in memory of their own.

    A mapped tensor starts anywhere in its file, and the order of a sum may depend on where memory starts:
    only copies give the same bits as tensors that were never written.
    """
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def seal(path: Path) -> FileSeal:
    """
    Raises:
        OSError: the file cannot be read.
    """
    return path.stat().st_size, sha256_file(path)


class Residency(Protocol):
    """What becomes of one block's weights before and after they are used."""

    def enter(self, block: DecoderBlock, device: torch.device) -> None:
        """Put the weights on ``device``."""
        ...

    def leave(self, block: DecoderBlock, device: torch.device) -> None:
        """They are not needed on ``device`` for a while."""
        ...

    def during_calls(self, block: DecoderBlock, device: torch.device) -> AbstractContextManager[None]:
        """Inside, the block's module can be called by whoever has it, with inputs on ``device``."""
        ...

    def rewrite(self, block: DecoderBlock, change: Callable[[DecoderBlock], None]) -> None:
        """Change the original weights, at the latest when they are next used."""
        ...

    def finish(self, block: DecoderBlock, finished: FinishedBlocks) -> None:
        """The block, which is in use, has its final weights."""
        ...

    def restore(self, block: DecoderBlock, finished: FinishedBlocks) -> None:
        """The block's final weights are those in ``finished``."""
        ...


class InMemory:
    """All blocks are in the host's memory; one at a time is copied to the device."""

    def enter(self, block: DecoderBlock, device: torch.device) -> None:
        block.module.to(device)

    def leave(self, block: DecoderBlock, device: torch.device) -> None:
        if device.type != "cpu":
            block.module.to("cpu")

    def during_calls(self, block: DecoderBlock, device: torch.device) -> AbstractContextManager[None]:
        return block.on(device)

    def rewrite(self, block: DecoderBlock, change: Callable[[DecoderBlock], None]) -> None:
        change(block)

    def finish(self, block: DecoderBlock, finished: FinishedBlocks) -> None:
        pass

    def restore(self, block: DecoderBlock, finished: FinishedBlocks) -> None:
        block.assign(finished.read(block.index))
