"""What corrections share: defaults, and which rows and columns they may touch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from q2n.types import Baseline, Correction, LinearProblem, QuantizedLinear, Statistic

if TYPE_CHECKING:
    from torch import Tensor


class RowwiseCorrection(ABC):
    """A correction that is the same after every baseline and measures nothing of its own."""

    @property
    def requires(self) -> frozenset[Statistic]:
        return frozenset()

    @property
    def heldout(self) -> int:
        return 0

    def bind(self, baseline: Baseline) -> Correction:
        return self

    @abstractmethod
    def correct(self, problem: LinearProblem, quantized: QuantizedLinear) -> QuantizedLinear: ...


def skips(name: str, patterns: Sequence[str]) -> bool:
    """Whether the layer ``name`` fits one of the patterns (``*down_proj``) of what is left alone."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def free_rows(problem: LinearProblem, skip: Sequence[str]) -> Tensor | None:
    """Rows ``(R,)`` bool of the layers that no pattern of ``skip`` fits; ``None``: there are none."""
    import torch

    free = [not skips(name, skip) for name in problem.names]
    if not any(free):
        return None
    device = problem.weight.device
    return torch.repeat_interleave(
        torch.tensor(free, device=device), torch.tensor(problem.rows, device=device)
    )


def scaled_part(quantized: QuantizedLinear) -> Tensor:
    """What a factor would multiply: the dequantized weight, with zeros in columns kept in full precision."""
    weight = quantized.weight
    return weight if quantized.kept is None else weight.masked_fill(quantized.kept, 0)
