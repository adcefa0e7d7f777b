"""Rank rules: number of leading eigenvectors that span the input subspace; the others span the null space.

Every rule works on the whole spectrum or on its leading part. For a part, the trace of the matrix gives the
energy that is still missing.
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
"""Largest sum of eigenvalues that counts as zero, as in the official code."""


@dataclass(frozen=True)
class RankRule:
    """Rank rule with its parameters; :class:`RankFields` builds it from the fields of an option.

    * ``prefix_suffix``: :func:`prefix_suffix_rank` with ``t``, ``index_rule`` and ``drop_first``;
    * ``energy``: the input subspace holds the fraction ``energy`` of the eigenvalues' sum, with
      ``drop_first`` as above;
    * ``adam_nscl``: eigenvalues of at most ``nscl_a`` times the smallest are null (arXiv 2103.07113);
    * ``fixed``: ``rank`` directions, or this fraction of all directions if it lies between 0 and 1.
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
        """True if the rule needs the smallest eigenvalue, so that leading ones do not suffice."""
        return self.name == "adam_nscl"

    def of_whole(self, values: Tensor) -> int:
        """Return the rank of a whole spectrum: non-negative eigenvalues, descending, ``(C,)``."""
        rank = self.of(values, len(values))
        assert rank is not None
        return rank

    def of(self, values: Tensor, size: int, total: float | None = None) -> int | None:
        """Return the rank, or None if it takes more eigenvalues than ``values``.

        Args:
            values: leading eigenvalues, non-negative, descending, ``(m,)``.
            size: number of all eigenvalues, ``C``.
            total: sum of all eigenvalues, or None if ``values`` are all that are not zero.
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
        """Return a lower bound of the rank from the leading eigenvalues alone.

        Later eigenvalues are no larger than the last of ``values``. The bound is the number of eigenvalues of
        that size that the energy still missing from the input subspace takes.

        Args:
            values: leading eigenvalues, non-negative, descending, ``(m,)``.
            size: number of all eigenvalues, ``C``.
            total: sum of all eigenvalues.
        """
        if self.name == "fixed":
            return int(self.rank if self.rank >= 1 else math.ceil(self.rank * size))
        t = (1 - self.energy) / self.energy if self.name == "energy" else self.t
        first = float(values[0]) if self.drop_first else 0.0
        missing = (total - first) / (1 + t) - (float(values.sum()) - first)
        largest = float(values[-1])
        if largest <= 0:
            return len(values)
        # The ratio of the official code leaves one eigenvalue out, which may save one direction. At most all
        # directions are missing, however large the quotient by a subnormal eigenvalue is.
        return len(values) + max(0, math.floor(min(missing / largest, size)) - 1)


@option
class RankFields:
    """Fields of options that choose the rank of the input subspace (:class:`RankRule`).

    Attributes:
        t: ``prefix_suffix``: largest ratio of remaining to covered energy.
        rank_rule: name of the rule.
        index_rule: ``prefix_suffix``: index of the official code, or the textbook's.
        drop_first: ``prefix_suffix`` and ``energy``: leave the leading eigenvalue out of the comparison.
        energy: ``energy``: fraction of the eigenvalues' sum that the input subspace holds.
        nscl_a: ``adam_nscl``: null eigenvalues are at most this multiple of the smallest.
        rank: ``fixed``: number of directions, or their fraction of all if below 1.
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
        """Rank rule of these fields."""
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
    """Return the smallest ``k`` with ``sum(values after k) / sum(values up to k) <= t``.

    Args:
        values: non-negative eigenvalues, descending, ``(m,)``.
        t: threshold of the ratio.
        rule: with ``'released'`` the ratio skips one more eigenvalue, as in the official code, so that the
            null space has one more direction.
        drop_first: leave the leading eigenvalue out of both sums.
        total: sum of all eigenvalues if ``values`` are only the leading ones.

    Returns:
        The rank; 0 if all eigenvalues but the dropped one vanish, so that all directions are null. None if
        ``values`` are only the leading eigenvalues and the rule is not met within them.
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
