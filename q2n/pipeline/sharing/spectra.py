"""Eigendecompositions, found again by the matrix they are of."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import torch
from torch import Tensor

from q2n.linalg.dense import Spectrum, symmetric_spectrum
from q2n.pipeline.sharing.context import StageContext
from q2n.pipeline.sharing.store import Address, Part

STAGE = "spectra"


def decompose(context: StageContext, key: str, matrix: Tensor) -> Spectrum:
    """Decompose a symmetric ``(C, C)`` float64 matrix by
    :func:`~q2n.linalg.dense.symmetric_spectrum`, each matrix once.

    The address is a digest of the matrix, so a basis that only exists inside a solver (QuIP's) is served as
    well as a layer's own, and only what a correction asks for is ever computed or kept.

    Raises:
        NumericalError: the matrix is not finite.
    """
    numbers: Any = matrix.cpu().contiguous().view(-1).view(torch.uint8).numpy()
    address = Address(STAGE, key, hashlib.sha256(numbers).hexdigest()[:32])
    found = context.find(address)
    if found is None:
        began = time.perf_counter()
        made = symmetric_spectrum(matrix)
        tensors = {"values": made.values.contiguous(), "vectors": made.vectors.contiguous()}
        part = Part(tensors, {"seconds": time.perf_counter() - began})
        context.store.write(address, *part)
    else:
        part = context.load(found)
    context.tally.note(STAGE, key, found is not None, part.facts["seconds"])
    context.remember(address, part)
    return Spectrum(part.tensors["values"], part.tensors["vectors"])
