"""The process of a command only waits: the work is done by a child, and by another one if that is killed.

A cell that takes its process with it (out-of-bounds writes of a library, the kernel's choice when memory runs
out) so costs that cell and no other. The waiting process has loaded nothing heavy and knows nothing but how
its child ended; what became of the cells is on disk, where the next child reads it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import NamedTuple

from q2n.records.killed import by_signal, ended_for_memory
from q2n.runtime import signals as interruption

TOGETHER = 0.3
"""Seconds within which the two processes of a group get a signal that is meant for both."""

_TAKEN_UP = b"+"


class Death(NamedTuple):
    """A child that was killed: ``how`` is what the system says of it."""

    pid: int
    how: str


class _ThisChild:
    """Where this process is a child: the pipe on which the waiting process hears of it."""

    pipe: int | None = None
    goes_on: bool = False


def in_child() -> Death | None:
    """Go on in a child process, and in another one whenever a cell killed the last.

    The process itself passes signals on, leaves as its child does, and never returns. Where it cannot be
    copied (Windows, other threads, torch loaded already) it goes on itself.

    Returns:
        How the child before this one ended; None if this is the first.
    """
    if not hasattr(os, "fork") or threading.active_count() > 1 or "torch" in sys.modules:
        return None
    death: Death | None = None
    while True:
        child = _Child()
        if child.pid == 0:
            _ThisChild.goes_on = death is not None
            return death
        death = child.wait()


def goes_on() -> bool:
    """Whether this process goes on with what another one was killed at."""
    return _ThisChild.goes_on


def taken_up() -> None:
    """Tell the waiting process that a cell begins: if it kills this process, another one is worth while."""
    if _ThisChild.pipe is not None:
        os.write(_ThisChild.pipe, _TAKEN_UP)
        _ThisChild.pipe = None  # once is enough, and nobody empties the pipe


class _Child:
    """A copy of this process, where ``pid`` is 0; in this one, what is known of the copy."""

    def __init__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self._starved = ended_for_memory()
        self._signalled: float | None = None
        self._said = b""
        self._pipe, theirs = os.pipe()
        lifeline, self._lifeline = os.pipe()
        os.set_blocking(self._pipe, False)
        self._former = {number: signal.getsignal(number) for number in interruption.SIGNALS}
        signal.pthread_sigmask(signal.SIG_BLOCK, interruption.SIGNALS)  # until both know what to do with them
        for number in interruption.SIGNALS:
            signal.signal(number, self._pass_on)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            os.close(self._lifeline)
            self._let_signals_be()
            _ThisChild.pipe = interruption.tell(theirs)
            threading.Thread(target=_end_with, args=(lifeline,), name="q2n-lifeline", daemon=True).start()
        else:
            os.close(theirs)
            os.close(lifeline)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, interruption.SIGNALS)

    def wait(self) -> Death:
        """How the child died; where there is nothing to go on with, this process leaves as it did."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if code >= 0:
            os._exit(code)  # whoever called has been returned to in the child
        self._listen()
        os.close(self._pipe)
        os.close(self._lifeline)
        self._let_signals_be()
        if -code in interruption.SIGNALS:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        how = by_signal(-code, self._starved)
        if _TAKEN_UP not in self._said:
            print(f"the process of the command {how}; no cell was at work", file=sys.stderr, flush=True)
            os._exit(1)
        return Death(self.pid, how)

    def _let_signals_be(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        """A terminal signals both processes, ``kill`` only this one: the child has each signal once."""
        now = time.monotonic()
        if self._signalled is None:
            self._signalled = now
            while time.monotonic() < now + TOGETHER:
                self._listen()
                if interruption.NOTICED in self._said:
                    return
                time.sleep(0.01)
        elif now < self._signalled + TOGETHER:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _listen(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._said += os.read(self._pipe, 1 << 16)


def _end_with(lifeline: int) -> None:
    """End this process when the one that waits for it is gone: nobody would hear of its results."""
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGKILL)
