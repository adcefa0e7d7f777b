"""Cells whose process was killed: the failure that is written for them, and the order of the next try."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from q2n.records import failure as failures
from q2n.records import lease
from q2n.records import notes as sweeps
from q2n.records.failure import LOG_NAME, Failure, folder_of, log_of
from q2n.records.fingerprint import fingerprint, relevant
from q2n.records.notes import Note, State
from q2n.runtime.memory import control_groups
from q2n.runtime.progress import LOGGER as PROGRESS

ERROR_TYPE = "Killed"
UNKNOWN = "ended without an error message, signal unknown"


def failure_of(note: Note, results_dir: str | Path, sweep: str, how: str) -> Failure:
    """Return the failure of a cell whose process has ended.

    Args:
        note: the note written when the cell was started.
        results_dir: folder of the records.
        sweep: id of the command.
        how: description of the process's end.
    """
    return Failure(
        ref=note.ref,
        error_type=ERROR_TYPE,
        message=f"process {note.pid} on {note.host} {how}",
        stage=last_stage(folder_of(results_dir, note.ref) / LOG_NAME),
        log=log_of(note.ref),
        host=note.host,
        pid=note.pid,
        sweep=sweep,
    )


def give_up(note: Note, results_dir: str | Path, sweep: str, how: str) -> Failure:
    """Write the failure of a cell whose process has ended (:func:`failure_of`), if the disk has room."""
    failure = failure_of(note, results_dir, sweep, how)
    with contextlib.suppress(OSError):
        failures.save(failure, results_dir)
    change = {"decision": State.FAILED, "reason": failure.reason, "exit_code": failure.exit_code}
    sweeps.leave_note(results_dir, sweep, note.model_copy(update=change))
    return failure


def by_signal(number: int, starved: int | None) -> str:
    """Describe a death: ``was killed by SIGSEGV (signal 11, segmentation fault)``, and if memory ran out.

    Args:
        number: of the signal.
        starved: :func:`ended_for_memory` before the process was started.
    """
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time signal
        name = "a signal"
    what = (signal.strsignal(number) or "").lower()
    said = f"was killed by {name} (signal {number}{f', {what}' if what else ''})"
    now = ended_for_memory()
    if now is not None and starved is not None and now > starved:
        return f"{said}: out of memory (processes ended by the kernel in the meantime: {now - starved})"
    if number != signal.SIGKILL:
        return said
    if now is None or starved is None:
        return f"{said}; the kernel's log (dmesg) tells whether memory ran out"
    return f"{said}; memory did not run out, by the kernel's count"


def ended_for_memory() -> int | None:
    """Return the number of processes that the kernel has ended so far because memory ran out.

    The count is that of this control group or, where the group has none, of this machine; None where neither
    has one.
    """
    files = (
        folder / ("memory.oom_control" if first else "memory.events") for folder, first in control_groups()
    )
    for path in (*files, Path("/proc/vmstat")):
        try:
            fields = dict(line.split()[:2] for line in path.read_text(encoding="utf-8").splitlines())
            return int(fields["oom_kill"])
        except (OSError, ValueError, KeyError):
            continue
    return None


def last_stage(log: Path) -> str:
    """Return the last step that began according to a cell's log; empty if unknown."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    mark = f" {PROGRESS.name}: "
    return next((line.partition(mark)[2] for line in reversed(lines) if mark in line), "")


def last_tries(results_dir: str | Path) -> dict[str, str]:
    """Return the time of the last try of each configuration (:func:`key_of`) whose process was killed.

    Such cells are tried after all others.
    """
    found, _ = failures.read_all(results_dir)
    tries = {key_of(it.ref.configuration): it.created for it in found if it.error_type == ERROR_TYPE}
    # After a power cut no process was left to write a failure, but the lease of the cell is still there.
    held = {path.parent.name for path in Path(results_dir).glob(f"*/*/{lease.PREFIX}*")}
    if held:
        for note in sweeps.read_notes(results_dir):
            if note.ref.fingerprint in held and note.decision is State.STARTED:
                tries[key_of(note.ref.configuration)] = note.created
    return tries


def key_of(config: Mapping[str, Any]) -> str:
    """Return the digest of the part of a configuration that decides a cell's numbers."""
    return fingerprint({"config": relevant(config)})
