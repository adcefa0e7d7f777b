"""Round-to-nearest: the reference without calibration."""

from __future__ import annotations

from typing import ClassVar, Literal

from q2n.baselines.base import Bits, GroupSize, LayerwiseBaseline
from q2n.options import option
from q2n.types import LinearProblem, QuantizedLinear, Statistic


@option
class RTN(LayerwiseBaseline):
    """Round-to-nearest on a uniform grid per group.

    Attributes:
        bits: bits per code.
        group_size: columns per scale, or -1 for whole rows.
        sym: grid symmetric around zero.
        clip: range of the grid: ``minmax``, or ``mse``, a search of a smaller range.
    """

    bits: Bits
    group_size: GroupSize
    sym: bool = False
    clip: Literal["minmax", "mse"] = "minmax"
    requires: ClassVar[frozenset[Statistic]] = frozenset()

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """Round every weight to the nearest level of its group's grid."""
        from q2n.quantization.formats.uniform import UniformSpec
        from q2n.quantization.solvers.rtn import solve_rtn

        return solve_rtn(problem, UniformSpec(self.bits, self.group_size, self.sym, self.clip))
