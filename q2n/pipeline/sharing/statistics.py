"""Statistics of the unquantized model, block by block and statistic by statistic, and their spectra."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from q2n.linalg.dense import Spectrum, symmetric_spectrum
from q2n.pipeline.sharing.context import StageContext
from q2n.pipeline.sharing.store import Address, Part
from q2n.types import Statistic, Statistics

if TYPE_CHECKING:
    from q2n.pipeline.sharing.keys import StageKeys

STAGE = "statistics"
SPECTRA = "spectra"

Groups = dict[str, Statistics]
"""Statistics of one block's inputs, by name of the group of linears."""

HELDOUT = "heldout "
"""Prefix of a group's name for the inputs from held-out sequences."""


class StatisticsStage:
    """Finds and keeps the statistics of every block's inputs.

    A part is one statistic of one block: a tensor and the counts of sequences and tokens per group (held-out
    inputs are a group of their own), and the seconds of the measurement. All parts are opened when the cell
    begins, so that they stay readable even if the folder is deleted.
    """

    def __init__(
        self, context: StageContext, keys: StageKeys, wanted: frozenset[Statistic], blocks: int
    ) -> None:
        self._context, self._key, self._wanted = context, keys.statistics, wanted
        self._decompose = partial(decompose, context, keys.spectra)
        self._given_up = False
        self._found = [
            {each: found for each in wanted if (found := context.find(self._address(block, each)))}
            for block in range(blocks)
        ]
        self.complete = not any(self.missing(block) for block in range(blocks))

    def missing(self, block: int) -> frozenset[Statistic]:
        """Return the statistics of a block that must be measured; to be called before :meth:`take`."""
        return self._wanted - self._found[block].keys()

    def take(self, block: int, measured: Groups, seconds: float | None = None) -> Groups:
        """Return all statistics of a block, once: those found and those ``measured``, which are kept.

        Args:
            block: index of the block.
            measured: statistics by group; empty where nothing was missing.
            seconds: time of the pass through the block, or None if there was none.
        """
        parts = {statistic: self._context.load(found) for statistic, found in self._found[block].items()}
        for statistic in self.missing(block):
            parts[statistic] = _part(statistic, measured, seconds or 0.0)
            self._write(self._address(block, statistic), parts[statistic])
        self._found[block] = {}
        saved = max(part.facts["seconds"] for part in parts.values()) if seconds is None else 0.0
        self._context.tally.note(STAGE, self._key, not measured, saved)
        for statistic, part in parts.items():
            self._context.remember(self._address(block, statistic), part)
        return self._joined(parts)

    def _write(self, address: Address, part: Part) -> None:
        if not self._given_up and not self._context.store.write(address, *part):
            self._context.store.drop(STAGE, self._key)  # statistics of only some blocks are of no use
            self._given_up = True

    def _joined(self, parts: Mapping[Statistic, Part]) -> Groups:
        names = dict.fromkeys(name for part in parts.values() for name in part.tensors)
        groups = {name: self._of_group(name, parts) for name in names}
        return {
            name: replace(stats, heldout=groups.get(f"{HELDOUT}{name}"))
            for name, stats in groups.items()
            if not name.startswith(HELDOUT)
        }

    def _of_group(self, name: str, parts: Mapping[Statistic, Part]) -> Statistics:
        having = {each: parts[each] for each in sorted(self._wanted) if name in parts[each].tensors}
        sequences, tokens = next(iter(having.values())).facts["counts"][name]
        values = {statistic: part.tensors[name] for statistic, part in having.items()}
        return Statistics(values, sequences, tokens, decompose=self._decompose)

    def _address(self, block: int, statistic: Statistic) -> Address:
        return Address(STAGE, self._key, f"{statistic}-{block:05d}")


def _part(statistic: Statistic, groups: Groups, seconds: float) -> Part:
    """Return the part of one measured statistic."""
    apart = {f"{HELDOUT}{name}": stats.heldout for name, stats in groups.items() if stats.heldout}
    having = {name: stats for name, stats in (groups | apart).items() if statistic in stats}
    return Part(
        {name: stats[statistic] for name, stats in having.items()},
        {
            "counts": {name: (stats.sequences, stats.tokens) for name, stats in having.items()},
            "seconds": seconds,
        },
    )


def decompose(context: StageContext, key: str, matrix: Tensor) -> Spectrum:
    """Decompose a symmetric ``(C, C)`` float64 matrix, each matrix once.

    The address is a digest of the matrix, so that a basis that exists only inside a solver (QuIP's) is shared
    like a layer's own, and only matrices that a correction needs are ever decomposed or kept.

    Raises:
        NumericalError: the matrix is not finite.
    """
    numbers: Any = matrix.cpu().contiguous().view(-1).view(torch.uint8).numpy()
    address = Address(SPECTRA, key, hashlib.sha256(numbers).hexdigest()[:32])
    found = context.find(address)
    if found is None:
        began = time.perf_counter()
        made = symmetric_spectrum(matrix)
        tensors = {"values": made.values.contiguous(), "vectors": made.vectors.contiguous()}
        part = Part(tensors, {"seconds": time.perf_counter() - began})
        context.store.write(address, *part)
    else:
        part = context.load(found)
    context.tally.note(SPECTRA, key, found is not None, part.facts["seconds"])
    context.remember(address, part)
    return Spectrum(part.tensors["values"], part.tensors["vectors"])
