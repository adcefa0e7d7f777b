"""Rows of a problem divided among threads: kernels release the interpreter's lock.

Speed only, see :mod:`q2n.linalg`.

On Linux the threads are torch's own. After torch has used them they stay busy for some time, each waiting
for more work on a processor, so a second pool would share the processors with threads that do nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from pathlib import Path
from threading import get_ident
from typing import Any

import torch

from q2n.runtime.signals import shielded

STEADY = 1024
"""Largest number of columns that is decomposed in one thread: a cell of the bundled model then has the same
result with any number of threads that a launcher gives it. A second thread would halve the time (576
columns: 31 instead of 59 ms, 90 times per cell). Wider matrices use all threads, and their last bits depend
on the number of threads."""

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@contextmanager
def steady(columns: int = 0) -> Iterator[None]:
    """Limit torch to one thread inside the block if a matrix has at most :data:`STEADY` columns.

    Products, softmax and sums over one dimension have been found to have the same bits in one and two
    threads. Decompositions and a sum of all entries have not: the library divides those sums among threads.
    """
    count = torch.get_num_threads()
    if columns > STEADY or count == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def over_rows(kernel: Callable[..., None], rows: int, *arguments: Any) -> None:
    """Call ``kernel(*arguments, first, last)`` on as many parts of ``rows`` as torch has threads.

    Rows are independent, so the result does not depend on the number of threads.

    Raises:
        KeyboardInterrupt: a signal handler interrupted this thread before it took its share.
        BaseException: the first error of a part.
    """
    count = max(1, min(torch.get_num_threads(), rows))
    ends = [rows * index // count for index in range(count + 1)]
    spans = list(pairwise(ends))
    errors: list[BaseException] = []
    entered: set[int] = set()

    def work(_: object) -> None:
        try:
            entered.add(get_ident())
            while spans:
                kernel(*arguments, *spans.pop())
        except BaseException as error:
            errors.append(error)

    with shielded():  # an exception raised by a signal could not leave a callback
        _together(work, count)
    if errors:
        raise errors[0]
    if get_ident() not in entered:  # a signal handler of other code raised nevertheless
        raise KeyboardInterrupt


def _together(work: Callable[[object], None], count: int) -> None:
    """Call ``work``, which must not raise, in up to ``count`` threads at once, the calling one included."""
    team = _team() if count > 1 else None
    if team is not None:
        team(_Body(work), None, count, 0)
        return
    with ThreadPoolExecutor(max(1, count - 1)) as pool:
        for _ in range(count - 1):
            pool.submit(work, None)
        work(None)


@cache
def _team() -> Callable[..., None] | None:
    """Return torch's ``GOMP_parallel(body, data, threads, flags)``, or None if its OpenMP has none."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        team: Any = library.GOMP_parallel
    except (OSError, AttributeError):
        return None
    team.argtypes = (_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    team.restype = None
    return team  # type: ignore[no-any-return]
