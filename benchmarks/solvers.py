"""Time the solver of every baseline on one layer, and the share of the Hessian's factorisation.

    python benchmarks/solvers.py --shapes 3072x576 576x1536 --bits 3 --repeats 7

Weights are Gaussian, and inputs are correlated with a heavy-tailed spectrum. Times are medians of wall
time, or of CPU time (--clock cpu) if other work runs on the machine. To compare with another version of the
package, run this file with PYTHONPATH set to the folder of that version.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from q2n.baselines.gptq import GPTQ
from q2n.baselines.leanquant import LeanQuant
from q2n.baselines.owq import OWQ
from q2n.baselines.pbllm import PBLLM
from q2n.baselines.quarot import QuaRot
from q2n.baselines.quip import QuIP
from q2n.baselines.rtn import RTN
from q2n.corrections.none import NoCorrection
from q2n.linalg.dense import damped_inverse_factor, lower_factor
from q2n.types import Baseline, LinearProblem, Statistic, Statistics

TOKENS = 4096


def baselines(bits: int) -> dict[str, Baseline]:
    return {
        "rtn": RTN(bits=bits, group_size=64),
        "gptq": GPTQ(bits=bits, group_size=64),
        "gptq act-order": GPTQ(bits=bits, group_size=64, act_order=True),
        "quip": QuIP(bits=bits),
        "quip npasses=0": QuIP(bits=bits, npasses=0),
        "pbllm": PBLLM(bits=bits),
        "leanquant": LeanQuant(bits=bits),
        "owq": OWQ(bits=bits, target_rank=2),
        "owq minmax": OWQ(bits=bits, target_rank=2, tuning="minmax"),
        "quarot": QuaRot(bits=bits),
    }


def layer(rows: int, columns: int) -> LinearProblem:
    generator = torch.Generator().manual_seed(0)
    spread = torch.arange(1, columns + 1).pow(-0.6) + 0.05
    mixing = torch.linalg.qr(torch.randn(columns, columns, generator=generator)).Q
    inputs = torch.randn(TOKENS, columns, generator=generator) * spread @ mixing
    weight = torch.randn(rows, columns, generator=generator) * 0.02
    stats = Statistics({Statistic.GRAM: inputs.T @ inputs / 16}, 32, TOKENS)
    return LinearProblem(("self_attn.q_proj",), (rows,), weight, stats)


def median_seconds(call: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    call()  # untimed: compiles kernels or reads them from disk, and maps memory
    times = []
    for _ in range(repeats):
        began = clock()
        call()
        times.append(clock() - began)
    return statistics.median(times)


def factor_seconds(name: str, problem: LinearProblem, repeats: int, clock: Callable[[], float]) -> float:
    gram = problem.stats.gram
    if name == "rtn":
        return 0.0
    if name.startswith("quip"):
        damped = gram.double() + 0.01 * gram.diagonal().mean() * torch.eye(len(gram))
        return median_seconds(lambda: lower_factor(damped), repeats, clock)
    return median_seconds(lambda: damped_inverse_factor(gram, [0.01, 0.1, 1.0]), repeats, clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["3072x576", "576x1536"], help="rows x columns")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="names of baselines")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    options = parser.parse_args()
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    torch.set_num_threads(options.threads)
    print(f"{'shape':>12}  {'baseline':<16} {'total s':>8} {'factor s':>9} {'share':>6}")
    for shape in options.shapes:
        problem = layer(*(int(size) for size in shape.split("x")))
        for name, baseline in baselines(options.bits).items():
            if options.only and name not in options.only:
                continue
            solve = partial(baseline.solve, problem, NoCorrection())
            total = median_seconds(solve, options.repeats, clock)
            factor = factor_seconds(name, problem, options.repeats, clock)
            print(f"{shape:>12}  {name:<16} {total:8.3f} {factor:9.3f} {factor / total:6.0%}", flush=True)


if __name__ == "__main__":
    main()
