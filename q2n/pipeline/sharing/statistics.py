"""Statistics of the unquantized model, block by block and statistic by statistic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from q2n.linalg.dense import Spectrum
from q2n.pipeline.sharing.context import StageContext, total_bytes
from q2n.pipeline.sharing.store import Address, Entry
from q2n.types import Statistic, Statistics

STAGE = "statistics"

Groups = dict[str, Statistics]
"""Statistics of one block by the name of the group of linears whose input they are of."""

HELDOUT = "heldout "
"""Before the name of a group: of the inputs from held-out sequences."""


@dataclass(frozen=True)
class _Part:
    """One statistic of one block: a tensor, and numbers of sequences and tokens, a group (held-out inputs are
    a group of their own), and what measuring took."""

    tensors: Mapping[str, Tensor]
    counts: Mapping[str, tuple[int, int]]
    seconds: float

    @classmethod
    def measured(cls, statistic: Statistic, groups: Groups, seconds: float) -> _Part:
        apart = {f"{HELDOUT}{name}": stats.heldout for name, stats in groups.items() if stats.heldout}
        having = {name: stats for name, stats in (groups | apart).items() if statistic in stats}
        return cls(
            {name: stats[statistic] for name, stats in having.items()},
            {name: (stats.sequences, stats.tokens) for name, stats in having.items()},
            seconds,
        )


class StatisticsStage:
    """What is known of every block's inputs when a cell begins.

    Every entry is opened then, so that what was found is there to the end, whatever happens to the folder.
    """

    def __init__(
        self,
        context: StageContext,
        key: str,
        wanted: frozenset[Statistic],
        blocks: int,
        decompose: Callable[[Tensor], Spectrum],
    ) -> None:
        self._context, self._key, self._wanted = context, key, wanted
        self._decompose = decompose
        self._given_up = False
        self._found = [self._find(block) for block in range(blocks)]
        self.complete = not any(self.missing(block) for block in range(blocks))

    def missing(self, block: int) -> frozenset[Statistic]:
        """What has to be measured of a block that was not taken yet."""
        return self._wanted - self._found[block].keys()

    def take(self, block: int, measured: Groups, seconds: float | None = None) -> Groups:
        """All statistics of a block, once: those found and those ``measured``, which are kept.

        Args:
            measured: by group; empty where nothing was missing.
            seconds: what passing through the block took; None: nothing did.
        """
        parts = {statistic: self._loaded(part) for statistic, part in self._found[block].items()}
        for statistic in self.missing(block):
            parts[statistic] = _Part.measured(statistic, measured, seconds or 0.0)
            self._write(block, statistic, parts[statistic])
        self._found[block] = {}
        saved = max(part.seconds for part in parts.values()) if seconds is None else 0.0
        self._context.ledger.note(STAGE, self._key, not measured, saved)
        size = sum(total_bytes(part.tensors) for part in parts.values())
        self._context.remember(self._address(block, "all"), parts, size)
        return self._joined(parts)

    def _find(self, block: int) -> dict[Statistic, _Part | Entry]:
        found: dict[Statistic, _Part | Entry] = {}
        found |= self._context.memory.get(self._address(block, "all")) or {}
        for statistic in self._wanted - found.keys():
            entry = self._context.store.open(self._address(block, statistic))
            if entry is not None:
                found[statistic] = entry
        return found

    def _loaded(self, part: _Part | Entry) -> _Part:
        if isinstance(part, _Part):
            return part
        counts = {name: (int(pair[0]), int(pair[1])) for name, pair in part.facts["counts"].items()}
        return _Part(self._context.placed(part.tensors()), counts, float(part.facts["seconds"]))

    def _write(self, block: int, statistic: Statistic, part: _Part) -> None:
        if self._given_up:
            return
        facts = {"counts": part.counts, "seconds": part.seconds}
        if not self._context.store.write(self._address(block, statistic), part.tensors, facts):
            self._context.store.drop(STAGE, self._key)  # statistics of some blocks are of no use to anyone
            self._given_up = True

    def _joined(self, parts: Mapping[Statistic, _Part]) -> Groups:
        names = dict.fromkeys(name for part in parts.values() for name in part.tensors)
        groups = {name: self._of_group(name, parts) for name in names}
        return {
            name: replace(stats, heldout=groups.get(f"{HELDOUT}{name}"))
            for name, stats in groups.items()
            if not name.startswith(HELDOUT)
        }

    def _of_group(self, name: str, parts: Mapping[Statistic, _Part]) -> Statistics:
        having = {
            statistic: parts[statistic]
            for statistic in sorted(self._wanted)
            if name in parts[statistic].tensors
        }
        counts = next(iter(having.values())).counts[name]
        values = {statistic: part.tensors[name] for statistic, part in having.items()}
        return Statistics(values, *counts, decompose=self._decompose)

    def _address(self, block: int, part: str) -> Address:
        return Address(STAGE, self._key, f"{part}-{block:05d}")
