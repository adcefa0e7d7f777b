"""Places of results of the stages of one cell: this process's memory first, then the cache folder."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from torch import Tensor

from q2n.pipeline.sharing.store import Address, Part, StageStore, StoredPart
from q2n.records.schema import ReuseTally

LIMIT = 3 * 2**30
"""Bytes, unless a quarter of the machine's memory is less."""


class StageMemory:
    """Objects by address; beyond ``limit`` bytes the least recently used are forgotten."""

    def __init__(self, limit: int) -> None:
        self._limit, self._total = limit, 0
        self._kept: OrderedDict[Address, tuple[Any, int]] = OrderedDict()

    def get(self, address: Address) -> Any:
        """The object, or None."""
        if address not in self._kept:
            return None
        self._kept.move_to_end(address)
        return self._kept[address][0]

    def put(self, address: Address, value: Any, size: int) -> None:
        """Keep ``value``, which takes ``size`` bytes; not at all if that is more than everything may take."""
        self._forget(address)
        if size > self._limit:
            return
        self._kept[address] = (value, size)
        self._total += size
        while self._total > self._limit:
            self._forget(next(iter(self._kept)))

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self._total = 0

    def _forget(self, address: Address) -> None:
        self._total -= self._kept.pop(address, (None, 0))[1]


MEMORY = StageMemory(min(LIMIT, psutil.virtual_memory().total // 4))
"""Of this process."""


@dataclass(frozen=True)
class StageContext:
    """The cache folder, the device results are wanted on, the cell's tally, and this process's memory."""

    store: StageStore
    device: torch.device
    tally: ReuseTally = field(default_factory=ReuseTally)
    memory: StageMemory = MEMORY

    def find(self, address: Address) -> Part | StoredPart | None:
        """A part in memory, else its file, else None."""
        known: Part | None = self.memory.get(address)
        return known or self.store.open(address)

    def load(self, found: Part | StoredPart) -> Part:
        """The part that was found, on the device."""
        if isinstance(found, Part):
            return found
        tensors = {name: tensor.to(self.device) for name, tensor in found.tensors().items()}
        return Part(tensors, found.facts)

    def remember(self, address: Address, part: Part) -> None:
        """Keep a part in memory."""
        self.remember_object(address, part, total_bytes(part.tensors))

    def remember_object(self, address: Address, value: Any, size: int) -> None:
        """Keep an object in memory, unless it is on a device whose memory has better uses."""
        if self.device.type == "cpu":
            self.memory.put(address, value, size)


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in tensors.values())
