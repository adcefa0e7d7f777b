"""The fields by which options say where the null space begins: one place, so that a rule serves them all."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from q2n.corrections.nullspace.rank import IndexRule, RankRule, RuleName
from q2n.options import ReadIf, option


@option
class RankFields:
    """``rank_rule`` says where the null space begins (:class:`q2n.corrections.nullspace.rank.RankRule`).

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
