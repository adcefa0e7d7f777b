"""Measure the effect of each departure of the official Q2N step on a layer's output error, one at a time.

    python benchmarks/departures.py

The layers are those of tests/golden/data: synthetic, one linear layer each, with inputs of heavy-tailed
covariance. ``off`` is the relative output error ``||(W - Q) X||^2 / ||W X||^2`` without a correction. The
other columns are the change of this error by a correction in per cent; negative is better.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from golden import test_gptq, test_leanquant, test_owq, test_pbllm, test_quarot, test_quip
from golden.golden_data import Golden

from q2n.corrections.base import ReleasedRecipe
from q2n.corrections.null_space import NullSpaceScale
from q2n.corrections.released import BoundRelease, ReleasedScale
from q2n.linalg.dense import quadratic_rows
from q2n.types import Correction, LinearProblem, QuantizedLinear, Statistic

LAYERWISE = (test_gptq, test_pbllm, test_leanquant, test_owq, test_quarot)
ALIGNED = ReleasedRecipe(statistic=Statistic.GRAM, reference="original")
"""Closed form of ``q2n=on``, as a recipe whose choices can be changed one by one."""


def variants(t: float, lam: float, method: Any) -> dict[str, Correction]:
    """Return corrections by column: ``q2n=on``, one choice of the official code at a time, all of them."""
    released = method.released_step()

    def recipe(**changes: Any) -> Correction:
        return BoundRelease(t, lam, replace(ALIGNED, **changes))

    def on(**changes: Any) -> Correction:
        return NullSpaceScale(t=t, lam=lam, **changes)

    return {
        "on": on(),
        "mean input": on(statistic="position_mean"),
        "buffer": on(reference="compensated"),
        "order": recipe(aligned=released.aligned),
        "Adam": recipe(alpha=released.alpha),
        "weights": recipe(statistic=Statistic.SQRT_POSITION_MEAN),
        "zeros": recipe(kept_columns=released.kept_columns),
        "textbook": on(index_rule="textbook"),
        "first kept": on(drop_first=False),
        "released": ReleasedScale(t=t, lam=lam).bind(method),
    }


def error(problem: LinearProblem, quantized: QuantizedLinear) -> float:
    gram = problem.stats.gram
    lost = quadratic_rows(problem.weight - quantized.weight, gram).sum()
    return float(lost / quadratic_rows(problem.weight, gram).sum())


def changes(
    data: Golden, method: Any, solve: Callable[[LinearProblem, Correction], QuantizedLinear]
) -> list[str]:
    """Return the row of one layer: its error without correction, and the change by every variant."""
    from q2n.corrections.none import NoCorrection

    problem = data.problem(Statistic.SQRT_POSITION_MEAN)
    before = error(problem, solve(problem, NoCorrection()))
    cells = [f"{before:.5f}"]
    for correction in variants(data.settings["threshold"], data.settings["lambda"], method).values():
        after = error(problem, solve(problem, correction))
        cells.append(f"{100 * (after / before - 1):+.2f}")
    return cells


def rows() -> dict[str, list[str]]:
    """Return the row of every layer by its name."""
    table = {}
    for module in LAYERWISE:
        for case in module.CASES:
            data = Golden(case)
            method = module.baseline(data.settings)
            table[case] = changes(data, method, lambda p, c, m=method: m.solve(p, c).corrected)
    for case in test_quip.CASES:
        data = Golden(case)
        method, basis = test_quip.baseline(data), test_quip.basis(data, data.problem())
        table[case] = changes(data, method, lambda p, c, m=method, b=basis: m.solve_in(p, c, b).corrected)
    return table


def main() -> None:
    torch.set_num_threads(1)
    heads = ["off", *variants(0.1, 0.2, test_gptq.baseline(Golden("gptq_w2_g32").settings))]
    print(f"{'layer':40}" + "".join(f"{head:>12}" for head in heads))
    for case, cells in rows().items():
        print(f"{case:40}" + "".join(f"{cell:>12}" for cell in cells))


if __name__ == "__main__":
    main()
