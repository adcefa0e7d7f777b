"""Peak memory of a streamed model of Llama-3-8B's shapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from helpers import big_model
from helpers.big_model import BLOCK, INNER, OUTSIDE, TOKENS, WIDTH, GiB, size
from helpers.commands import ROOT

ACTIVATIONS = 4 * 2 * TOKENS[0] * TOKENS[1] * max(WIDTH, INNER)
"""Inputs and outputs of a block and what waits inside it, in bfloat16."""
LIMIT = size(OUTSIDE) + 2 * size(BLOCK) + ACTIVATIONS + GiB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits and peaks of memory are read from /proc")
def test_only_one_block_is_in_memory(tmp_path):
    big_model.write(tmp_path)
    done = subprocess.run(
        [sys.executable, big_model.__file__, str(tmp_path), str(LIMIT), "rtn"],
        # One arena: how many contending threads make, each with its own gaps, depends on the load.
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["finite"]
    assert found["changed"]
    whole = size(OUTSIDE) + big_model.BLOCKS * size(BLOCK)
    print(f"{found}; limit {LIMIT}, all weights {whole}")
    assert found["peak"] < LIMIT
