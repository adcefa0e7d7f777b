"""SIGINT and SIGTERM (a batch system's time limit) as an exception that leaves time to save what is done.

The first signal raises :class:`Interrupted` wherever the main thread is, or at the end of a
:func:`shielded` section; whoever holds something worth keeping saves it on the way out. A second signal has
the system's own effect: the process is gone at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)

EXIT_CODE = 75
"""``EX_TEMPFAIL`` of sysexits.h: nothing is wrong, the same command may be given again."""

NOTICED = b"!"
"""What another process is told when the first signal has taken effect."""

_NOTICE = b"\ninterrupted: saving what is done (once more: leave at once)\n"


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end. Not an ``Exception``: no handler for errors may swallow it."""


class _Process:
    """State of this process: the signal that came, how many shielded sections are open, and whom to tell."""

    requested: int | None = None
    shields: int = 0
    witness: int | None = None


@contextmanager
def graceful() -> Iterator[None]:
    """Inside the block the first SIGINT or SIGTERM raises :class:`Interrupted`.

    Does nothing in a thread that is not the main one (signals go elsewhere), or inside another such block.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is _first:
        yield
        return
    former = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, _first)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        _Process.requested = None


def tell(pipe: int) -> int:
    """Let whoever reads ``pipe`` know of the first signal (:data:`NOTICED`); the pipe itself."""
    _Process.witness = pipe
    return pipe


@contextmanager
def shielded() -> Iterator[None]:
    """A signal that comes inside the block takes effect at its end."""
    before = _Process.requested
    _Process.shields += 1
    try:
        yield
    finally:
        _Process.shields -= 1
    if _Process.requested != before:  # one that came earlier is on its way already
        check()


def check() -> None:
    """Raise if a signal came and its exception was swallowed (by a callback of a library, say)."""
    if _Process.requested is not None and not _Process.shields:
        raise Interrupted(f"signal {_Process.requested}")


def _first(number: int, _: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)
    os.write(2, _NOTICE)  # print() is not safe here: the signal may have come in the middle of another print
    _Process.requested = number
    if _Process.witness is not None:
        os.write(_Process.witness, NOTICED)
    check()
