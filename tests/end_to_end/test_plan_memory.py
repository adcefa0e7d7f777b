"""A plan's memory is within a quarter of what is then measured, each cell in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from helpers.commands import ROOT, environment

PER_TENSOR = ["model=tiny_llama", "calibration.nsamples=8", "evaluation.windows=8"]
TINY = [*PER_TENSOR, "group_size=32"]
NEWS = ["calibration=news", "evaluation.datasets=[news]"]
CELLS = {
    "tiny_text": [*TINY, "baseline=gptq", "q2n=on"],
    "tiny": [*PER_TENSOR, *NEWS, "baseline=quip", "q2n=off"],
    "tiny_float32": [*TINY, *NEWS, "baseline=awq", "q2n=on", "dtype=float32"],
    "bundled": ["baseline=gptq", "q2n=on", "calibration.nsamples=8", "evaluation.windows=8"],
    "bundled_float32": ["baseline=rtn", "calibration.nsamples=8", "evaluation.windows=8", "dtype=float32"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CELLS)
def test_memory_is_within_a_quarter_of_the_prediction(name, tmp_path):
    cache = {} if name.startswith("bundled") else environment(tmp_path)
    done = subprocess.run(
        [sys.executable, "benchmarks/plan_memory.py", *CELLS[name]],
        cwd=ROOT,
        env=cache or None,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "measured" in done.stdout
