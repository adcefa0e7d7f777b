"""Compare two checkouts bit for bit: every baseline with and without Q2N, and one cell of the bundled model.

    git worktree add ../before HEAD~1
    python benchmarks/same_bits.py ../before               # against the checkout this file is in
    python benchmarks/same_bits.py ../before --skip-bundled

Both checkouts run the same commands, one after the other, with the same interpreter, libraries and number
of threads. Each has its own results and cache. The comparison covers the layer reports (except seconds),
the losses and scores of every metric, and the bits per weight. Fields that exist in only one of the two
versions are ignored. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent

SMALL = ("calibration.nsamples=4", "calibration.seqlen=64", "evaluation.windows=2", "evaluation.seqlen=64")
BASELINES = "rtn,gptq,quip,pbllm,leanquant,owq,quarot,quarot_kv4,awq,smoothquant"
GRID = ("baseline=composed", "group_size=-1", "q2n=off,on")
COMMANDS = (
    ("-m", "model=tiny_llama", f"baseline={BASELINES}", "q2n=off,on", "group_size=16", *SMALL),
    ("-m", "model=tiny_qwen2,tiny_qwen3", f"baseline={BASELINES}", "q2n=on", "bits=2,4", *SMALL),
    (
        "-m",
        "model=tiny_llama",
        "baseline=gptq",
        "q2n=off,released,lstsq,groupwise,bias,requantize,tuned",
        *SMALL,
    ),
    (
        "-m",
        "model=tiny_llama",
        "baseline=gptq,rtn",
        "q2n=on",
        "calibration.stages=static,whole_block",
        *SMALL,
    ),
    (
        "-m",
        "model=tiny_llama",
        *GRID,
        "baseline.solver=rtn,obs,ldlq",
        "baseline.grid=uniform,centred,mse2d",
        *SMALL,
    ),
    ("-m", "model=tiny_llama", *GRID, "baseline.solver=obs,ldlq", "baseline.grid=lut,per_tensor", *SMALL),
)
BUNDLED = (
    "-m",
    "model=smollm2_135m",
    "baseline=gptq",
    "q2n=on",
    "calibration.nsamples=8",
    "evaluation.windows=4",
)

READ = """
import dataclasses, json, sys
# The last one: versions differ in whether they note it where a cell does not read it.
NOT_COMPARED = ("results_dir", "cache_dir", "name", "group_size")
try:
    from q2n.records.store import read_all
except ImportError:  # a checkout from before the package was laid out in rooms
    from q2n.record import read_all
records, faults = read_all(sys.argv[1])
assert not faults, faults
json.dump(
    [
        {
            "cell": sorted(o for o in r.overrides if not o.startswith(NOT_COMPARED)),
            "bits_per_weight": r.bits_per_weight,
            "layers": [dataclasses.asdict(layer) for layer in r.layers],
            "metrics": [metric.model_dump(mode="json") for metric in r.metrics],
        }
        for r in records
    ],
    sys.stdout,
    default=str,
)
"""
"""Program that is run in each checkout, since only a checkout's own code can read its records."""

TIMES = ("seconds", "solve_seconds", "correct_seconds")
LABELS = ("protocol",)
"""Fields that describe a number; another version may word them differently."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("old", type=Path, help="the checkout to compare with")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--skip-bundled", action="store_true")
    options = parser.parse_args()
    commands = COMMANDS if options.skip_bundled else (*COMMANDS, BUNDLED)
    with tempfile.TemporaryDirectory(prefix="q2n-same-bits-") as folder:
        old, new = (
            cells(checkout, Path(folder) / name, commands, options.threads)
            for name, checkout in (("old", options.old.resolve()), ("new", HERE))
        )
    lines = [*differences(old, new)]
    print("\n".join([*lines, f"{len(new)} cells, {len(lines) or 'no'} differences"]))
    return int(bool(lines))


def cells(
    checkout: Path, folder: Path, commands: tuple[tuple[str, ...], ...], threads: int
) -> dict[str, dict[str, Any]]:
    """Compute the cells of all commands with a checkout; return them by command and overrides."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": str(threads)}
    found: dict[str, dict[str, Any]] = {}
    folder.mkdir()
    for number, command in enumerate(commands):
        places = [f"results_dir={folder / str(number)}", f"cache_dir={folder / 'cache'}"]
        run = [sys.executable, str(checkout / "run.py"), *command, *places]
        done = subprocess.run(run, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{checkout}: {' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        read = [sys.executable, "-c", READ, str(folder / str(number))]
        text = subprocess.run(read, cwd=checkout, env=environment, stdout=subprocess.PIPE, check=True).stdout
        found |= {f"{number} {' '.join(cell.pop('cell'))}": cell for cell in json.loads(text)}
    return found


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Yield one line per cell that exists in only one checkout or differs between the two."""
    for key in sorted(old.keys() ^ new.keys()):
        yield f"{key}: only in the {'old' if key in old else 'new'} checkout"
    for key in sorted(old.keys() & new.keys()):
        pairs = dict(_leaves(old[key])), dict(_leaves(new[key]))
        shared = pairs[0].keys() & pairs[1].keys()
        changed = sorted(name for name in shared if pairs[0][name] != pairs[1][name])
        if changed:
            first = f"{changed[0]}: {pairs[0][changed[0]]} -> {pairs[1][changed[0]]}"
            yield f"{key}: {len(changed)} of {len(shared)} values, first {first}"
        # A list that is longer on one side is a difference; a field that one version lacks is not.
        extra = sorted(name for name in pairs[0].keys() ^ pairs[1].keys() if name.endswith("]"))
        if extra:
            yield f"{key}: {len(extra)} values only on one side, first {extra[0]}"


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the numbers of a tree by path, as text that distinguishes any two floats."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in (*TIMES, *LABELS):
                yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, repr(value)


if __name__ == "__main__":
    sys.exit(main())
