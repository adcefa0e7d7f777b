"""Report per quantized layer for the record."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from q2n.corrections.output_error import output_energy, output_errors
from q2n.types import (
    LayerReport,
    LinearProblem,
    NullSpaceReport,
    QuantizedLinear,
    Solution,
    Statistics,
    share,
)

BIAS_BITS = 16
"""Storage of an added bias, in bits per output."""


def layer_reports(
    block: int,
    problem: LinearProblem,
    solution: Solution,
    seconds: float,
    null_spaces: Sequence[NullSpaceReport | None] | None = None,
) -> list[LayerReport]:
    """Return one report per layer of the problem.

    The relative output error ``tr((W - Q) H (W - Q)^T) / tr(W H W^T)`` is measured with the undamped Gram
    matrix of the calibration inputs, and with the Gram matrix of the held-out inputs if there are any.

    Args:
        block: index of the decoder block.
        problem: layers before quantization.
        solution: layers before and after the correction.
        seconds: wall time of solver and correction, divided among the layers by rows.
        null_spaces: report of the null space per layer, or None without diagnostics.
    """
    before, after = _errors(problem, solution, problem.stats)
    heldout = problem.stats.heldout
    nothing: Errors = [None] * len(before)
    apart = (nothing, nothing) if heldout is None else _errors(problem, solution, heldout)
    diagnostics = solution.corrected.diagnostics
    alpha = diagnostics.get("alpha")
    notes = diagnostics.get("notes", [{}] * len(problem.names))
    reports, first = [], 0
    for index, (name, rows) in enumerate(zip(problem.names, problem.rows, strict=True)):
        part = slice(first, first + rows)
        first += rows
        share = rows / sum(problem.rows)
        reports.append(
            LayerReport(
                block=block,
                name=name,
                shape=(rows, problem.weight.shape[1]),
                bits_per_weight=_bits(solution.corrected, part, problem.has_bias(index)),
                error_before=before[index],
                error_after=after[index],
                heldout_error_before=apart[0][index],
                heldout_error_after=apart[1][index],
                alpha_min=None if alpha is None else float(alpha[part].min()),
                alpha_max=None if alpha is None else float(alpha[part].max()),
                null_rank=diagnostics.get("null_rank"),
                damping=diagnostics.get("damping"),
                decomposition=diagnostics.get("decomposition"),
                decomposition_residual=diagnostics.get("decomposition_residual"),
                null_space=None if null_spaces is None else null_spaces[index],
                solve_seconds=(seconds - solution.correct_seconds) * share,
                correct_seconds=solution.correct_seconds * share,
                extra={**diagnostics.get("extra", {}), **notes[index]},
            )
        )
    return reports


Errors = list[float | None]


def _errors(problem: LinearProblem, solution: Solution, stats: Statistics) -> tuple[Errors, Errors]:
    """Return the relative output errors of each layer, before and after the correction."""
    energy, rows = output_energy(problem, solution.base, stats), list(problem.rows)
    before, after = (output_errors(problem, it, stats) for it in (solution.base, solution.corrected))
    return _ratios(before, energy, rows), _ratios(after, energy, rows)


def _ratios(errors: Tensor, energies: Tensor, rows: list[int]) -> Errors:
    parts = zip(errors.split(rows), energies.split(rows), strict=True)
    return [share(float(error.sum()), float(energy.sum())) for error, energy in parts]


def _bits(quantized: QuantizedLinear, rows: slice, biased: bool) -> float:
    """Return the bits per weight; a bias counts only if the layer had none before."""
    form = quantized.format.select_rows(rows.start, rows.stop)
    count, columns = form.shape
    added = quantized.bias is not None and not biased and bool(quantized.bias[rows].any())
    return (form.storage_bits() + added * BIAS_BITS * count) / (count * columns)
