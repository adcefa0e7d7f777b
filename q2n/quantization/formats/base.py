"""What a column solver needs of a number format, and what formats have in common.

A *grid* is a frozen choice (bits, symmetry, clip search). Before a layer is solved it gives a
:class:`ColumnEncoder`, the mutable scratch of that one layer: the solver hands it columns in its own order
and gets back the rounded values; at the end the encoder yields the immutable :class:`~q2n.types.Format`
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
    inverse Hessian, ``(C,)``; ``kept`` of the last columns are not rounded.
    """

    weight: Tensor
    order: Tensor
    dead: Tensor
    factor_diagonal: Tensor
    kept: int = 0

    def live_columns(self) -> Tensor:
        """``weight.T`` ``(C, R)`` with dead columns at zero; do not write into it."""
        columns = self.weight.T
        return columns.masked_fill(self.dead[:, None], 0) if bool(self.dead.any()) else columns


class ColumnRounder(Protocol):
    """What the column loop calls. Columns arrive in increasing solver position."""

    def enter(self, position: int, buffer: Tensor) -> None:
        """Called before each column; refits group parameters where a group begins.

        ``buffer`` is the compensated weight **transposed**, ``(C, R)``, as it was when the solver entered
        the current block of columns (upstream GPTQ fits a group on exactly that).
        """
        ...

    def encode(self, position: int, column: Tensor) -> Tensor:
        """Round one column ``(R,)``; remembers the codes and returns the values they stand for ``(R,)``."""
        ...


class ColumnEncoder(ColumnRounder, Protocol):
    """Scratch of one layer."""

    def finish(self, compensated: Tensor) -> Format:
        """The layer's format, in its own column order.

        ``compensated`` ``(C, R)``, solver order, is the buffer after the sweep: what kept columns hold.
        """
        ...


@runtime_checkable
class UnboundedEncoder(ColumnEncoder, Protocol):
    """An encoder whose levels are evenly spaced, so that the grid can be continued without end."""

    def snap(self, position: int, column: Tensor) -> Tensor:
        """The nearest level of the continued grid for one column ``(R,)``; remembers nothing."""
        ...


@dataclass(frozen=True)
class Strip:
    """A few neighbouring columns to be rounded one after the other, the first one at ``start``.

    The tensors are the arguments that the kernels of :mod:`q2n.linalg.kernels.columns` share. If
    ``continued``, what is pushed is the error on the grid continued without end; values and codes are those
    of the grid itself.
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
        return slice(self.start, self.start + len(self.current))

    def arrays(self) -> StripArrays:
        """The tensors' memory, in the order in which kernels take it."""
        current, push, errors = self.current.numpy(), self.push.numpy(), self.errors.numpy()
        return current, push, errors, self.diagonal.numpy(), self.target.numpy(), self.values.numpy()


StripRounder = Callable[[Strip], None]


@runtime_checkable
class StripEncoder(Protocol):
    """An encoder with a compiled kernel, which does for a strip what the loop does with ``encode``."""

    def strips(self) -> StripRounder | None:
        """None: not after all (a part of the format has no kernel)."""
        ...


def strip_rounder(encoder: object) -> StripRounder | None:
    """The encoder's kernel, if it has one."""
    return encoder.strips() if isinstance(encoder, StripEncoder) else None


class FormatSpec(Protocol):
    """A number format's choices; see the implementations beside this module."""

    def encoder(self, view: SolverView) -> ColumnEncoder: ...


@dataclass(frozen=True)
class TensorFormat:
    """Base of formats whose fields are tensors, plain values and other formats.

    The first field has the shape of the matrix. ``BY_ROW`` names the fields that are divided with its rows.
    """

    BY_ROW: ClassVar[tuple[str, ...]]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = getattr(self, fields(self)[0].name).shape
        return rows, columns

    def select_rows(self, start: int, stop: int) -> Self:
        def selected(part: Any) -> Any:
            if part is None:
                return None
            return part[start:stop] if isinstance(part, Tensor) else part.select_rows(start, stop)

        return replace(self, **{name: selected(getattr(self, name)) for name in self.BY_ROW})

    def tensors(self) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for field in fields(self):
            part = getattr(self, field.name)
            if isinstance(part, Tensor):
                found[field.name] = part
            elif hasattr(part, "tensors"):
                found |= {f"{field.name}.{inner}": tensor for inner, tensor in part.tensors().items()}
        return found


class GroupScaledFormat(TensorFormat):
    """Base of formats that are linear in the fields ``SCALES`` ``(R, G)``; the field ``group`` ``(C,)`` int64
    is each column's place in them."""

    SCALES: ClassVar[tuple[str, ...]]
    group: Tensor

    @property
    def scale_count(self) -> int:
        count: int = getattr(self, self.SCALES[0]).shape[1]
        return count

    def scale_index(self) -> Tensor:
        return self.group

    def scale_groups(self, factor: Tensor) -> Self:
        """All ``SCALES`` multiplied by ``factor`` ``(R, G)``; codes unchanged."""
        scales = {name: getattr(self, name) for name in self.SCALES}
        return replace(self, **{name: scale * factor.to(scale) for name, scale in scales.items()})

    def scale_rows(self, alpha: Tensor) -> Self:
        return self.scale_groups(alpha[:, None])


class CodesEncoder:
    """Base of encoders that keep a code per weight; a format whose parameters are fitted ahead needs no more
    than :meth:`encode` and :meth:`finish`."""

    def __init__(self, view: SolverView) -> None:
        rows, columns = view.weight.shape
        self._order = view.order
        # Codes stay floats until the end: a conversion per column would cost as much as the rounding.
        self._codes = torch.empty(columns, rows, device=view.weight.device)

    def enter(self, position: int, buffer: Tensor) -> None:
        """No group begins: parameters are fitted ahead."""

    def _stored(self, dtype: torch.dtype = torch.uint8) -> Tensor:
        """The codes ``(R, C)`` in the layer's own column order."""
        return self._codes.to(dtype)[torch.argsort(self._order)].T.contiguous()


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
