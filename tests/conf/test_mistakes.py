"""A mistake in the configuration: what is said, the exit code, and that nothing heavy was loaded for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Runs run.py's main and afterwards tells whether torch was loaded.
PROGRAM = """
import sys
from q2n.cli import main
try:
    main()
finally:
    print("torch loaded:", "torch" in sys.modules)
"""

MISTAKES = {
    "evaluation.limits=3": ["evaluation.limits", "evaluation=perplexity"],
    "bitts=3": ["bitts", "did you mean 'bits'"],
    "bits=99": ["bits=99", "less than or equal to 8"],
    "bits=3.5": ["bits=3.5", "integer"],
    "bits=x": ["bits='x'", "integer"],
    "group_size=0": ["group_size=0", "-1 for the whole row"],
    "device=gpu": ["device='gpu'", "cuda"],
    "dtype=bf16": ["dtype='bf16'", "did you mean 'bfloat16'"],
    "name=../up": ["name='../up'"],
    "baseline=gtpq": ["baseline=gtpq", "did you mean 'gptq'"],
    "baseline.percdmp=1": ["baseline.percdmp", "baseline=gptq", "did you mean 'percdamp'"],
    "q2n=of": ["q2n=of", "'off'"],
    "q2n.t=-1": ["q2n.t=-1", "greater than or equal to 0"],
    "q2n.skip=down": ["q2n.skip", "list"],
    "+foo=1": ["foo: no such key"],
    "model=path": ["model.path: is required"],
    "evaluation.datasets=[wikki]": ["evaluation.datasets", "'wikki'", "did you mean 'wiki'"],
    "evaluation.datasets=[text]": ["evaluation: the data set 'text'", "paths"],
    "checkpoint_every=x": ["checkpoint_every='x': must be 'auto' or a valid integer"],
    "tracking=null": ["tracking=null", "options: none, wandb_offline"],
    "bits=${nothing}": ["'nothing' not found"],
    "baseline._target_=os.system": ["baseline._target_", "inside the package q2n"],
    "baseline._target_=q2n.cli.main": ["baseline._target_", "not a configurable option"],
    "q2n=on,off": ["q2n=on,off", "-m"],
    "bits=[": ["bits=[: cannot be parsed as key=value, near '['"],
    "q2n.t=[1": ["q2n.t=[1: cannot be parsed as key=value, near '[1'"],
}
FOREIGN = (
    "ArgsKwargs",
    "value error",
    "NoneType",
    "constrained",
    "nput should",
    "viable",
    "<EOF>",
    "Mandatory",
)
"""Terms of pydantic and of Hydra's parser, which mean nothing to a user."""


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_is_named_before_anything_heavy_is_loaded(override, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, override, f"results_dir={tmp_path}/r"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    for part in MISTAKES[override]:
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert not [term for term in FOREIGN if term in done.stderr]
    assert "torch loaded: False" in done.stdout
    assert not (tmp_path / "r").exists()


def test_a_mistake_in_the_last_cell_stops_the_sweep_before_the_first(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "-m", "bits=2,33", f"results_dir={tmp_path}/r"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "bits=33" in done.stderr
    assert not (tmp_path / "r").exists()
