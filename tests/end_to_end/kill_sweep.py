"""Kill a real sweep at random moments, start it again each time, and compare its records with those of an
undisturbed one, bit for bit in metrics and per-layer errors.

    python tests/end_to_end/kill_sweep.py                       # 25 kills, the bundled model
    python tests/end_to_end/kill_sweep.py --kills 5 model=tiny_llama bits=2,3

Overrides after the options replace the sweep. A sweep that finishes before the next kill is compared and
begun anew.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from helpers.commands import ROOT, numbers, records

SWEEP = [
    "baseline=gptq,awq,quarot",
    "q2n=on,off",
    "calibration.nsamples=8",
    "evaluation.windows=8",
    "checkpoint_every=1",
]


@dataclass
class Outcome:
    """``moments``: seconds after its start at which each process was killed; ``resumed``: the blocks at which
    the cells that were compared had gone on."""

    moments: list[float] = field(default_factory=list)
    resumed: list[list[int]] = field(default_factory=list)
    sweeps: int = 0


def kill_sweep(
    folder: Path, overrides: Sequence[str], *, kills: int, longest: float, seed: int, env: dict[str, str]
) -> Outcome:
    """
    Args:
        longest: seconds a process lives at most before it is killed; drawn evenly from 0 to that.

    Raises:
        AssertionError: a record differs from that of the undisturbed sweep.
        CalledProcessError: a sweep that was not killed failed.
    """
    draw, outcome = random.Random(seed), Outcome()
    expected = finished(folder / "whole", overrides, env)
    results = folder / "killed"
    while len(outcome.moments) < kills:
        moment = draw.uniform(0, longest)
        if killed_after(moment, results, overrides, env):
            outcome.moments.append(moment)
        else:
            compare(expected, results, outcome)
            shutil.rmtree(results)
    finished(results, overrides, env)
    compare(expected, results, outcome)
    return outcome


def compare(expected: dict[str, dict], results: Path, outcome: Outcome) -> None:
    found = records(results)
    assert found.keys() == expected.keys(), f"{len(found)} records, expected {len(expected)}"
    for key, record in found.items():
        assert numbers(record) == numbers(expected[key]), f"{results}: the record of cell {key} differs"
    left = [*results.rglob("checkpoint"), *results.rglob("*.tmp")]
    assert not left, f"left behind: {left}"
    outcome.resumed += [record["resumed_at"] for record in found.values()]
    outcome.sweeps += 1


def start(results: Path, overrides: Sequence[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    results.mkdir(parents=True, exist_ok=True)
    with (results / "output").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), "-m", *overrides, f"results_dir={results}"],
            cwd=results,
            env=env,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def finished(results: Path, overrides: Sequence[str], env: dict[str, str]) -> dict[str, dict]:
    """Run to the end; the records."""
    process = start(results, overrides, env)
    if process.wait():
        sys.stderr.write((results / "output").read_text(encoding="utf-8"))
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return records(results)


def killed_after(seconds: float, results: Path, overrides: Sequence[str], env: dict[str, str]) -> bool:
    """Whether the sweep had to be killed; false: it was finished by then."""
    process = start(results, overrides, env)
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    if code:
        sys.stderr.write((results / "output").read_text(encoding="utf-8"))
        raise subprocess.CalledProcessError(code, process.args)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--longest", type=float, default=60.0, help="seconds a process lives at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", default=SWEEP)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="q2n-kills-") as folder:
        outcome = kill_sweep(
            Path(folder),
            options.overrides,
            kills=options.kills,
            longest=options.longest,
            seed=options.seed,
            env={**os.environ},
        )
    moments = ", ".join(f"{moment:.1f}" for moment in outcome.moments)
    cells = len(outcome.resumed)
    print(f"killed {len(outcome.moments)} times, after {moments} s")
    print(f"{cells} cells in {outcome.sweeps} finished sweeps, {time.monotonic() - began:.0f} s in all")
    print(f"went on after block: {', '.join(str(blocks) for blocks in outcome.resumed)}")
    print("every record equals that of the undisturbed sweep")


if __name__ == "__main__":
    main()
