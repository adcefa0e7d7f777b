"""Round-to-nearest, without error compensation."""

from __future__ import annotations

from q2n.exceptions import UnsupportedError
from q2n.quantization.formats.base import FormatSpec
from q2n.quantization.formats.uniform import UniformSpec
from q2n.types import LinearProblem, QuantizedLinear


def solve_rtn(problem: LinearProblem, grid: FormatSpec) -> QuantizedLinear:
    """Round a layer's weight to nearest, on the grid fitted to the weight alone.

    Raises:
        UnsupportedError: the number format needs information that only a solver with calibration inputs has.
    """
    if not isinstance(grid, UniformSpec):
        raise UnsupportedError(
            f"round-to-nearest fits a uniform grid to the weight alone, which {type(grid).__name__} is not: "
            "use the solver of gptq or quip"
        )
    return QuantizedLinear(grid.quantize(problem.weight), problem.weight, problem.weight)
