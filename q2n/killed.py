"""A cell whose process ended without a word: what whoever waited for it writes down in its place."""

from __future__ import annotations

from pathlib import Path

from q2n.failure import LOG_NAME, Failure, folder_of
from q2n.progress import LOGGER as PROGRESS
from q2n.sweeps import Note

ERROR_TYPE = "Killed"
_EVENTS = "/sys/fs/cgroup/memory.events"


def failure_of(note: Note, results_dir: str | Path, sweep: str) -> Failure:
    """The failure of a cell that ``note`` says was started, by a process that is no more."""
    folder = folder_of(results_dir, note.name, note.fingerprint)
    return Failure(
        fingerprint=note.fingerprint,
        name=note.name,
        label=note.label,
        cell=note.cell,
        config=note.identity.get("config", {}),
        identity=note.identity,
        error_type=ERROR_TYPE,
        message=f"process {note.pid} on {note.host} ended without a word; {_suspicion()}",
        stage=last_stage(folder / LOG_NAME),
        log=f"{note.name}/{note.fingerprint}/{LOG_NAME}",
        host=note.host,
        pid=note.pid,
        sweep=sweep,
    )


def _suspicion() -> str:
    """Who did it, as far as this process can see: the kernel counts those it ends for want of memory."""
    try:
        lines = Path(_EVENTS).read_text(encoding="utf-8").splitlines()
        killed = sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, ValueError, IndexError):
        killed = 0
    if killed:
        return f"out of memory: the kernel has ended {killed} processes of this group for that"
    return "killed from outside, most likely by the kernel because memory ran out (see its log: dmesg)"


def last_stage(log: Path) -> str:
    """The last step that a cell's log says had begun."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    mark = f" {PROGRESS.name}: "
    return next((line.partition(mark)[2] for line in reversed(lines) if mark in line), "")
