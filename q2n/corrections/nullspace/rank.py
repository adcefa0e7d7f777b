"""How many leading eigenvectors span the inputs' range; the others span the null space.

Every rule works on the whole spectrum or on its leading part: of a part, the trace of the matrix tells how
much energy is still missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from q2n.options import ReadIf, option

if TYPE_CHECKING:
    from torch import Tensor

IndexRule = Literal["released", "textbook"]
RuleName = Literal["prefix_suffix", "energy", "adam_nscl", "fixed"]

NOTHING = 1e-12
"""Sums of eigenvalues up to here count as zero, as in the released code."""


@dataclass(frozen=True)
class RankRule:
    """One of the rules with its parameters.

    :class:`RankFields` makes one of an option's fields.

    * ``prefix_suffix``: :func:`prefix_suffix_rank` with ``t``, ``index_rule`` and ``drop_first``;
    * ``energy``: the range holds the fraction ``energy`` of the eigenvalues' sum (``drop_first`` as above);
    * ``adam_nscl``: null are eigenvalues of at most ``nscl_a`` times the smallest (arXiv 2103.07113);
    * ``fixed``: ``rank`` directions, or this fraction of all if it lies between 0 and 1.
    """

    name: RuleName = "prefix_suffix"
    t: float = 0.1
    index_rule: IndexRule = "released"
    drop_first: bool = True
    energy: float = 0.95
    nscl_a: float = 10.0
    rank: int | float = 0

    @property
    def needs_all(self) -> bool:
        """Whether the smallest eigenvalue decides, so that leading ones are not enough."""
        return self.name == "adam_nscl"

    def of_whole(self, values: Tensor) -> int:
        """The rank of a whole spectrum: non-negative eigenvalues, descending, ``(C,)``."""
        rank = self.of(values, len(values))
        assert rank is not None
        return rank

    def of(self, values: Tensor, size: int, total: float | None = None) -> int | None:
        """The rank; ``None`` if more eigenvalues than these are needed to tell.

        Args:
            values: leading eigenvalues, non-negative, descending, ``(m,)``.
            size: how many there are in all, ``C``.
            total: their sum; ``None``: that of ``values``, which are then all that are not zero.
        """
        if self.name == "fixed":
            wanted = self.rank if self.rank >= 1 else math.ceil(self.rank * size)
            return int(min(wanted, size)) if total is None or wanted <= len(values) else None
        if self.name == "adam_nscl":
            smallest = float(values[-1]) if len(values) == size else 0.0
            return int((values > self.nscl_a * smallest).sum())
        t, rule = self.t, self.index_rule
        if self.name == "energy":
            t, rule = (1 - self.energy) / self.energy, "textbook"
        return prefix_suffix_rank(values, t, rule, self.drop_first, total)

    def at_least(self, values: Tensor, size: int, total: float) -> int:
        """A lower bound of the rank from the leading eigenvalues alone.

        Eigenvalues still to come are no larger than the last of ``values``, so that the energy that is still
        missing from the range takes at least as many of them.
        """
        if self.name == "fixed":
            return int(self.rank if self.rank >= 1 else math.ceil(self.rank * size))
        t = (1 - self.energy) / self.energy if self.name == "energy" else self.t
        first = float(values[0]) if self.drop_first else 0.0
        missing = (total - first) / (1 + t) - (float(values.sum()) - first)
        largest = float(values[-1])
        if largest <= 0:
            return len(values)
        # The released ratio leaves one eigenvalue out, which may save one direction. No more than all are
        # missing, however small a subnormal eigenvalue is.
        return len(values) + max(0, math.floor(min(missing / largest, size)) - 1)


@option
class RankFields:
    """``rank_rule`` says where the null space begins (:class:`RankRule`).

    ``t``, ``index_rule`` and ``drop_first`` (the leading eigenvalue is left out of the comparison) belong to
    ``prefix_suffix``, ``energy`` (also with ``drop_first``), ``nscl_a`` and ``rank`` to the rules ``energy``,
    ``adam_nscl`` and ``fixed``.
    """

    t: Annotated[float, Field(ge=0), ReadIf(rank_rule="prefix_suffix")] = 0.1
    rank_rule: RuleName = "prefix_suffix"
    index_rule: Annotated[IndexRule, ReadIf(rank_rule="prefix_suffix")] = "released"
    drop_first: Annotated[bool, ReadIf(rank_rule=("prefix_suffix", "energy"))] = True
    energy: Annotated[float, Field(gt=0, le=1), ReadIf(rank_rule="energy")] = 0.95
    nscl_a: Annotated[float, Field(ge=1), ReadIf(rank_rule="adam_nscl")] = 10.0
    rank: Annotated[
        Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)], ReadIf(rank_rule="fixed")
    ] = 0

    @property
    def rule(self) -> RankRule:
        """The rule with its parameters."""
        return RankRule(
            self.rank_rule, self.t, self.index_rule, self.drop_first, self.energy, self.nscl_a, self.rank
        )


def prefix_suffix_rank(
    values: Tensor,
    t: float,
    rule: IndexRule = "released",
    drop_first: bool = True,
    total: float | None = None,
) -> int | None:
    """The smallest ``k`` with ``sum(values after k) / sum(values up to k) <= t``.

    The leading eigenvalue is left out of both sums with ``drop_first``. The released code's ratio skips one
    more eigenvalue, so that its null space has one direction more (``rule='released'``).

    Args:
        values: non-negative eigenvalues, descending, ``(m,)``.
        total: the sum of all eigenvalues if ``values`` are only the leading ones.

    Returns:
        ``0`` if everything but the dropped eigenvalue vanishes: all directions are null. ``None`` if the
        rule is not met within leading eigenvalues only.
    """
    import torch

    offset = 1 if drop_first else 0
    energies = values.double()[offset:]
    prefix = torch.cumsum(energies, dim=0)
    skipped = 2 if rule == "released" else 1
    if len(prefix) < skipped:
        return 0 if total is None else None
    whole = prefix[-1] if total is None else total - values.double()[:offset].sum()
    suffix = whole - prefix[skipped - 1 :]
    leading = prefix[: len(suffix)]
    found = torch.nonzero((leading > NOTHING) & (suffix <= t * leading))
    if len(found):
        return int(found[0]) + 1 + offset
    return 0 if total is None or float(whole) <= NOTHING else None
