"""One process at a time works on a cell, whichever machines share the results folder.

A lease is a file ``lease.<n>`` in the cell's folder, made with ``O_EXCL``, that says who holds it; the
holder touches it every few seconds. The highest number counts. A lease is stale when its process is dead
(seen at once on the same machine) or when it was not touched for :data:`LAPSE` seconds of the observer's own
clock, so that clocks need not agree. Whoever finds a stale lease makes the next number: of several only one
can, and nobody ever removes what another may hold. (Locks of the operating system would not do: many shared
file systems have none, or cannot swap two files, which the stale locks of the library filelock need.)
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from functools import cache
from pathlib import Path
from typing import NamedTuple

from q2n.runtime.files import explained

PREFIX = "lease."
HEARTBEAT = 15.0
"""Seconds between two touches."""
LAPSE = 120.0
"""Seconds without a touch after which a holder on another machine counts as gone."""


class Holder(NamedTuple):
    """Holder of a lease: ``host`` names the machine and what tells its process numbers apart, ``start`` is
    when the process started (in the machine's own units; empty where that is not known)."""

    host: str
    pid: int
    start: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition(' ')[0]}"


class Lease:
    """A lease held by this process; a context manager that keeps it alive inside and gives it back.

    ``lost`` tells that another process took it for stale (this one was stopped for long, say).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"q2n-{path.name}", daemon=True)
        self.lost = False

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._path.unlink()

    def _beat(self) -> None:
        while not self._done.wait(HEARTBEAT):
            try:
                os.utime(self._path)
            except FileNotFoundError:
                self.lost = True
                return
            except OSError:
                pass  # a file server that is away for a moment


class Observer:
    """Takes leases; remembers since when each of others' was not touched."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, float]] = {}

    def take(self, folder: Path) -> Lease | None:
        """The lease on ``folder`` (which is made), or None while another process holds it.

        Raises:
            StorageError: the folder cannot be written.
        """
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            last = max(_numbers(folder), default=0)
            if last and not self.stale(folder / f"{PREFIX}{last}"):
                return None
            path = folder / f"{PREFIX}{last + 1}"
            try:
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                return None
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                    stream.write(json.dumps(this_process()._asdict()))
            except OSError:  # an empty one would stand in everybody's way until it lapses
                path.unlink(missing_ok=True)
                raise
            now = _numbers(folder)
            older = [folder / f"{PREFIX}{number}" for number in now if number <= last]
            # The first list may have been out of date by then: somebody may hold a lower number, if all were
            # given back meanwhile, or may have taken this one for an old one and removed it.
            if max(now, default=0) != last + 1 or not all(self.stale(other) for other in older):
                path.unlink(missing_ok=True)
                return None
            for other in older:
                other.unlink(missing_ok=True)
            return Lease(path)

    def stale(self, path: Path) -> bool:
        """Tell whether the holder of the lease ``path`` is gone."""
        try:
            # Opened, not only looked at: network file systems then ask the server.
            with path.open(encoding="utf-8") as stream:
                text, touched = stream.read(), os.fstat(stream.fileno()).st_mtime_ns
        except FileNotFoundError:
            return True
        holder = _parse(text)
        if holder is not None and holder.host == this_process().host:
            return not _is_alive(holder)
        before, since = self._seen.setdefault(path, (touched, time.monotonic()))
        if before != touched:
            self._seen[path] = (touched, time.monotonic())
            return False
        return time.monotonic() - since >= LAPSE


def holder_of(folder: Path) -> Holder | None:
    """Holder of the lease on ``folder``, which may have died since, or None."""
    numbers = _numbers(folder)
    if not numbers:
        return None
    try:
        return _parse((folder / f"{PREFIX}{max(numbers)}").read_text(encoding="utf-8"))
    except OSError:
        return None


def abandoned(folder: Path) -> bool:
    """Tell whether a process of this machine died while it held the lease on ``folder``."""
    holder = holder_of(folder)
    return holder is not None and holder.host == this_process().host and not _is_alive(holder)


def this_process() -> Holder:
    """The holder that this process is."""
    return Holder(_host(), os.getpid(), _start(os.getpid()))


def _numbers(folder: Path) -> list[int]:
    names = (path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*"))
    return [int(name) for name in names if name.isdigit()]


def _parse(text: str) -> Holder | None:
    try:
        fields = json.loads(text)
        return Holder(str(fields["host"]), int(fields["pid"]), str(fields["start"]))
    except (ValueError, KeyError, TypeError):
        return None  # being written, or not ours: judged by its touches alone


def _is_alive(holder: Holder) -> bool:
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    # The number may have gone to another process since.
    return not holder.start or _start(holder.pid) in ("", holder.start)


@cache
def _host() -> str:
    """The host's name, and what tells two boots and two containers of that name apart (Linux)."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
    with contextlib.suppress(OSError):
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return " ".join(parts)


def _start(pid: int) -> str:
    """Start of a process, in clock ticks since the boot; empty where ``/proc`` does not say, and a word
    for one that has ended and was not yet waited for."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return "ended" if fields[0] in "ZX" else fields[19]
