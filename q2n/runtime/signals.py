"""SIGINT and SIGTERM (a batch system's time limit) as an exception that leaves time to save what is done.

The first signal raises :class:`Interrupted` wherever the main thread is, or at the end of a :func:`shielded`
section; finished work is saved while the exception propagates. A second signal has the system's own effect:
the process ends at once.
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
"""``EX_TEMPFAIL`` of sysexits.h: a temporary failure, the same command may be repeated."""

NOTICED = b"!"
"""Byte written to another process when the first signal has taken effect."""

_NOTICE = b"\ninterrupted: saving finished work (a second signal exits at once)\n"


class Interrupted(KeyboardInterrupt):
    """Signal to end the process; not an ``Exception``, so that no handler of errors swallows it."""


class _Process:
    """State of this process: the signal received, the count of open shielded sections, the pipe to notify."""

    requested: int | None = None
    shields: int = 0
    witness: int | None = None


@contextmanager
def graceful() -> Iterator[None]:
    """Raise :class:`Interrupted` at the first SIGINT or SIGTERM inside the block.

    Does nothing outside the main thread, which alone receives signals, or inside another such block.
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
    """Write :data:`NOTICED` to ``pipe`` at the first signal, from now on; returns ``pipe``."""
    _Process.witness = pipe
    return pipe


@contextmanager
def shielded() -> Iterator[None]:
    """Delay a signal that arrives inside the block to its end."""
    before = _Process.requested
    _Process.shields += 1
    try:
        yield
    finally:
        _Process.shields -= 1
    if _Process.requested != before:  # one that came earlier is on its way already
        check()


def check() -> None:
    """Raise if a signal arrived and its exception was swallowed, for example by a library's callback.

    Raises:
        Interrupted: a signal arrived and no section is shielded.
    """
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
