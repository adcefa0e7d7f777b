"""Share of a text that is in another one, by content.

Texts are compared by their runs of :data:`RUN` letters and digits, without case, spaces and punctuation, so
that other line ends, another wrapping into lines or another file format hide nothing. 64 such characters are
about 13 English words, the length by which GPT-3 (arXiv 2005.14165, appendix C) and lm-eval look for text
that is on both sides; they also serve languages that put no spaces between words.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NO_CONTENT = re.compile(r"[\W_]+")
RUN = 64
"""A power of two: hashes of runs are made of those of half the length."""
ENOUGH_RUNS = 2**12
"""Of the shorter text. Longer ones are compared by a sample of runs, which the run's own hash chooses, so
that it is the same in both texts."""
_PIECE = 2**20
"""Characters hashed at a time."""
_BASE = 0x9E3779B97F4A7C15
"""Odd, and its bits are mixed: 2**64 divided by the golden ratio."""


@lru_cache(maxsize=8)
def overlap(one: str, other: str) -> float:
    """Share of the shorter text's runs that are in the longer one: 1 where one contains the other, whichever
    it is. 0 where one of them is shorter than a run."""
    import numpy as np

    short, long = sorted((_bare(one), _bare(other)), key=len)
    spare = max(0, (len(short) // ENOUGH_RUNS).bit_length() - 1)
    runs, others = _runs(short, spare), np.sort(_runs(long, spare))
    if not len(runs) or not len(others):
        return 0.0
    nearest = others[np.searchsorted(others, runs).clip(max=len(others) - 1)]
    return float((nearest == runs).mean())


def _bare(text: str) -> str:
    return _NO_CONTENT.sub("", text.casefold())


def _runs(text: str, spare: int) -> NDArray[np.uint64]:
    """Hashes of the text's runs; of all of them only one in ``2**spare``."""
    import numpy as np

    pieces = (text[start : start + _PIECE + RUN - 1] for start in range(0, len(text), _PIECE))
    # The lowest bits of a hash depend on few bits of the characters; bit 32 and above on enough.
    chosen = np.uint64((2**spare - 1) << 32)
    found = [hashes[hashes & chosen == 0] for hashes in map(_hashes, pieces)]
    return np.concatenate([np.empty(0, np.uint64), *found])


def _hashes(text: str) -> NDArray[np.uint64]:
    """Of every run ``c_0 ... c_63``: ``sum_i c_i base^(63 - i)`` modulo 2**64."""
    import numpy as np

    hashes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    length, base = 1, _BASE
    while length < RUN:
        hashes = hashes[:-length] * np.uint64(base) + hashes[length:]
        length, base = 2 * length, base * base % 2**64
    return hashes
