"""What a column solver needs of a number format.

A *grid* is a frozen choice (bits, symmetry, clip search). Before a layer is solved it gives a
:class:`ColumnEncoder`, the mutable scratch of that one layer: the solver hands it columns in its own order
and gets back the rounded values; at the end the encoder yields the immutable :class:`~q2n.types.Format`
in the layer's own column order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from q2n.linalg.kernels import StripArrays
from q2n.types import Format


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
