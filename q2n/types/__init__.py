"""Frozen objects passed between the stages, and the protocols the stages implement.

Shapes: a linear layer is ``y = W x`` with ``W`` of shape ``(R, C)``: ``R`` output rows, ``C`` input columns.
Every tensor here is in the layer's own column order; a solver that permutes columns undoes the permutation
before it returns (docs/reproduction.md describes official code that does not).
"""

from q2n.types.findings import LayerReport, NullSpaceReport, share
from q2n.types.layers import (
    Format,
    GroupedFormat,
    LinearProblem,
    QuantizedLinear,
    RoundingFormat,
    RowScaling,
    Solution,
)
from q2n.types.methods import Baseline, Correction, Quantize
from q2n.types.statistics import Statistic, Statistics

__all__ = [
    "Baseline",
    "Correction",
    "Format",
    "GroupedFormat",
    "LayerReport",
    "LinearProblem",
    "NullSpaceReport",
    "Quantize",
    "QuantizedLinear",
    "RoundingFormat",
    "RowScaling",
    "Solution",
    "Statistic",
    "Statistics",
    "share",
]
