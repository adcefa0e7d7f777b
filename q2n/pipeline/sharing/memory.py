"""What this process has at hand already: results of stages as objects, bounded in size."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any

from q2n.pipeline.sharing.store import Address

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
        self._kept.clear()
        self._total = 0

    def _forget(self, address: Address) -> None:
        self._total -= self._kept.pop(address, (None, 0))[1]


def _limit() -> int:
    try:
        return min(LIMIT, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
    except (AttributeError, ValueError, OSError):
        return LIMIT  # not POSIX


MEMORY = StageMemory(_limit())
"""Of this process."""
