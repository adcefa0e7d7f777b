"""Failures, the reasons why cells have no result: written beside the record's place, shown in the tables.

``<results_dir>/<name>/<fingerprint>/failure.json`` describes the error of the last try; a later success
removes it. ``cell.log`` beside it is the log of the cell.
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
    """Cell whose last try left no record.

    ``error_type`` is the exception's class, or ``Killed`` if the process ended without one; ``stage`` is the
    step at which it happened; ``log`` is a path relative to the results folder; ``seconds`` is the time of
    the try; ``exit_code`` belongs to a command for just this cell; an ``unexpected`` error is no mistake in
    the configuration, and only its traceback explains it.
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
        """Move the description of the cell, in version 1 among the other fields, into ``ref``."""
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
        """Reason in one line: ``NumericalError: ... (while: block 3/30 mlp.down)``."""
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
    """Return the failure of a cell that raised ``error`` after ``seconds``, during ``stage``."""
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
    """Return the folder of everything about one cell."""
    return Path(results_dir) / ref.name / ref.fingerprint


def log_of(ref: CellRef) -> str:
    """Return the path of a cell's log, relative to the results folder."""
    return f"{ref.name}/{ref.fingerprint}/{LOG_NAME}"


def save(failure: Failure, results_dir: str | Path) -> Path:
    """Write the failure atomically and return its path; a finished record beside it is not touched.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder_of(results_dir, failure.ref) / FILE_NAME
    write_json_atomic(path, plain(failure.model_dump()))
    return path


def load(path: str | Path) -> Failure:
    """Read one failure.

    Raises:
        RecordError: the file is missing, is not JSON, or has a newer schema or wrong fields; names it.
    """
    return read_versioned(path, Failure, SCHEMA_VERSION, "failure")


def find(results_dir: str | Path, ref: CellRef) -> Failure | None:
    """Return the failure of the last try, or None if the cell was not tried or succeeded.

    Raises:
        RecordError: the file exists and cannot be read.
    """
    path = folder_of(results_dir, ref) / FILE_NAME
    return load(path) if path.exists() else None


def of_config(results_dir: str | Path, ref: CellRef) -> list[Failure]:
    """Return all failures of a configuration, oldest first, with any code, data and libraries."""
    wanted = relevant(ref.configuration)
    failures, _ = read_all(results_dir, ref.name)
    return [failure for failure in failures if relevant(failure.ref.configuration) == wanted]


def clear(results_dir: str | Path, ref: CellRef) -> None:
    """Delete the failures of a configuration that now has a record."""
    for failure in of_config(results_dir, ref):
        folder = folder_of(results_dir, failure.ref)
        (folder / FILE_NAME).unlink(missing_ok=True)
        if not (folder / RECORD_NAME).exists():  # a try with other code, whose log is of no use any more
            (folder / LOG_NAME).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty after all
                folder.rmdir()


def read_all(results_dir: str | Path, name: str | None = None) -> tuple[list[Failure], list[str]]:
    """Return all failures (of one experiment) by name and time, and one sentence per unreadable file."""
    failures, faults = read_each(results_dir, name, FILE_NAME, load)
    return sorted(failures, key=lambda it: (it.ref.name, it.created, it.ref.fingerprint)), faults
