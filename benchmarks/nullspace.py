"""Measure the cost of each part of the null-space step against its plain alternative, in one run.

    python benchmarks/nullspace.py alpha            # low-rank row scale against the projector written down
    python benchmarks/nullspace.py partial          # Lanczos until the rank rule is met against eigh
    python benchmarks/nullspace.py share            # decomposition and row scale beside GPTQ on small layers

``alpha`` and ``partial`` use spectra that fall as a power of the index, ``sigma_i = i^-p``; ``p``
determines the rank. The leading eigenvalue is ten times as large, because the mean input dominates. Times
are medians of wall time (one run for the dense projector of ``alpha``). Results are compared as well as
timed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from q2n.baselines.gptq import GPTQ
from q2n.corrections.none import NoCorrection
from q2n.corrections.null_space import NullSpaceScale
from q2n.corrections.nullspace.alpha import row_scale
from q2n.corrections.nullspace.partial import NotPartialError, leading_spectrum
from q2n.corrections.nullspace.rank import RankRule
from q2n.linalg.dense import symmetric_spectrum
from q2n.types import LinearProblem, Statistic, Statistics

T = TypeVar("T")

RULE = RankRule()


def timed(call: Callable[[], T], repeats: int = 1) -> tuple[float, T]:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - began)
    return statistics.median(times), result


def spectrum(size: int, power: float) -> Tensor:
    values = torch.arange(1, size + 1, dtype=torch.float64).pow(-power)
    values[0] *= 10
    return values


def matrix(values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a symmetric matrix with these eigenvalues, and its eigenvectors.

    Four reflections, each followed by a permutation, mix enough to make the matrix dense.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.eye(len(values), dtype=torch.float64)
    for _ in range(4):
        normal = torch.randn(len(values), 1, generator=generator, dtype=torch.float64)
        vectors = vectors - 2 / float(normal.square().sum()) * (vectors @ normal) @ normal.T
        vectors = vectors[:, torch.randperm(len(values), generator=generator)]
    product = (vectors * values) @ vectors.T
    return (product + product.T) / 2, vectors


def dense_scale(weight: Tensor, quantized: Tensor, vectors: Tensor, rank: int, lam: float) -> Tensor:
    """Compute the scale per row by the formula: ``P``, then ``B = W (I - P) + Q P``, then the quotient."""
    null = vectors[:, rank:] @ vectors[:, rank:].T
    reach = torch.eye(len(null), dtype=null.dtype) - null
    target = weight @ reach + quantized @ null
    return ((target * quantized).sum(dim=1) + lam) / (quantized.square().sum(dim=1) + lam + 1e-8)


def alpha(rows: int, columns: int, ranks: list[int]) -> None:
    """Time the scale per row at the given ranks of the input subspace, with and without the projector."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    error = torch.randn(rows, columns, generator=generator) * 0.004
    quantized = weight - error
    _, vectors = matrix(spectrum(columns, 1.0))
    print(f"\nrow scale, {rows} x {columns}: with the projector written down, and through its low rank")
    print("  rank  dense float64 s  dense float32 s  low rank s  ratios  largest difference from float64")
    for rank in ranks:
        slow, expected = timed(partial(dense_scale, weight.double(), quantized.double(), vectors, rank, 0.2))
        middle, _ = timed(partial(dense_scale, weight, quantized, vectors.float(), rank, 0.2))
        fast, found = timed(partial(row_scale, error, quantized, vectors, rank, 0.2), 3)
        difference = float((found - expected).abs().max())
        print(
            f"{rank:>6} {slow:>16.2f} {middle:>16.2f} {fast:>11.3f}  {slow / fast:.0f}, {middle / fast:.0f}"
            f"  {difference:.1e}",
            flush=True,
        )


def leading(columns: int, powers: list[float]) -> None:
    """Time the leading eigenpairs against all of them; each power of the spectrum gives a rank.

    Real layers also have ranks of half of all directions and more (docs/LOG.md).
    """
    print(f"\nleading eigenpairs until t=0.1 is met against all of them, width {columns}, float64")
    product, _ = matrix(spectrum(columns, powers[0]))
    whole, _ = timed(partial(symmetric_spectrum, product))
    print(f"eigh of the first: {whole:.1f} s")
    print(" power  rank  partial s  ratio  residual  error of eigenvalues  sine of the largest angle")
    for power in powers:
        values = spectrum(columns, power)
        product, vectors = matrix(values)
        expected = RULE.of(values, columns)
        began = time.perf_counter()
        try:
            part = leading_spectrum(product, RULE, columns // 4)
        except NotPartialError as reason:
            print(f"{power:>6} {expected:>5}  {reason} after {time.perf_counter() - began:.2f} s", flush=True)
            continue
        seconds = time.perf_counter() - began
        rank = RULE.of(part.values, columns, part.total)
        assert rank is not None
        assert rank == expected
        worst = float((part.values[:rank] - values[:rank]).abs().max() / values[0])
        outside = float(torch.linalg.matrix_norm(vectors[:, rank:].T @ part.vectors[:, :rank], 2))
        print(
            f"{power:>6} {rank:>5} {seconds:>10.2f} {whole / seconds:>6.1f} {part.residual:>9.0e}"
            f"  {worst:.0e}  {outside:.0e}",
            flush=True,
        )


def share(repeats: int) -> None:
    """Time the correction beside GPTQ on one block of the bundled model's shapes, without down projection."""
    print("\ncorrection beside GPTQ's solver, one block of the bundled model's shapes, 3 bit, group 64, s")
    generator = torch.Generator().manual_seed(0)
    method = GPTQ(bits=3, group_size=64)
    options = {name: NullSpaceScale(t=0.1, lam=0.2, precision=name) for name in ("float64", "float32")}
    total = dict.fromkeys(("solver", *options), 0.0)
    for rows, columns in ((960, 576), (576, 576), (3072, 576), (576, 1536)):
        gram, _ = matrix(spectrum(columns, 0.7))
        weight = torch.randn(rows, columns, generator=generator) * 0.02
        name = "mlp.down_proj" if columns == 1536 else "self_attn.q_proj"

        def problem(parts=(name, rows, weight, gram)) -> LinearProblem:  # type: ignore[no-untyped-def]
            """Return a new problem, since statistics cache what is computed from them."""
            label, count, values, moment = parts
            return LinearProblem((label,), (count,), values, Statistics({Statistic.GRAM: moment}, 1, 1))

        base = method.quantize(problem())
        total["solver"] += timed(lambda make=problem: method.solve(make(), NoCorrection()), repeats)[0]  # type: ignore[misc]
        for label, option in options.items():
            call = partial(option.correct, quantized=base)
            total[label] += statistics.median(timed(partial(call, problem()))[0] for _ in range(repeats))
    print("  ".join(f"{name} {seconds:.3f}" for name, seconds in total.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("alpha", "partial", "share"))
    parser.add_argument("--rows", type=int, default=14336)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--powers", type=float, nargs="+", default=[1.6, 1.4, 1.3, 1.2])
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    if options.what == "alpha":
        alpha(options.rows, options.columns, options.ranks)
    elif options.what == "partial":
        leading(options.columns, options.powers)
    else:
        share(options.repeats)


if __name__ == "__main__":
    main()
