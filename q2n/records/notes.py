"""Notes on what a command was asked to run and what became of each cell: ``<results_dir>/sweeps/<id>/``.

Any process may run a cell, on any machine that sees the results folder, so what is known of a sweep lives
there and nowhere else: ``sweep.json`` lists the cells that were asked for, and whoever takes a cell up
leaves a note in a file of its own (no lock is needed, which not every shared file system has).
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

    ``word`` stands in its place in a table without a value, ``sentence`` is for explaining. ``started`` and
    ``busy`` are replaced when the cell ends; where ``started`` stays, the process was killed.
    """

    word: str
    sentence: str

    def __new__(cls, value: str, sentence: str = "", word: str = "not run") -> State:
        state = str.__new__(cls, value)
        state._value_, state.sentence, state.word = value, sentence or value, word
        return state

    REUSED = "reused", "reused: a finished record with the same identity was there"
    COMPUTED = "computed", "computed: no finished record had this identity"
    FORCED = (
        "forced",
        "computed again because force=true, although a finished record may have been there",
    )
    FAILED = (
        "failed",
        "failed: it left no record, so the next sweep runs it again (but with retry=none)",
        "failed",
    )
    UNSUPPORTED = (
        "unsupported",
        "not run: the method does not fit the model or the correction",
        "does not fit",
    )
    SKIPPED = "skipped", "left out on purpose"  # retry
    STOPPED = "stopped", "stopped early by the sweeper: it would not have been among the best"
    STARTED = "started", "taken up, and not ended: at work still, or its process was killed"
    INTERRUPTED = "interrupted", "interrupted by a signal: goes on from its checkpoint, if it has one"
    BUSY = "busy", "not run: another process is at it"
    MISSING = "missing", "nobody took it up"
    # of a plan only
    TO_RUN = "to run"
    FAILED_BEFORE = "failed before"
    CANNOT_RUN = "cannot run"


FINISHED = (State.REUSED, State.COMPUTED, State.FORCED)
"""States of cells with a record."""

FOLDER = "sweeps"
ANNOUNCEMENT = "sweep.json"
VARIABLE = "Q2N_SWEEP"
"""Environment variable by which a cell's process learns which sweep it belongs to."""

KEPT = 20
"""Sweeps whose notes are kept."""


def now() -> str:
    """The time in UTC to the millisecond, ISO 8601: sorts as text."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Note(Frozen):
    """Decision about one cell. ``reason`` says why there is no record; ``exit_code`` is that of a
    command for just it."""

    ref: CellRef
    decision: State
    reason: str = ""
    exit_code: int = 0
    host: str = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    created: str = Field(default_factory=now)


class AnnouncedCell(Frozen):
    """A cell that a command asked for."""

    key: str
    label: str
    name: str


class Sweep(Frozen):
    """A command. ``cells`` is empty where a sweeper decides on them as it goes; ``alone``: a single cell."""

    id: str
    created: str = Field(default_factory=now)
    alone: bool
    cells: tuple[AnnouncedCell, ...] = ()


def new_id() -> str:
    """``20260105T101500Z-node3-4711``: no two commands have the same."""
    host = re.sub(r"[^A-Za-z0-9]+", "-", socket.gethostname()).strip("-")
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{host}-{os.getpid()}"


def group_of(sweep: str) -> str:
    """Name of the sweep for trackers: its id without the machine's name, which is nobody's business there."""
    return "-".join((sweep.partition("-")[0], sweep.rpartition("-")[2]))


def announce(results_dir: str | Path, sweep: Sweep) -> None:
    """Write down what a command is about to run; the notes of long past sweeps go.

    Raises:
        StorageError: the folder cannot be written.
    """
    root = Path(results_dir) / FOLDER
    write_json_atomic(root / sweep.id / ANNOUNCEMENT, plain(sweep.model_dump()))
    for past in sorted(root.iterdir(), key=lambda folder: folder.name, reverse=True)[KEPT:]:
        shutil.rmtree(past, ignore_errors=True)


UNWRITTEN: dict[Path, Note] = {}
"""Notes for which there was no room, by where they belong: this process remembers them."""


def leave_note(results_dir: str | Path, sweep: str, note: Note) -> None:
    """Remember a decision; an earlier one on this cell is replaced. A note is not worth a finished cell: one
    that cannot be written is kept in :data:`UNWRITTEN`."""
    path = (Path(results_dir) / FOLDER / sweep / f"{note.ref.key}.json").absolute()
    try:
        write_json_atomic(path, plain(note.model_dump()))
        UNWRITTEN.pop(path, None)
    except OSError:
        UNWRITTEN[path] = note


def read_note(results_dir: str | Path, sweep: str, key: str) -> Note | None:
    """The note on one cell, if there is a readable one."""
    return _read((Path(results_dir) / FOLDER / sweep / f"{key}.json").absolute())


def read_notes(results_dir: str | Path, sweep: str | None = None) -> list[Note]:
    """Every readable note of a sweep, or of all that are remembered, in the order they were made."""
    root = (Path(results_dir) / FOLDER).absolute()
    folders = [root / sweep] if sweep else [*root.glob("*")]
    paths = {path for folder in folders for path in folder.glob("*.json") if path.name != ANNOUNCEMENT}
    paths |= {path for path in UNWRITTEN if path.parent in folders}
    notes = [note for path in paths if (note := _read(path))]
    return sorted(notes, key=lambda note: (note.created, note.ref.key))


def _read(path: Path) -> Note | None:
    if path in UNWRITTEN:
        return UNWRITTEN[path]
    with contextlib.suppress(OSError, ValidationError):  # a convenience, never a reason to stop
        return Note.model_validate_json(path.read_text(encoding="utf-8"))
    return None


def read_sweep(results_dir: str | Path, sweep: str) -> Sweep | None:
    """The sweep that was announced under an id, or None if it cannot be read."""
    try:
        path = Path(results_dir) / FOLDER / sweep / ANNOUNCEMENT
        return Sweep.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def last_sweep(results_dir: str | Path) -> Sweep | None:
    """The sweep that was started last, if any is known."""
    folders = (Path(results_dir) / FOLDER).glob(f"*/{ANNOUNCEMENT}")
    sweeps = [sweep for path in folders if (sweep := read_sweep(results_dir, path.parent.name))]
    return max(sweeps, key=lambda sweep: (sweep.created, sweep.id), default=None)
