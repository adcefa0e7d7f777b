"""Which numbers of a table are printed in bold: one question, answered in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence


def best(values: Sequence[float], lower_is_better: bool) -> list[bool]:
    """Marks the best of the values that compete in one column; ties share it.

    Nothing is marked where nothing was compared: fewer than two numbers, or all of them equal. A value
    that is not a number never wins.
    """
    numbers = [value for value in values if not math.isnan(value)]
    if len(values) < 2 or not numbers or len(set(values)) == 1:
        return [False] * len(values)
    winner = min(numbers) if lower_is_better else max(numbers)
    return [value == winner for value in values]
