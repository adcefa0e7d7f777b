"""What the tests' own commands have in common: small cells, an environment of their own, their records."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from q2n.records.fingerprint import plain
from q2n.records.store import load

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "group_size=32",
    "calibration=news",
    "calibration.nsamples=4",
    "calibration.seqlen=64",
    "evaluation.datasets=[news]",
    "evaluation.windows=4",
    "evaluation.seqlen=64",
]


def environment(cache: Path) -> dict[str, str]:
    """One thread, a wide terminal, and nothing shared with other commands but ``cache``."""
    return {**os.environ, "Q2N_CACHE": str(cache), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def start(cwd: Path, cache: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """``run.py`` with :data:`SMALL` where ``arguments`` say nothing else, in a process group of its own."""
    given = {argument.partition("=")[0] for argument in arguments}
    rest = [argument for argument in SMALL if argument.partition("=")[0] not in given]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *arguments, *rest],
        cwd=cwd,
        env={**environment(cache), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(cwd: Path, cache: Path, *arguments: str, code: int = 0, **variables: str) -> str:
    """What it says on both streams; it must leave with ``code``."""
    process = start(cwd, cache, *arguments, **variables)
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    return out + err


def records(folder: Path) -> dict[str, dict]:
    """The records of a results folder by fingerprint, as plain trees, values per layer included."""
    return {path.parent.name: plain(load(path).model_dump()) for path in folder.glob("main/*/record.json")}


def numbers(record: dict) -> str:
    """The parts of a record that must not depend on when and where it was made."""
    layers, metrics = (
        [{key: value for key, value in part.items() if not key.endswith("seconds")} for part in record[name]]
        for name in ("layers", "metrics")
    )
    return json.dumps([metrics, layers, record["bits_per_weight"], record["fingerprint"]])
