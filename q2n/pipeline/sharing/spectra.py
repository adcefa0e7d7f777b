"""Eigendecompositions, found again by the matrix they are of."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import torch
from torch import Tensor

from q2n.linalg.dense import Spectrum, symmetric_spectrum
from q2n.pipeline.sharing.context import StageContext
from q2n.pipeline.sharing.store import Address

STAGE = "spectra"


class SpectraStage:
    """:func:`~q2n.linalg.dense.symmetric_spectrum`, each matrix decomposed once.

    The address is a digest of the matrix, so a basis that only exists inside a solver (QuIP's) is served as
    well as a layer's own, and only what a correction asks for is ever computed or kept.
    """

    def __init__(self, context: StageContext, key: str) -> None:
        self._context, self._key = context, key

    def decompose(self, matrix: Tensor) -> Spectrum:
        """Of a symmetric ``(C, C)`` float64 matrix.

        Raises:
            NumericalError: the matrix is not finite.
        """
        address = Address(STAGE, self._key, _digest(matrix))
        found = self._context.memory.get(address) or self._read(address)
        if found is None:
            began = time.perf_counter()
            spectrum = symmetric_spectrum(matrix)
            tensors = {"values": spectrum.values.contiguous(), "vectors": spectrum.vectors.contiguous()}
            spectrum = Spectrum(tensors["values"], tensors["vectors"])
            seconds = time.perf_counter() - began
            self._context.store.write(address, tensors, {"seconds": seconds})
        else:
            spectrum, seconds = found
        self._context.ledger.note(STAGE, self._key, found is not None, seconds)
        self._context.remember(address, (spectrum, seconds), 8 * spectrum.vectors.numel())
        return spectrum

    def _read(self, address: Address) -> tuple[Spectrum, float] | None:
        entry = self._context.store.open(address)
        if entry is None:
            return None
        tensors = self._context.placed(entry.tensors())
        return Spectrum(tensors["values"], tensors["vectors"]), float(entry.facts["seconds"])


def _digest(matrix: Tensor) -> str:
    numbers: Any = matrix.cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return hashlib.sha256(numbers).hexdigest()[:32]
