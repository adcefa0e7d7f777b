"""Time the same quantization by q2n and by other tools, side by side.

Every tool quantizes the bundled model (exported as safetensors) with GPTQ, groups of 64, the same 32 x 512
calibration tokens, forward passes in bfloat16, and no act-order. Only the quantization is timed, without
loading and evaluation. Runs are interleaved, and ratios are taken within a round. q2n evaluates the
dequantized weights of each tool's first run on the same held-out windows. The tools' environments are made
on the first run.

    python benchmarks/peers.py                                   # everything (prints the expected time first)
    python benchmarks/peers.py --runs 1 --bits 4 --peers q2n llmcompressor --append
    python benchmarks/peers.py --render                          # the tables of what was measured before
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peer_work import environments, floor, goals, process

from q2n.data.local_files import cache_root

OUTPUT = Path(__file__).resolve().parent / "results" / "peers.json"
TYPICAL = {"q2n": 25, "gptqmodel": 95, "llmcompressor": 110, "ist": 65, "neural-compressor": 85}
"""Seconds of one run with loading, for the estimate of the total time."""
VARIANTS: dict[str, dict[str, Any]] = {
    "q2n+on": {"q2n": "on"},
    "q2n+position_mean": {"q2n": "on", "fields": {"statistic": "position_mean"}},
    "q2n+lstsq": {"q2n": "lstsq"},
    "q2n+whole_block": {"stages": "whole_block"},
    "q2n+memory": {"warm": True},
}
"""Other settings of q2n, at the first bit width only. ``q2n+memory`` loads compiled code before, so that
compilation is not in its peak memory; the timed runs compile or load it themselves."""
ASKED = ("group_size", "threads", "bits", "sequences", "length")
"""Options that are stored with a result."""
TIMEOUT = 1800.0

Task = tuple[int, int, str]
"""Round, bits, peer or variant."""


def schedule(options: argparse.Namespace) -> list[Task]:
    """Return every tool in every round, in an order that is rotated by one per round.

    Bit widths after the first have one round.
    """
    tasks = []
    for bits in options.bits:
        first = bits == options.bits[0]
        names = [*options.peers, *(VARIANTS if first and "q2n" in options.peers else ())]
        for number in range(options.runs if first else 1):
            turned = names[number % len(names) :] + names[: number % len(names)]
            tasks += [(number, bits, name) for name in turned]
    return sorted(tasks, key=lambda task: task[0])


def export(folder: Path, sequences: int, length: int) -> tuple[str, str]:
    """Return the folder of the bundled model and the file of the calibration tokens."""
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    from q2n.data.sources import WikiCalibration
    from q2n.models.convert import converted
    from q2n.models.spec import BundledModel

    spec = BundledModel()
    model = str(converted(spec.file(), spec.name))
    calibration = WikiCalibration(nsamples=sequences, seqlen=length)
    tokens = calibration.tokens(AutoTokenizer.from_pretrained(model)).tokens
    save_file({"input_ids": tokens}, folder / "tokens.safetensors")
    return model, str(folder / "tokens.safetensors")


def attempt(task: Task, pythons: dict[str, str], job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run one task; a failure becomes an entry with its error."""
    number, bits, name = task
    peer = name.partition("+")[0]
    output = folder / f"{name}-{bits}"
    wanted = not (output / "weights.safetensors").exists()
    own = {"bits": bits, "output": str(output), "weights": wanted, "options": VARIANTS.get(name, {})}
    entry: dict[str, Any] = {"round": number, "bits": bits, "peer": name}
    try:
        if peer not in pythons:
            pythons[peer] = environments.python_of(peer, cache_root(None) / "peers")
        entry |= process.run_job(peer, pythons[peer], job | own, TIMEOUT)
    except (RuntimeError, OSError) as error:
        entry["error"] = str(error)
    said = entry.get("error") or f"{entry['wall']:.1f} s wall, {entry['cpu']:.1f} s CPU"
    print(f"round {number + 1}, {bits} bit, {name}: {said}", flush=True)
    return entry


def judge(model: str, folder: Path) -> dict[str, float]:
    from peer_work.perplexity import Judge

    referee, found = Judge(model), {}
    for weights in sorted(folder.glob("*/weights.safetensors")):
        try:
            found[weights.parent.name] = referee.perplexity(weights)
        except ValueError as error:
            print(error, flush=True)
        else:
            print(f"{weights.parent.name}: perplexity {found[weights.parent.name]:.2f}", flush=True)
    found["unquantized"] = referee.perplexity(None)
    return found


def measure(options: argparse.Namespace, results: dict[str, Any]) -> None:
    tasks = schedule(options)
    seconds = sum(TYPICAL.get(name.partition("+")[0], 100) for _, _, name in tasks)
    seconds += 0 if options.no_command_line else 300
    print(f"{len(tasks)} runs: about {seconds / 60:.0f} minutes on 2 idle cores, without new environments")
    pythons: dict[str, str] = {}
    round_ = -1
    with tempfile.TemporaryDirectory(prefix="q2n-peers-") as scratch:
        folder = Path(scratch)
        model, tokens = export(folder, options.sequences, options.length)
        job = {"model": model, "tokens": tokens, "group_size": options.group_size, "threads": options.threads}
        asked = {key: getattr(options, key) for key in ASKED}
        results["setup"] = {**asked, "sizes": asdict(floor.Model.of(model))}
        before = 1 + max((run["round"] for run in results["runs"]), default=-1)
        for number, bits, name in tasks:
            task = (number + before, bits, name)
            if task[0] != round_:
                round_ = task[0]
                results["rates"].append(floor.rates(options.threads))
            results["runs"].append(attempt(task, pythons, job, folder))
            save(results, options.output)
        if not options.no_command_line:
            results["times"] += [process.start_up(options.threads) for _ in range(5)]
            results["times"].append(process.sweep(options.threads, cache_root(None)))
        results["perplexity"] |= judge(model, folder)
    save(results, options.output)


def save(results: dict[str, Any], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--peers", nargs="+", default=list(process.WORKERS), choices=list(process.WORKERS))
    parser.add_argument("--runs", type=int, default=5, help="of everyone, first bit width")
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--no-command-line", action="store_true", help="leave start-up and sweep out")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--append", action="store_true", help="to what --output holds")
    parser.add_argument("--render", action="store_true", help="measure nothing, print what --output holds")
    options = parser.parse_args()
    results: dict[str, Any] = {"setup": {}, "runs": [], "rates": [], "times": [], "perplexity": {}}
    if options.append or options.render:
        results = json.loads(options.output.read_text())
    if not options.render:
        measure(options, results)
    for section in goals.SECTIONS:
        print("\n".join(["", *section(results)]))


if __name__ == "__main__":
    main()
