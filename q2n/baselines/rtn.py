"""Round-to-nearest: the reference without calibration of weights."""

from __future__ import annotations

from typing import ClassVar, Literal

from q2n.baselines.base import Bits, GroupSize, LayerwiseBaseline
from q2n.options import option
from q2n.types import LinearProblem, QuantizedLinear, Statistic


@option
class RTN(LayerwiseBaseline):
    """Each group's range is divided evenly and every weight goes to the nearest level."""

    bits: Bits
    group_size: GroupSize
    sym: bool = False
    clip: Literal["minmax", "mse"] = "minmax"
    requires: ClassVar[frozenset[Statistic]] = frozenset()

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        from q2n.quantization.formats.uniform import UniformSpec
        from q2n.quantization.solvers.rtn import solve_rtn

        return solve_rtn(problem, UniformSpec(self.bits, self.group_size, self.sym, self.clip))
