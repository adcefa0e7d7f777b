"""Leases: one process at a time runs a cell, whichever machines share the results folder.

A lease is a file ``lease.<n>`` in the cell's folder, made with ``O_EXCL``, that names its holder; the holder
touches it every few seconds. The highest number counts. A lease is stale when its process is dead (seen at
once on the same machine) or when it was not touched for :data:`LAPSE` seconds of the observer's own clock, so
that clocks need not agree. A process that finds a stale lease makes the next number: only one of several
processes can, and no process ever removes a lease that another may hold. (Locks of the operating system would
not do: many shared file systems have none, or cannot swap two files, which the library filelock needs for
stale locks.)
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
    """Process that holds a lease.

    ``host`` names the machine, its boot and its container; ``start`` is the start of the process in the
    machine's own units, empty if unknown.
    """

    host: str
    pid: int
    start: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition(' ')[0]}"


class Lease:
    """Lease held by this process; a context manager that keeps the lease alive inside and returns it.

    ``lost`` is True if another process took the lease for stale (because this one was stopped for long, say).
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
                pass  # a file server that does not answer for a moment


class Observer:
    """Takes leases, and remembers since when each lease of other processes was not touched."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[int, float]] = {}

    def take(self, folder: Path) -> Lease | None:
        """Take the lease on ``folder`` (which is created), or return None while another process holds it.

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
            except OSError:  # an empty lease would block all processes until it lapses
                path.unlink(missing_ok=True)
                raise
            now = _numbers(folder)
            older = [folder / f"{PREFIX}{number}" for number in now if number <= last]
            # The first list may be out of date: if all leases were returned in the meantime, another process
            # may hold a lower number, or may have taken this lease for an old one and removed it.
            if max(now, default=0) != last + 1 or not all(self.stale(other) for other in older):
                path.unlink(missing_ok=True)
                return None
            for other in older:
                other.unlink(missing_ok=True)
            return Lease(path)

    def stale(self, path: Path) -> bool:
        """Tell whether the holder of the lease ``path`` is gone."""
        try:
            # Opened, because network file systems then ask the server; a stat may come from a cache.
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
    """Return the holder of the lease on ``folder``, which may have died since, or None."""
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
    """Return this process as a holder."""
    return Holder(_host(), os.getpid(), _start(os.getpid()))


def _numbers(folder: Path) -> list[int]:
    names = (path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*"))
    return [int(name) for name in names if name.isdigit()]


def _parse(text: str) -> Holder | None:
    try:
        fields = json.loads(text)
        return Holder(str(fields["host"]), int(fields["pid"]), str(fields["start"]))
    except (ValueError, KeyError, TypeError):
        return None  # being written, or of another program: judged by its touches alone


def _is_alive(holder: Holder) -> bool:
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's process
    # The number may have been given to another process since.
    return not holder.start or _start(holder.pid) in ("", holder.start)


@cache
def _host() -> str:
    """Return the host's name, and on Linux the ids of its boot and of its container's process namespace."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
    with contextlib.suppress(OSError):
        parts.append(str(os.stat("/proc/self/ns/pid").st_ino))
    return " ".join(parts)


def _start(pid: int) -> str:
    """Return the start of a process in clock ticks since the boot.

    The text is empty where there is no ``/proc``, and ``ended`` for a process that its parent has not yet
    waited for.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()  # the name before it may contain spaces and parentheses
    return "ended" if fields[0] in "ZX" else fields[19]
