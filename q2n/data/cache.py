"""Where what can be rebuilt is kept: converted models, cleaned text."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root(cache_dir: str | None = None) -> Path:
    """The cache folder: ``cache_dir``, else ``$Q2N_CACHE``, else ``~/.cache/q2n``. It need not exist yet."""
    return Path(cache_dir or os.environ.get("Q2N_CACHE") or "~/.cache/q2n").expanduser()
