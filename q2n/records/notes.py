"""Notes on the cells of a command and their outcomes: ``<results_dir>/sweeps/<id>/``.

Any process may run a cell, on any machine that sees the results folder, so the state of a sweep is kept there
and nowhere else: ``sweep.json`` lists the cells of the command, and the process that starts a cell writes a
note in a file of its own (which needs no lock; not every shared file system has locks).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import Field, ValidationError

from q2n.records.fingerprint import plain
from q2n.records.schema import CellRef, Frozen
from q2n.runtime.files import write_json_atomic


class State(StrEnum):
    """State of a cell in a command or a plan.

    ``word`` stands in a table in place of the value, ``sentence`` is the explanation. ``started`` and
    ``busy`` are replaced when the cell ends; where ``started`` stays, the process was killed.
    """

    word: str
    sentence: str

    def __new__(cls, value: str, sentence: str = "", word: str = "not run") -> State:
        """Make a state whose text is ``value``, with its explanation and its word in tables."""
        state = str.__new__(cls, value)
        state._value_, state.sentence, state.word = value, sentence or value, word
        return state

    REUSED = "reused", "reused: a finished record with the same identity exists"
    COMPUTED = "computed", "computed: no finished record had this identity"
    FORCED = (
        "forced",
        "computed again because force=true, although a finished record may exist",
    )
    FAILED = (
        "failed",
        "failed: no record was written; the next sweep runs the cell again, unless retry=none",
        "failed",
    )
    UNSUPPORTED = (
        "unsupported",
        "not run: the method does not fit the model or the correction",
        "does not fit",
    )
    SKIPPED = "skipped", "not run, because of the setting retry"
    STOPPED = "stopped", "stopped early by the sweeper: the cell would not be among the best"
    STARTED = "started", "started and not ended: still running, or its process was killed"
    INTERRUPTED = "interrupted", "interrupted by a signal: resumed from its checkpoint, if there is one"
    BUSY = "busy", "not run: another process runs this cell"
    MISSING = "missing", "not started"
    # states of a plan only
    TO_RUN = "to run"
    FAILED_BEFORE = "failed before"
    CANNOT_RUN = "cannot run"


FINISHED = (State.REUSED, State.COMPUTED, State.FORCED)
"""States of cells with a record."""

FOLDER = "sweeps"
ANNOUNCEMENT = "sweep.json"
VARIABLE = "Q2N_SWEEP"
"""Environment variable with the id of the sweep to which a cell's process belongs."""

KEPT = 20
"""Number of sweeps whose notes are kept."""


def now() -> str:
    """Return the time in UTC to the millisecond, in ISO 8601, which sorts as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Note(Frozen):
    """State of one cell in a command.

    ``reason`` explains why there is no record; ``exit_code`` belongs to a command for just this cell.
    """

    ref: CellRef
    decision: State
    reason: str = ""
    exit_code: int = 0
    host: str = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    created: str = Field(default_factory=now)


class AnnouncedCell(Frozen):
    """Cell of a command, before it is started."""

    key: str
    label: str
    name: str


class Sweep(Frozen):
    """Command; ``cells`` is empty where a sweeper chooses them later, ``alone`` marks a single cell."""

    id: str
    created: str = Field(default_factory=now)
    alone: bool
    cells: tuple[AnnouncedCell, ...] = ()


def new_id() -> str:
    """Return a unique id for a command: ``20260105T101500Z-node3-4711``."""
    host = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname()).strip("-")
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{host}-{os.getpid()}"


def group_of(sweep: str) -> str:
    """Return the sweep's name for trackers: its id without the machine's name, which is private."""
    return "-".join((sweep.partition("-")[0], sweep.rpartition("-")[2]))


def announce(results_dir: str | Path, sweep: Sweep) -> None:
    """Write the list of a command's cells, and delete the notes of all but the last :data:`KEPT` sweeps.

    Raises:
        StorageError: the folder cannot be written.
    """
    root = Path(results_dir) / FOLDER
    write_json_atomic(root / sweep.id / ANNOUNCEMENT, plain(sweep.model_dump()))
    for past in sorted(root.iterdir(), key=lambda folder: folder.name, reverse=True)[KEPT:]:
        shutil.rmtree(past, ignore_errors=True)


UNWRITTEN: dict[Path, Note] = {}
"""Notes for which the disk had no room, by path: kept in the memory of this process."""


def leave_note(results_dir: str | Path, sweep: str, note: Note) -> None:
    """Write a note, which replaces an earlier one on the same cell.

    A note that cannot be written is kept in :data:`UNWRITTEN`, so that it never costs a finished cell.
    """
    path = (Path(results_dir) / FOLDER / sweep / f"{note.ref.key}.json").absolute()
    try:
        write_json_atomic(path, plain(note.model_dump()))
        UNWRITTEN.pop(path, None)
    except OSError:
        UNWRITTEN[path] = note


def read_note(results_dir: str | Path, sweep: str, key: str) -> Note | None:
    """Return the note on one cell, or None if there is no readable one."""
    return _read((Path(results_dir) / FOLDER / sweep / f"{key}.json").absolute())


def read_notes(results_dir: str | Path, sweep: str | None = None) -> list[Note]:
    """Return all readable notes of a sweep, or of all sweeps, in the order of their time."""
    root = (Path(results_dir) / FOLDER).absolute()
    folders = [root / sweep] if sweep else [*root.glob("*")]
    paths = {path for folder in folders for path in folder.glob("*.json") if path.name != ANNOUNCEMENT}
    paths |= {path for path in UNWRITTEN if path.parent in folders}
    notes = [note for path in paths if (note := _read(path))]
    return sorted(notes, key=lambda note: (note.created, note.ref.key))


def _read(path: Path) -> Note | None:
    if path in UNWRITTEN:
        return UNWRITTEN[path]
    with contextlib.suppress(
        OSError, ValidationError
    ):  # notes are a convenience: an unreadable one stops nothing
        return Note.model_validate_json(path.read_text(encoding="utf-8"))
    return None


def read_sweep(results_dir: str | Path, sweep: str) -> Sweep | None:
    """Return the sweep with an id, or None if it cannot be read."""
    try:
        path = Path(results_dir) / FOLDER / sweep / ANNOUNCEMENT
        return Sweep.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def last_sweep(results_dir: str | Path) -> Sweep | None:
    """Return the sweep that was started last, or None if there is none."""
    folders = (Path(results_dir) / FOLDER).glob(f"*/{ANNOUNCEMENT}")
    sweeps = [sweep for path in folders if (sweep := read_sweep(results_dir, path.parent.name))]
    return max(sweeps, key=lambda sweep: (sweep.created, sweep.id), default=None)
