"""Failures, why cells have no result: written where a record would be, read back, shown in the tables.

``<results_dir>/<name>/<fingerprint>/failure.json`` says what went wrong the last time the cell was tried;
a later success removes it. ``cell.log`` beside it is what the cell said while it ran.
"""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from q2n.exceptions import Q2NError
from q2n.records.fingerprint import plain, relevant
from q2n.records.notes import now
from q2n.records.schema import CellRef, Frozen
from q2n.records.store import FILE_NAME as RECORD_NAME
from q2n.records.store import read_each, read_versioned
from q2n.runtime.files import write_json_atomic

FILE_NAME = "failure.json"
LOG_NAME = "cell.log"
SCHEMA_VERSION = 2


class Failure(Frozen):
    """A cell that was tried and has no record of that try.

    ``error_type`` is the exception's class, or ``Killed`` where the process ended without a word; ``stage``
    is what was being done; ``log`` is a path relative to the results folder; ``seconds`` is how long the try
    took; ``exit_code`` is that of a command for just this cell; ``unexpected`` errors are nobody's mistake in
    a configuration, and only their traceback explains them.
    """

    schema_version: int = SCHEMA_VERSION
    ref: CellRef
    created: str = Field(default_factory=now)
    overrides: tuple[str, ...] = ()
    error_type: str
    message: str
    traceback: str = ""
    stage: str = ""
    log: str = ""
    seconds: float | None = None
    host: str = Field(default_factory=socket.gethostname)
    pid: int = Field(default_factory=os.getpid)
    sweep: str | None = None
    exit_code: int = 1
    unexpected: bool = False

    @model_validator(mode="before")
    @classmethod
    def _of_version_1(cls, fields: Any) -> Any:
        """Its description of the cell was among the other fields."""
        if not isinstance(fields, Mapping) or "ref" in fields:
            return fields
        own = {"name", "label", "cell", "config", "identity", "fingerprint"}
        ref = {
            "axes" if key == "cell" else "configuration" if key == "config" else key: fields[key]
            for key in own & fields.keys() - {"fingerprint"}
        }
        return {**{key: value for key, value in fields.items() if key not in own}, "ref": ref}

    @property
    def reason(self) -> str:
        """One line: ``NumericalError: ... (while block 3/30 mlp.down)``."""
        while_ = f" (while: {self.stage})" if self.stage else ""
        return f"{self.error_type}: {self.message}{while_}"


def of_error(
    error: BaseException,
    ref: CellRef,
    *,
    overrides: tuple[str, ...],
    sweep: str | None,
    stage: str,
    seconds: float,
) -> Failure:
    """The failure of a cell that raised ``error``."""
    return Failure(
        ref=ref,
        overrides=overrides,
        error_type=type(error).__name__,
        message=str(error).strip() or type(error).__name__,
        traceback="".join(traceback.format_exception(error)),
        stage=stage,
        log=log_of(ref),
        seconds=seconds,
        sweep=sweep,
        exit_code=error.exit_code if isinstance(error, Q2NError) else 1,
        unexpected=not isinstance(error, Q2NError),
    )


def folder_of(results_dir: str | Path, ref: CellRef) -> Path:
    """The folder of everything about one cell."""
    return Path(results_dir) / ref.name / ref.fingerprint


def log_of(ref: CellRef) -> str:
    """Path of a cell's log, relative to the results folder."""
    return f"{ref.name}/{ref.fingerprint}/{LOG_NAME}"


def save(failure: Failure, results_dir: str | Path) -> Path:
    """Write the failure atomically to its place; a finished record beside it is not touched.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder_of(results_dir, failure.ref) / FILE_NAME
    write_json_atomic(path, plain(failure.model_dump()))
    return path


def load(path: str | Path) -> Failure:
    """Read one failure.

    Raises:
        RecordError: no such file, not JSON, a schema of the future, or fields that do not fit; names it.
    """
    return read_versioned(path, Failure, SCHEMA_VERSION, "failure")


def find(results_dir: str | Path, ref: CellRef) -> Failure | None:
    """The last try's failure, or ``None`` if the cell was not tried or succeeded.

    Raises:
        RecordError: there is a file and it cannot be read.
    """
    path = folder_of(results_dir, ref) / FILE_NAME
    return load(path) if path.exists() else None


def of_config(results_dir: str | Path, ref: CellRef) -> list[Failure]:
    """Every failure of a configuration, oldest first, whatever code, data or libraries it was tried with."""
    wanted = relevant(ref.configuration)
    failures, _ = read_all(results_dir, ref.name)
    return [failure for failure in failures if relevant(failure.ref.configuration) == wanted]


def clear(results_dir: str | Path, ref: CellRef) -> None:
    """Forget the failures of a configuration that now has a record."""
    for failure in of_config(results_dir, ref):
        folder = folder_of(results_dir, failure.ref)
        (folder / FILE_NAME).unlink(missing_ok=True)
        if not (folder / RECORD_NAME).exists():  # of other code: nothing there is of use any more
            (folder / LOG_NAME).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty after all
                folder.rmdir()


def read_all(results_dir: str | Path, name: str | None = None) -> tuple[list[Failure], list[str]]:
    """All failures (of one experiment) by name and time, and one sentence per unreadable file."""
    failures, faults = read_each(results_dir, name, FILE_NAME, load)
    return sorted(failures, key=lambda it: (it.ref.name, it.created, it.ref.fingerprint)), faults
