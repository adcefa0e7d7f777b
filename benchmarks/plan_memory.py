"""Compare predicted with measured peak memory: ``python benchmarks/plan_memory.py [--all] [key=value ...]``.

Each cell runs in a process of its own. The prediction of ``plan=true`` is compared with
``peak_memory_bytes`` of the cell's record. The exit code is 1 if one prediction is off by more than 25 %.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from q2n.cli import CONFIG_DIR
from q2n.command.preflight import preflight
from q2n.plan.memory import Memory, predict
from q2n.plan.workload import workload
from q2n.records.identity import identify
from q2n.records.store import read_all

ROOT = Path(__file__).resolve().parent.parent
BOUND = 0.25
PER_TENSOR = ["model=tiny_llama", "evaluation.windows=8", "calibration.nsamples=8"]
TINY = [*PER_TENSOR, "group_size=32"]
SMALL = ["calibration.nsamples=8", "evaluation.windows=8"]
WIDE = [
    "model=tiny_llama",
    "model.hidden_size=2048",
    "model.intermediate_size=5632",
    "model.num_heads=16",
    "model.num_kv_heads=8",
    "model.head_dim=128",
    "model.num_blocks=2",
    "model.std=0.02",
    "calibration=news",
    "evaluation.datasets=[news]",
    "evaluation.windows=8",
    "calibration.nsamples=16",
]
QUICK = [
    [*TINY, "baseline=rtn", "q2n=off"],
    [*TINY, "baseline=gptq", "q2n=on"],
    [*PER_TENSOR, "baseline=quip", "q2n=off", "calibration=news", "evaluation.datasets=[news]"],
    [*TINY, "baseline=awq", "q2n=on", "dtype=float32"],
    [*WIDE, "baseline=gptq", "q2n=on"],
    [*WIDE, "baseline=rtn", "q2n=off", "calibration.batch_size=0"],
]
BUNDLED = [
    [*SMALL, "baseline=rtn", "q2n=off"],
    [*SMALL, "baseline=gptq", "q2n=on"],
    [*SMALL, "baseline=quip", "q2n=off"],
    [*SMALL, "baseline=owq", "q2n=off"],
    [*SMALL, "baseline=quarot", "q2n=off"],
    [*SMALL, "baseline=gptq", "q2n=on", "dtype=float32"],
    ["baseline=gptq", "q2n=on"],
    [
        "baseline=gptq",
        "q2n=on",
        "calibration.nsamples=128",
        "calibration.seqlen=1024",
        "evaluation.windows=64",
    ],
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--all", action="store_true", help="cells of the bundled model, too (minutes each)")
    parser.add_argument("overrides", nargs="*", help="one cell of your own instead")
    options = parser.parse_args()
    cells = [options.overrides] if options.overrides else QUICK + (BUNDLED if options.all else [])
    errors = [compare(cell) for cell in cells]
    print(f"largest error {max(errors, key=abs):+.0%} of {len(errors)} cells (bound {BOUND:.0%})")
    return int(any(abs(error) > BOUND for error in errors))


def compare(overrides: list[str]) -> float:
    """Predict, run and print one cell; return the relative error of the prediction."""
    with tempfile.TemporaryDirectory() as folder:
        whole = [*overrides, f"results_dir={folder}", "sanity=off"]
        memory = predicted(whole)
        done = subprocess.run([sys.executable, "run.py", *whole], cwd=ROOT, capture_output=True, check=False)
        ((record,), _) = read_all(folder) if done.returncode == 0 else ((None,), None)
    if record is None or not record.peak_memory_bytes:
        raise SystemExit(done.stderr.decode())
    error = memory.host / record.peak_memory_bytes - 1
    print(
        f"{memory.host / 2**20:8.0f} MiB predicted ({memory.phase}), {record.peak_memory_bytes / 2**20:8.0f} "
        f"measured, {error:+4.0%}  {' '.join(overrides)}",
        flush=True,
    )
    return error


def predicted(overrides: list[str]) -> Memory:
    (config,) = preflight(CONFIG_DIR, overrides).cells
    return predict(workload(config, config.model.shapes(), identify(config)["hardware"]))


if __name__ == "__main__":
    sys.exit(main())
