"""What the record says of one quantized layer."""

from __future__ import annotations

from torch import Tensor

from q2n.linalg import quadratic_rows
from q2n.types import LayerReport, LinearProblem, Solution


def layer_reports(
    block: int, problem: LinearProblem, solution: Solution, solve_seconds: float, correct_seconds: float
) -> list[LayerReport]:
    """One report a layer of the problem; seconds are shared out by rows.

    The relative output error ``tr((W - Q) H (W - Q)^T) / tr(W H W^T)`` is measured with the Gram matrix of
    the calibration inputs, undamped.
    """
    gram, original = problem.stats.gram, problem.weight
    energy = quadratic_rows(original, gram)
    before = quadratic_rows(original - solution.base.weight, gram)
    changed = solution.corrected is not solution.base
    after = quadratic_rows(original - solution.corrected.weight, gram) if changed else before
    diagnostics = solution.corrected.diagnostics
    alpha = diagnostics.get("alpha")
    reports, first = [], 0
    for name, rows in zip(problem.names, problem.rows, strict=True):
        part = slice(first, first + rows)
        first += rows
        share = rows / sum(problem.rows)
        total = float(energy[part].sum())
        reports.append(
            LayerReport(
                block=block,
                name=name,
                shape=(rows, original.shape[1]),
                bits_per_weight=_bits(solution, part),
                error_before=_ratio(before[part], total),
                error_after=_ratio(after[part], total),
                alpha_min=None if alpha is None else float(alpha[part].min()),
                alpha_max=None if alpha is None else float(alpha[part].max()),
                null_rank=diagnostics.get("null_rank"),
                damping=diagnostics.get("damping"),
                solve_seconds=solve_seconds * share,
                correct_seconds=correct_seconds * share,
            )
        )
    return reports


def _ratio(errors: Tensor, energy: float) -> float:
    """A layer whose output is zero has no relative error; a perfect copy of it counts as 0."""
    error = float(errors.sum())
    return error / energy if energy > 0 else (0.0 if error == 0 else float("inf"))


def _bits(solution: Solution, rows: slice) -> float:
    form = solution.corrected.format.select_rows(rows.start, rows.stop)
    count, columns = form.shape
    return form.storage_bits() / (count * columns)
