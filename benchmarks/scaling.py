"""Measure time and memory of a quantization by width, depth and calibration tokens, on random models.

Every row is a process of its own, since the peak memory of a process never decreases. The measured seconds
are followed by the number of operations of each kind of work, which gives the rate. ``--extrapolate``
applies the same formulas to models of 8 and 70 billion parameters on one accelerator of given rates:
computed, not measured.

    python benchmarks/scaling.py --widths 512 1024 2048 4096
    python benchmarks/scaling.py --extrapolate
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from peer_work.floor import Model, operations

LARGE = {
    "8B (Llama 3)": Model(32, ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)), 4096),
    "70B (Llama 3)": Model(80, ((10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672)), 8192),
}
WORK = ("forward", "statistics", "factorise", "solve", "measure")
GIB = 2**30


def measure(width: int, blocks: int, sequences: int, length: int, threads: int) -> dict[str, Any]:
    """Measure one quantization (GPTQ, 4 bit, groups of 64) of a random model whose MLP is twice as wide."""
    import torch

    from q2n.baselines.gptq import GPTQ
    from q2n.corrections.none import NoCorrection
    from q2n.models.spec import TinyModel
    from q2n.pipeline.activations import activation_store
    from q2n.pipeline.blocks import BlockLoop, Method
    from q2n.records.provenance import peak_memory_bytes, reset_peak_memory
    from q2n.runtime.clock import WorkClock, clocked
    from q2n.runtime.memory import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()
    heads = width // 64
    spec = TinyModel(
        name="random",
        family="llama",
        hidden_size=width,
        intermediate_size=2 * width,
        num_blocks=blocks,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=64,
        std=0.02,
    )
    loaded, clock = spec.load(torch.bfloat16), WorkClock()
    tokens = torch.randint(3, 259, (sequences, length), generator=torch.Generator().manual_seed(0))
    warm_up(GPTQ, NoCorrection, BlockLoop, Method, activation_store)
    reset_peak_memory()
    before, began = peak_memory_bytes(), time.perf_counter()
    with clocked(clock), activation_store("memory") as store:
        BlockLoop(
            Method(GPTQ(bits=4, group_size=64), NoCorrection()),
            tokens,
            batch_size=4,
            true_sequential=True,
            store=store,
            device=torch.device("cpu"),
            progress=lambda *_: None,
        ).quantize(loaded.adapter)
    wall = time.perf_counter() - began
    return {"wall": wall, "memory": peak_memory_bytes() - before, **clock.seconds}


def warm_up(baseline: Any, correction: Any, loop: Any, method: Any, stores: Any) -> None:
    """What is compiled at its first use is compiled before the clock starts."""
    import torch

    from q2n.models.spec import TinyModel

    small = TinyModel(name="small", family="llama", hidden_size=128, intermediate_size=256, num_blocks=1)
    with stores("memory") as store:
        loop(
            method(baseline(bits=4, group_size=64), correction()),
            torch.randint(3, 259, (2, 32)),
            batch_size=2,
            true_sequential=True,
            store=store,
            device=torch.device("cpu"),
            progress=lambda *_: None,
        ).quantize(small.load(torch.bfloat16).adapter)


def sizes(width: int, blocks: int) -> Model:
    groups = ((3 * width, width), (width, width), (4 * width, width), (width, 2 * width))
    return Model(blocks, groups, width)


def row(width: int, blocks: int, sequences: int, options: argparse.Namespace) -> str:
    arguments = [str(item) for item in (width, blocks, sequences, options.length, options.threads)]
    surroundings = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    command = [sys.executable, str(Path(__file__)), "--one", *arguments]
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = done.stderr.strip()[-200:]
        return f"| {width} | {blocks} | {sequences * options.length} | failed: {reason} |"
    found = json.loads(done.stdout.splitlines()[-1])
    needed = operations(sizes(width, blocks), sequences, options.length)
    shown = [
        f"{found.get(work, 0):.2f}" + (f" ({needed[work] / 1e9:.0f})" if work in needed else "")
        for work in WORK
    ]
    tokens = sequences * options.length
    return (
        f"| {width} | {blocks} | {tokens} | {found['wall']:.1f} | {' | '.join(shown)} "
        f"| {found['memory'] / GIB:.2f} |"
    )


def extrapolated(options: argparse.Namespace) -> list[str]:
    """Return a table of operations over assumed rates and of the largest tensors.

    One block at a time is on one device.
    """
    sequences, length = 128, 2048
    lines = [
        f"{sequences} x {length} calibration tokens; {options.half:.0f} TFLOP/s in bfloat16, "
        f"{options.single:.0f} in float32, {options.double:.0f} in float64. Computed, not measured.",
        "",
        "| model | forward s | Gram s | factorisation s | columns s | sum min | weights of a block GiB "
        "| activations GiB | factorisation GiB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    rates = {
        "forward": options.half,
        "statistics": options.single,
        "factorise": options.double,
        "solve": options.single,
    }
    for name, model in LARGE.items():
        needed = operations(model, sequences, length)
        seconds = {work: count / rates[work] / 1e12 for work, count in needed.items()}
        weights = 2 * sum(rows * columns for rows, columns in model.groups) / GIB
        hidden, widest = model.groups[1][0], max(columns for _, columns in model.groups)
        activations = 2 * sequences * length * (hidden + widest) / GIB
        factor = (4 + 8 + 4) * widest**2 / GIB  # Gram matrix, its factor, two quarters on the way
        shown = " | ".join(f"{seconds[work]:.0f}" for work in rates)
        minutes = sum(seconds.values()) / 60
        lines.append(
            f"| {name} | {shown} | {minutes:.0f} | {weights:.2f} | {activations:.1f} | {factor:.1f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="*", default=[512, 1024, 2048, 4096])
    parser.add_argument("--blocks", type=int, nargs="*", default=[1, 2, 4], help="at the first width")
    parser.add_argument("--sequences", type=int, nargs="*", default=[4, 8, 16], help="at the first width")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--extrapolate", action="store_true")
    parser.add_argument("--half", type=float, default=400.0, help="TFLOP/s assumed in bfloat16")
    parser.add_argument("--single", type=float, default=40.0, help="TFLOP/s assumed in float32")
    parser.add_argument("--double", type=float, default=40.0, help="TFLOP/s assumed in float64")
    parser.add_argument("--one", type=int, nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    if options.extrapolate:
        print("\n".join(extrapolated(options)))
        return
    print(f"{options.threads} threads; seconds of each kind of work, its GFLOP in parentheses\n")
    print("| width | blocks | tokens | total s | forward | Gram | factorisation | columns | record | GiB |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    first, few = options.widths[0], options.sequences[0]
    rows = [(width, 1, few) for width in options.widths]
    rows += [(first, blocks, few) for blocks in options.blocks if blocks != 1]
    rows += [(first, 1, count) for count in options.sequences if count != few]
    for width, blocks, sequences in rows:
        print(row(width, blocks, sequences, options), flush=True)


if __name__ == "__main__":
    main()
