"""Share of a text that another text contains, by content.

Texts are compared by their runs of :data:`RUN` letters and digits, without case, spaces and punctuation, so
that other line ends, other line widths or another file format hide nothing. 64 such characters are about 13
English words, the length by which GPT-3 (arXiv 2005.14165, appendix C) and lm-eval search for contamination;
characters also work for languages without spaces between words.
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
"""Length of a run; a power of two, since the hash of a run is made of two hashes of half the length."""
ENOUGH_RUNS = 2**12
"""Runs of the shorter text that suffice. Longer texts are compared by a sample of about this many; the hash
of a run decides whether the run is in the sample, so the samples of both texts match."""
_PIECE = 2**20
"""Characters hashed at a time: bounds the memory, 8 bytes per character and array."""
_BASE = 0x9E3779B97F4A7C15
"""Base of the hash: odd, with well-mixed bits (2**64 divided by the golden ratio)."""


@lru_cache(maxsize=8)
def overlap(one: str, other: str) -> float:
    """Return the share of the shorter text's runs that the longer text contains.

    1 if one text contains the other; 0 if one of them is shorter than a run.
    """
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
    """Return the hashes of a text's runs, thinned out to one in ``2**spare``."""
    import numpy as np

    pieces = (text[start : start + _PIECE + RUN - 1] for start in range(0, len(text), _PIECE))
    # The lowest bits of a hash depend on few bits of the characters, bits 32 and above on enough.
    chosen = np.uint64((2**spare - 1) << 32)
    found = [hashes[hashes & chosen == 0] for hashes in map(_hashes, pieces)]
    return np.concatenate([np.empty(0, np.uint64), *found])


def _hashes(text: str) -> NDArray[np.uint64]:
    """Return for every run ``c_0 ... c_63`` its hash ``sum_i c_i base^(63 - i)`` modulo 2**64."""
    import numpy as np

    hashes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    length, base = 1, _BASE
    # Doubling: two neighbouring hashes of `length` characters give one of 2 * length, in log2(RUN) steps.
    while length < RUN:
        hashes = hashes[:-length] * np.uint64(base) + hashes[length:]
        length, base = 2 * length, base * base % 2**64
    return hashes
