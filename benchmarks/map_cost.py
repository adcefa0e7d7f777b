"""Measure the cost of a (t, lambda) map of static cells, in units of one ordinary cell.

    python benchmarks/map_cost.py evaluation.windows=8                               # one evaluation for both
    python benchmarks/map_cost.py evaluation.windows=8 --cell evaluation.windows=32  # the default cell

Two commands run one after the other: one cell with true-sequential calibration, and the map with
``calibration.stages=static``. The cache of each is empty except for the converted model and the cleaned
text. Times are those of the whole commands, from the interpreter's start to the table: wall time, and CPU
time, which other work on the machine disturbs less. Overrides apply to both commands, those after
``--cell`` to the cell alone.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from q2n.data.local_files import cache_root
from q2n.records.store import load_all

RUN = Path(__file__).resolve().parent.parent / "run.py"
CLOCKS = ("wall", "processor")
MADE_ONCE = ("models", "text")
"""Parts of the cache folder that any first command makes: they are no cost of the map."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--t", default="0.01,0.02,0.05,0.1,0.2,0.5")
    parser.add_argument("--lam", default="0,0.1,0.2,0.5,1,2")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--cell", nargs="*", default=[])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="q2n-map-") as folder:
        single = measured(Path(folder) / "single", [*options.overrides, *options.cell])
        grid = ["-m", "calibration.stages=static", f"q2n.t={options.t}", f"q2n.lam={options.lam}"]
        whole = measured(Path(folder) / "map", [*grid, *options.overrides])
    ratios = (f"{name} {both / one:.2f}" for name, both, one in zip(CLOCKS, whole, single, strict=True))
    print(f"map / cell: {', '.join(ratios)}")


def measured(folder: Path, arguments: list[str]) -> tuple[float, float]:
    """Return the seconds of one command by each of :data:`CLOCKS`, and print their parts."""
    (folder / "cache").mkdir(parents=True)
    for name in MADE_ONCE:
        (cache_root() / name).mkdir(parents=True, exist_ok=True)
        os.symlink(cache_root() / name, folder / "cache" / name)
    places = [f"results_dir={folder / 'results'}", f"cache_dir={folder / 'cache'}", "name=map_cost"]
    began, used = time.perf_counter(), processor_seconds()
    subprocess.run(
        [sys.executable, str(RUN), *arguments, *places],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    wall, processor = time.perf_counter() - began, processor_seconds() - used
    records = load_all(folder / "results")
    spent: Counter[str] = Counter()
    for record in records:
        spent.update(record.seconds)
    spent["rest"] = wall - sum(spent.values())
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in spent.items())
    print(f"{len(records):3} cells {wall:7.1f} s ({processor:.1f} s of processors): {stages}", flush=True)
    kept = sum(file.stat().st_size for file in folder.glob("cache/stages/*/*"))
    first, *others = sorted(records, key=lambda record: record.seconds["quantize"], reverse=True)
    if others:
        quantize = sum(record.seconds["quantize"] for record in others) / len(others)
        evaluate = sum(record.seconds["evaluate"] for record in others) / len(others)
        print(
            f"    first cell: quantize {first.seconds['quantize']:.1f} s; others on average: {quantize:.2f} s"
        )
        print(f"    evaluate, on average: {evaluate:.2f} s; kept on disk: {kept / 2**20:.0f} MiB")
    return wall, processor


def processor_seconds() -> float:
    """Return user and system time of all commands that have ended, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
