"""Time of a quantization: seconds by kind of work, summed over all blocks.

Code names its work with :func:`timed`; nothing is measured outside :func:`clocked`. Work on an accelerator is
asynchronous, so its seconds count where the host waits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Literal

WorkKind = Literal["forward", "statistics", "solve", "factorise", "correct", "measure"]
"""``solve`` is the solver without ``factorise``, the factorisation of its Hessian; ``correct`` includes the
correction's decompositions; ``measure`` computes the record's errors per layer."""


class WorkClock:
    """Wall seconds by kind of work; work inside other work counts only as the inner kind."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[WorkKind] = []
        self._since = 0.0

    @contextmanager
    def counting(self, work: WorkKind) -> Iterator[None]:
        """Count the block of code as work of this kind."""
        self._settle()
        self._open.append(work)
        try:
            yield
        finally:
            self._settle()
            self._open.pop()

    def _settle(self) -> None:
        now = time.perf_counter()
        if self._open:
            work = self._open[-1]
            self.seconds[work] = self.seconds.get(work, 0.0) + now - self._since
        self._since = now


_listening: ContextVar[WorkClock | None] = ContextVar("_listening", default=None)


@contextmanager
def clocked(clock: WorkClock) -> Iterator[None]:
    """Count this thread's work with ``clock``, inside the block of code."""
    token = _listening.set(clock)
    try:
        yield
    finally:
        _listening.reset(token)


def timed(work: WorkKind) -> AbstractContextManager[None]:
    """Count the block of code as work of this kind; outside :func:`clocked` do nothing."""
    clock = _listening.get()
    return nullcontext() if clock is None else clock.counting(work)
