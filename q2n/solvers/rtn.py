"""Round-to-nearest: every weight for itself."""

from __future__ import annotations

from q2n.grids.uniform import UniformGrid
from q2n.types import LinearProblem, QuantizedLinear


def solve_rtn(problem: LinearProblem, grid: UniformGrid) -> QuantizedLinear:
    """The weight on the grid fitted to it."""
    return QuantizedLinear(grid.quantize(problem.weight), problem.weight, problem.weight)
