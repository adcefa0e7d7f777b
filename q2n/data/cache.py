"""Where what can be rebuilt is kept: converted models, cleaned text. It may be read-only, or full."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

_LOG = logging.getLogger(__name__)
_said: set[int | None] = set()
"""Why this process could not write to its cache, by the system's number."""


def cache_root(cache_dir: str | None = None) -> Path:
    """The cache folder: ``cache_dir``, else ``$Q2N_CACHE``, else ``~/.cache/q2n``. It need not exist yet."""
    return Path(cache_dir or os.environ.get("Q2N_CACHE") or "~/.cache/q2n").expanduser()


def kept(write: Callable[[], object]) -> bool:
    """Whether ``write`` could put something into the cache. Where it could not, nothing is lost but time,
    which is said once per process."""
    try:
        write()
    except OSError as error:
        if error.errno not in _said:
            _said.add(error.errno)
            _LOG.warning("the cache is read but not written: %s", error)
        return False
    return True
