"""Supervision of a command: its process waits while a child runs the cells, and replaces a killed child.

A cell that kills its process (a library that writes out of bounds, the kernel when memory runs out) thus
costs that cell and no other. The waiting process has loaded nothing heavy and knows only how its child ended;
the outcomes of the cells are on disk, where the next child reads them.
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
"""Seconds within which both processes receive a signal that the terminal sends to their group."""

_TAKEN_UP = b"+"
"""Byte that the child writes when its first cell starts."""


class Death(NamedTuple):
    """End of a child that was killed; ``how`` is the system's description."""

    pid: int
    how: str


class _ThisChild:
    """State of this process as a child: the pipe to the waiting process, and whether a child was replaced."""

    pipe: int | None = None
    goes_on: bool = False


def in_child() -> Death | None:
    """Continue in a child process, and in a new one whenever a cell has killed the last.

    The process itself passes signals on, exits with the code of its child, and never returns from here. Where
    it cannot be forked (Windows, other threads, torch loaded already) it continues itself.

    Returns:
        The end of the child before this one, or None if this is the first.
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
    """Tell whether this process continues the work of a child that was killed."""
    return _ThisChild.goes_on


def taken_up() -> None:
    """Tell the waiting process that a cell starts: if this process is killed now, a new child is started."""
    if _ThisChild.pipe is not None:
        os.write(_ThisChild.pipe, _TAKEN_UP)
        _ThisChild.pipe = None  # once is enough, and the pipe is not emptied meanwhile


class _Child:
    """Fork of this process: in the child ``pid`` is 0; in the parent, the state of the child."""

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
        signal.pthread_sigmask(
            signal.SIG_BLOCK, interruption.SIGNALS
        )  # until both processes have their handlers
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
        """Wait for the child and return how it was killed; if nothing is to be continued, exit as it did."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if code >= 0:
            os._exit(code)  # the caller continues in the child
        self._listen()
        os.close(self._pipe)
        os.close(self._lifeline)
        self._let_signals_be()
        if -code in interruption.SIGNALS:
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        how = by_signal(-code, self._starved)
        if _TAKEN_UP not in self._said:
            print(f"the process of the command {how}; no cell was running", file=sys.stderr, flush=True)
            os._exit(1)
        return Death(self.pid, how)

    def _let_signals_be(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        """Pass a signal to the child once: a terminal signals both processes, ``kill`` only this one."""
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
    """Kill this process when the waiting process is gone: no other process would collect its results."""
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGKILL)
