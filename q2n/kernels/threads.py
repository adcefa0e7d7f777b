"""Rows of a problem divided among threads: kernels do not hold the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import torch


def over_rows(kernel: Callable[..., None], rows: int, *arguments: Any) -> None:
    """``kernel(*arguments, first, last)`` on as many parts of ``rows`` as torch uses threads.

    Rows are independent, so the result does not depend on their number.
    """
    count = max(1, min(torch.get_num_threads(), rows))
    ends = [rows * index // count for index in range(count + 1)]
    with ThreadPoolExecutor(count) as pool:
        parts = [pool.submit(kernel, *arguments, *span) for span in pairwise(ends)]
    for part in parts:
        part.result()
