"""Scales of any format: those a format has by groups, or the one a row it always takes up."""

from __future__ import annotations

import torch
from torch import Tensor

from q2n.exceptions import UnsupportedError
from q2n.types import Format, GroupedFormat, RoundingFormat


def scale_count(form: Format) -> int:
    """Scales of a row that a correction can choose; at least one."""
    return form.scale_count if isinstance(form, GroupedFormat) else 1


def scale_index(form: Format) -> Tensor:
    """:meth:`~q2n.types.GroupedFormat.scale_index`; all zeros where a row has no more than one scale."""
    if isinstance(form, GroupedFormat):
        return form.scale_index()
    device = next(iter(form.tensors().values())).device
    return torch.zeros(form.shape[1], dtype=torch.int64, device=device)


def scale_groups(form: Format, factor: Tensor) -> Format:
    """Every scale multiplied by its factor ``(R, G)``: exact, and no code changes."""
    return form.scale_groups(factor) if isinstance(form, GroupedFormat) else form.scale_rows(factor[:, 0])


def requantized(form: Format, weight: Tensor) -> Format:
    """``weight`` ``(R, C)`` in the nearest codes of a format whose scales stay.

    Raises:
        UnsupportedError: the format does not say how it rounds.
    """
    if not isinstance(form, RoundingFormat):
        raise UnsupportedError(f"{type(form).__name__} cannot round again with its own scales")
    return form.requantized(weight)
