"""Uniform grid whose symmetric variant is centred on zero (QuaRot, arXiv 2404.00456)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from q2n.quantization.formats.uniform import UniformSpec

MIN_RANGE = 1e-5


@dataclass(frozen=True)
class CentredSpec(UniformSpec):
    """Symmetric: values ``s k`` with ``k`` in ``-2^(b-1) .. 2^(b-1) - 1`` and ``s = max|w| / (2^(b-1) - 1)``,
    so that ``+max`` is a level and ``-max`` the last but one. Stored as codes ``k + 2^(b-1)`` with the zero
    point ``2^(b-1)``. Asymmetric: the grid of :class:`~q2n.quantization.formats.uniform.UniformSpec`.
    """

    def fit(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if not self.symmetric:
            return super().fit(weight)
        largest = weight.abs().amax(dim=1).clamp(min=MIN_RANGE)
        return self.parameters(weight, -largest, largest)

    def _parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        if not self.symmetric:
            return super()._parameters(low, high)
        offset = 1 << (self.bits - 1)
        return high / (offset - 1), torch.full_like(high, float(offset))
