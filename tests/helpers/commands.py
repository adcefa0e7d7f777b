"""What the tests' own commands have in common: small cells, and an environment of their own."""

from __future__ import annotations

import os
from pathlib import Path

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
