"""Places of the stages' results of one cell: this process's memory first, then the cache folder."""

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
"""Largest bytes of results in memory (3 GiB), unless a quarter of the machine's memory is less."""


class StageMemory:
    """Objects by address, up to ``limit`` bytes; the least recently used are dropped."""

    def __init__(self, limit: int) -> None:
        self._limit, self._total = limit, 0
        self._kept: OrderedDict[Address, tuple[Any, int]] = OrderedDict()

    def get(self, address: Address) -> Any:
        """Return the object at ``address``, or None if there is none."""
        if address not in self._kept:
            return None
        self._kept.move_to_end(address)
        return self._kept[address][0]

    def put(self, address: Address, value: Any, size: int) -> None:
        """Keep ``value`` of ``size`` bytes, unless it alone exceeds the limit."""
        self._forget(address)
        if size > self._limit:
            return
        self._kept[address] = (value, size)
        self._total += size
        while self._total > self._limit:
            self._forget(next(iter(self._kept)))

    def clear(self) -> None:
        """Drop all objects."""
        self._kept.clear()
        self._total = 0

    def _forget(self, address: Address) -> None:
        self._total -= self._kept.pop(address, (None, 0))[1]


MEMORY = StageMemory(min(LIMIT, psutil.virtual_memory().total // 4))
"""Memory of this process."""


@dataclass(frozen=True)
class StageContext:
    """Cache folder, device of the results, tally of the cell, and memory of this process."""

    store: StageStore
    device: torch.device
    tally: ReuseTally = field(default_factory=ReuseTally)
    memory: StageMemory = MEMORY

    def find(self, address: Address) -> Part | StoredPart | None:
        """Return a part in memory, else its file, else None."""
        known: Part | None = self.memory.get(address)
        return known or self.store.open(address)

    def load(self, found: Part | StoredPart) -> Part:
        """Return the part that was found, on the device."""
        if isinstance(found, Part):
            return found
        tensors = {name: tensor.to(self.device) for name, tensor in found.tensors().items()}
        return Part(tensors, found.facts)

    def remember(self, address: Address, part: Part) -> None:
        """Keep a part in memory."""
        self.remember_object(address, part, total_bytes(part.tensors))

    def remember_object(self, address: Address, value: Any, size: int) -> None:
        """Keep an object in memory, unless it is on an accelerator, whose memory the model needs."""
        if self.device.type == "cpu":
            self.memory.put(address, value, size)


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes of all tensors."""
    return sum(tensor.nbytes for tensor in tensors.values())
