"""Which crops of a text may be held out beside those calibration takes."""

from __future__ import annotations

import random
from collections.abc import Sequence

from q2n.exceptions import DataError


def heldout_starts(
    generator: random.Random, taken: Sequence[int], count: int, length: int, available: int, name: str
) -> list[int]:
    """Starts of ``count`` random crops of ``length`` tokens that share no token with the crops at ``taken``.

    They may overlap each other, as calibration's own crops may.

    Args:
        available: tokens of the text.
        name: what the text is called in the complaint.

    Raises:
        DataError: no place is left for such a crop.
    """
    before = [-length, *sorted(taken)]
    after = [*sorted(taken), available - 1]
    gaps = zip(before, after, strict=True)
    free = [range(first + length, last - length + 1) for first, last in gaps if last - first >= 2 * length]
    places = sum(map(len, free))
    if count and not places:
        raise DataError(
            f"calibration text {name}: its {len(taken)} calibration sequences leave no {length} tokens in "
            "a row to hold out; lower calibration.nsamples or calibration.seqlen, choose a larger text, or "
            "set calibration.heldout=0"
        )
    return [_nth(free, generator.randrange(places)) for _ in range(count)]


def _nth(ranges: Sequence[range], index: int) -> int:
    """Entry ``index`` of all ranges, one after the other."""
    for part in ranges:
        if index < len(part):
            return part[index]
        index -= len(part)
    raise IndexError(index)
