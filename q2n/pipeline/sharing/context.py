"""Where the stages of one cell look for results and leave them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from q2n.pipeline.sharing.memory import MEMORY, StageMemory
from q2n.pipeline.sharing.store import StageStore
from q2n.records.reuse import Ledger

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class StageContext:
    """The cache folder, this process's memory, the cell's ledger, and the device results are wanted on."""

    store: StageStore
    device: torch.device
    ledger: Ledger = field(default_factory=Ledger)
    memory: StageMemory = MEMORY

    def remember(self, address: Any, value: Any, size: int) -> None:
        """Keep an object in memory, unless it is on a device whose memory has better uses."""
        if self.device.type == "cpu":
            self.memory.put(address, value, size)

    def placed(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``tensors`` on the device."""
        return {name: tensor.to(self.device) for name, tensor in tensors.items()}


def total_bytes(tensors: Mapping[Any, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
