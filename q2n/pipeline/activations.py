"""Storage of activations between two stages of a block: in memory, or in memory-mapped files.

Mapped tensors behave like any other, but their pages can leave memory, so a calibration set may be larger
than memory (at the disk's speed).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from q2n.runtime.files import explained


class ActivationStore:
    """Keeps tensors in memory."""

    def keep(self, tensor: Tensor) -> Tensor:
        """Return an equal tensor, possibly in other storage."""
        return tensor


class MappedActivationStore(ActivationStore):
    """Keeps each tensor in an unlinked file below ``folder``.

    The file is unlinked as soon as it is mapped: its space is freed with the tensor, even if the process is
    killed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, tensor: Tensor) -> Tensor:
        """Copy the tensor into a mapped file.

        Raises:
            StorageError: the disk is full.
        """
        size = tensor.numel() * tensor.element_size()
        with (
            explained(self._folder, size),
            tempfile.NamedTemporaryFile(dir=self._folder, suffix=".activations") as file,
        ):
            if size and hasattr(os, "posix_fallocate"):  # else a full disk raises SIGBUS later
                os.posix_fallocate(file.fileno(), 0, size)
            mapped = torch.from_file(file.name, shared=True, size=tensor.numel(), dtype=tensor.dtype)
        return mapped.copy_(tensor.reshape(-1)).reshape(tensor.shape)


@contextlib.contextmanager
def activation_store(kind: str) -> Iterator[ActivationStore]:
    """Yield the store of ``"memory"``, or ``"disk"``: files in the temporary folder (``TMPDIR``)."""
    if kind == "memory":
        yield ActivationStore()
        return
    with tempfile.TemporaryDirectory(prefix="q2n-") as folder:
        yield MappedActivationStore(Path(folder))
