"""Activations on a uniform grid fitted per token at run time (QuaRot, arXiv 2404.00456, section 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from q2n.exceptions import UnsupportedError
from q2n.linalg.kernels import usable, usable_halves


@dataclass(frozen=True)
class ActivationQuantizer:
    """Rounding of activations, per token or per group of ``group_size`` channels of a token.

    The range is multiplied by ``clip_ratio`` before it is divided. Symmetric: codes ``-2^(b-1) .. 2^(b-1)-1``
    and no zero point; otherwise codes ``0 .. 2^b-1``. The arithmetic is float32 for every input dtype.
    """

    bits: int
    symmetric: bool = True
    clip_ratio: float = 1.0
    group_size: int = -1

    def __call__(self, rows: Tensor) -> Tensor:
        """Round tokens ``(..., C)`` to their grids; the dtype is kept.

        Raises:
            UnsupportedError: ``C`` is no multiple of ``group_size``.
        """
        if self.symmetric and (usable(rows) or usable_halves(rows)):
            return self._compiled(rows)
        codes, scale, zero = self._encode(rows)
        values = (codes if self.symmetric else codes.sub_(zero)).mul_(scale)
        return values.reshape(rows.shape).to(rows.dtype)

    def _compiled(self, rows: Tensor) -> Tensor:
        from q2n.linalg.kernels.forward import round_half_tokens, round_tokens
        from q2n.linalg.kernels.threads import over_rows

        runs = self._runs(rows.detach()).flatten(0, -2).contiguous()
        result = torch.empty_like(runs)
        halves = rows.dtype == torch.bfloat16
        given, out = ((part.view(torch.uint16) if halves else part).numpy() for part in (runs, result))
        kernel = round_half_tokens if halves else round_tokens
        over_rows(kernel, len(runs), given, self.bits, self.clip_ratio, out)
        return result.view(rows.shape)

    def encode(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes ``(..., C)``, and scales and zero points ``(..., C / group_size)``, all float32.

        Raises:
            UnsupportedError: ``C`` is no multiple of ``group_size``.
        """
        codes, scale, zero = self._encode(rows)
        return codes.reshape(rows.shape), scale.squeeze(-1), zero.squeeze(-1)

    def _runs(self, rows: Tensor) -> Tensor:
        """Reshape to groups of channels ``(..., G, group_size)`` that share a grid.

        Raises:
            UnsupportedError: the number of channels is no multiple of ``group_size``.
        """
        width = rows.shape[-1]
        size = width if self.group_size == -1 else self.group_size
        if width % size:
            raise UnsupportedError(
                f"activations in groups of {size}: {width} channels are no multiple of that"
            )
        return rows.reshape(*rows.shape[:-1], width // size, size)

    def _fit(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        low, high = groups.amin(dim=-1, keepdim=True), groups.amax(dim=-1, keepdim=True)
        if self.group_size == -1:
            # Only without groups does the official code extend the range to contain zero.
            low, high = low.clamp(max=0), high.clamp(min=0)
        low, high = low * self.clip_ratio, high * self.clip_ratio
        if self.symmetric:
            scale = torch.maximum(low.abs(), high) / ((1 << (self.bits - 1)) - 1)
            # All zeros, or a range too small to be divided into steps.
            scale = torch.where(scale == 0, 1, scale)
            return scale, torch.zeros_like(scale)
        levels = (1 << self.bits) - 1
        # A group of equal numbers has no range of its own: its range is extended to zero.
        constant = (high - low) / levels == 0
        low = torch.where(constant, low.clamp(max=0), low)
        high = torch.where(constant, high.clamp(min=0), high)
        empty = (high - low) / levels == 0
        low, high = torch.where(empty, -1, low), torch.where(empty, 1, high)
        scale = (high - low) / levels
        return scale, torch.round(-low / scale)

    def _encode(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        groups = self._runs(rows.float())
        scale, zero = self._fit(groups)
        lowest = -(1 << (self.bits - 1)) if self.symmetric else 0
        codes = torch.div(groups, scale).round_()
        if not self.symmetric:
            codes.add_(zero)
        return codes.clamp_(lowest, lowest + (1 << self.bits) - 1), scale, zero
