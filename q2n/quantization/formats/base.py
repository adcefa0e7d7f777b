"""Interface between column solvers and number formats, and the code that formats share.

A *spec* is a frozen choice (bits, symmetry, clip search). Before a layer is solved it creates a
:class:`ColumnEncoder`, the mutable scratch of that one layer: the solver passes columns in its own order
and receives the rounded values; at the end the encoder returns the immutable :class:`~q2n.types.Format`
in the layer's own column order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from q2n.exceptions import UnsupportedError
from q2n.linalg.kernels import StripArrays
from q2n.types import Format, GroupedFormat, RoundingFormat


@dataclass(frozen=True)
class SolverView:
    """One layer as a solver is about to work on it.

    ``weight`` is ``(R, C)`` in the *solver's* column order, untouched (dead columns not yet zeroed), and
    lies in memory column by column (``weight.T`` is contiguous), as the solver's own buffer does;
    ``order[j]`` is the layer's own index of solver column ``j``; ``dead[j]`` marks columns whose input is
    always zero; ``factor_diagonal`` is the diagonal ``d_j`` of the upper Cholesky factor of the damped
    inverse Hessian, ``(C,)``; the last ``kept`` columns are FP16 outlier columns and are not rounded.
    """

    weight: Tensor
    order: Tensor
    dead: Tensor
    factor_diagonal: Tensor
    kept: int = 0

    def live_columns(self) -> Tensor:
        """Return ``weight.T`` ``(C, R)`` with dead columns set to zero; do not write into it."""
        columns = self.weight.T
        return columns.masked_fill(self.dead[:, None], 0) if bool(self.dead.any()) else columns


class ColumnRounder(Protocol):
    """Methods that the column loop calls, with columns in increasing solver position."""

    def enter(self, position: int, buffer: Tensor) -> None:
        """Prepare for a column; called before each one. Refits group parameters where a group begins.

        ``buffer`` is the compensated weight **transposed**, ``(C, R)``, as it was when the solver entered
        the current block of columns (GPTQ's official code fits a group on exactly that).
        """
        ...

    def encode(self, position: int, column: Tensor) -> Tensor:
        """Round one column ``(R,)``, store its codes and return the rounded values ``(R,)``."""
        ...


class ColumnEncoder(ColumnRounder, Protocol):
    """Scratch of one layer."""

    def finish(self, compensated: Tensor) -> Format:
        """Return the layer's format, in its own column order.

        ``compensated`` ``(C, R)``, solver order, is the buffer after the sweep: it has the values of the FP16
        outlier columns.
        """
        ...


@runtime_checkable
class UnboundedEncoder(ColumnEncoder, Protocol):
    """Encoder whose levels are evenly spaced, so that the grid can be continued without end."""

    def snap(self, position: int, column: Tensor) -> Tensor:
        """Return the nearest levels of the continued grid for one column ``(R,)``; no code is stored."""
        ...


@dataclass(frozen=True)
class Strip:
    """A few neighbouring columns to be rounded one after the other, the first one at ``start``.

    The tensors are the arguments that the kernels of :mod:`q2n.linalg.kernels.columns` share. If
    ``continued``, the error on the grid continued without end is pushed; values and codes are those of the
    grid itself.
    """

    start: int
    current: Tensor
    push: Tensor
    errors: Tensor
    diagonal: Tensor
    target: Tensor
    values: Tensor
    continued: bool = False

    @property
    def columns(self) -> slice:
        """Positions of the columns."""
        return slice(self.start, self.start + len(self.current))

    def arrays(self) -> StripArrays:
        """Return the tensors' memory as arrays, in the order of the kernels' arguments."""
        current, push, errors = self.current.numpy(), self.push.numpy(), self.errors.numpy()
        return current, push, errors, self.diagonal.numpy(), self.target.numpy(), self.values.numpy()


StripRounder = Callable[[Strip], None]
"""Compiled kernel that rounds the columns of a strip and writes their errors into it."""


@runtime_checkable
class StripEncoder(Protocol):
    """Encoder with a compiled kernel that replaces calls of ``encode`` column by column."""

    def strips(self) -> StripRounder | None:
        """Return the kernel, or None if a part of the format has none."""
        ...


def strip_rounder(encoder: object) -> StripRounder | None:
    """Return the encoder's kernel, or None if it has none."""
    return encoder.strips() if isinstance(encoder, StripEncoder) else None


class FormatSpec(Protocol):
    """Choices of a number format; see the implementations beside this module."""

    def encoder(self, view: SolverView) -> ColumnEncoder:
        """Create the encoder of one layer."""
        ...


@dataclass(frozen=True)
class TensorFormat:
    """Base of formats whose fields are tensors, plain values and other formats.

    The first field has the shape of the matrix. ``BY_ROW`` names the fields that are divided with its rows.
    """

    BY_ROW: ClassVar[tuple[str, ...]]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns ``(R, C)`` of the matrix."""
        rows, columns = getattr(self, fields(self)[0].name).shape
        return rows, columns

    def select_rows(self, start: int, stop: int) -> Self:
        """Return the format of rows ``start .. stop-1``."""

        def selected(part: Any) -> Any:
            if part is None:
                return None
            return part[start:stop] if isinstance(part, Tensor) else part.select_rows(start, stop)

        return replace(self, **{name: selected(getattr(self, name)) for name in self.BY_ROW})

    def tensors(self) -> Mapping[str, Tensor]:
        """Return all tensors by name; those of an inner format have names such as ``inner.codes``."""
        found: dict[str, Tensor] = {}
        for field in fields(self):
            part = getattr(self, field.name)
            if isinstance(part, Tensor):
                found[field.name] = part
            elif hasattr(part, "tensors"):
                found |= {f"{field.name}.{inner}": tensor for inner, tensor in part.tensors().items()}
        return found


class GroupScaledFormat(TensorFormat):
    """Base of formats that are linear in their scales.

    ``SCALES`` names the fields ``(R, G)`` with the scales; ``group`` ``(C,)`` int64 is the group of each
    column.
    """

    SCALES: ClassVar[tuple[str, ...]]
    group: Tensor

    @property
    def scale_count(self) -> int:
        """Number ``G`` of scales per row."""
        count: int = getattr(self, self.SCALES[0]).shape[1]
        return count

    def scale_index(self) -> Tensor:
        """Return the index of each column's scale, ``(C,)`` int64."""
        return self.group

    def scale_groups(self, factor: Tensor) -> Self:
        """Multiply all ``SCALES`` by ``factor`` ``(R, G)``; codes are unchanged."""
        scales = {name: getattr(self, name) for name in self.SCALES}
        return replace(self, **{name: scale * factor.to(scale) for name, scale in scales.items()})

    def scale_rows(self, alpha: Tensor) -> Self:
        """Multiply every row by its ``alpha`` ``(R,)``; codes are unchanged."""
        return self.scale_groups(alpha[:, None])


class CodesEncoder:
    """Base of encoders that store one code per weight.

    A format whose parameters are fitted before the first column only adds :meth:`encode` and :meth:`finish`.
    """

    def __init__(self, view: SolverView) -> None:
        rows, columns = view.weight.shape
        self._order = view.order
        # Codes stay float32 until the end: a conversion per column would cost as much as the rounding.
        self._codes = torch.empty(columns, rows, device=view.weight.device)

    def enter(self, position: int, buffer: Tensor) -> None:
        """Do nothing: parameters are fitted before the first column."""

    def _stored(self, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Return the codes ``(R, C)`` in the layer's own column order."""
        return self._codes.to(dtype)[torch.argsort(self._order)].T.contiguous()


def scale_count(form: Format) -> int:
    """Return the number of scales per row that a correction can choose; at least one."""
    return form.scale_count if isinstance(form, GroupedFormat) else 1


def scale_index(form: Format) -> Tensor:
    """Return the index of each column's scale, ``(C,)``; all zeros if a row has at most one scale.

    See :meth:`~q2n.types.GroupedFormat.scale_index`.
    """
    if isinstance(form, GroupedFormat):
        return form.scale_index()
    device = next(iter(form.tensors().values())).device
    return torch.zeros(form.shape[1], dtype=torch.int64, device=device)


def scale_groups(form: Format, factor: Tensor) -> Format:
    """Multiply every scale by its factor ``(R, G)``: exact, and no code changes."""
    return form.scale_groups(factor) if isinstance(form, GroupedFormat) else form.scale_rows(factor[:, 0])


def requantized(form: Format, weight: Tensor) -> Format:
    """Round ``weight`` ``(R, C)`` to the nearest codes of a format whose scales stay.

    Raises:
        UnsupportedError: the format has no rounding with given scales.
    """
    if not isinstance(form, RoundingFormat):
        raise UnsupportedError(f"{type(form).__name__} cannot round again with its own scales")
    return form.requantized(weight)
