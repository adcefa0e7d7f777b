"""Why a cell has no result: written where its record would be, read back, shown in the tables.

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
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from q2n.exceptions import Q2NError, RecordError
from q2n.files import write_json_atomic
from q2n.fingerprint import NEUTRAL_KEYS, plain
from q2n.fingerprint import fingerprint as digest
from q2n.record import FILE_NAME as RECORD_NAME
from q2n.record import read_versioned
from q2n.schema import Cell, Tree
from q2n.sweeps import now

if TYPE_CHECKING:
    from q2n.config import RunConfig

FILE_NAME = "failure.json"
LOG_NAME = "cell.log"
SCHEMA_VERSION = 1


class Failure(BaseModel):
    """A cell that was tried and has no record of that try.

    ``error_type`` is the exception's class, or ``Killed`` where the process ended without a word; ``stage``
    is what was being done; ``log`` is a path relative to the results folder; ``seconds`` is how long the try
    took; ``exit_code`` is that of a command for just this cell; ``unexpected`` errors are nobody's mistake in
    a configuration, and only their traceback explains them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = SCHEMA_VERSION
    fingerprint: str = Field(pattern=r"^[0-9a-f]{16}$")
    name: str
    created: str = Field(default_factory=now)
    label: str
    cell: Cell
    config: Tree
    overrides: tuple[str, ...] = ()
    identity: Tree
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

    @property
    def reason(self) -> str:
        """One line: ``NumericalError: ... (while block 3/30 mlp.down)``."""
        while_ = f" (while: {self.stage})" if self.stage else ""
        return f"{self.error_type}: {self.message}{while_}"


def relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration that says what is computed."""
    return {key: plain(value) for key, value in config.items() if key not in NEUTRAL_KEYS}


def partial_identity(config: RunConfig) -> dict[str, Any]:
    """What stands for a cell whose whole identity could not be found out (no weights, no text)."""
    return {"config": relevant(config.tree)}


def of_error(
    error: BaseException,
    config: RunConfig,
    identity: Mapping[str, Any],
    *,
    sweep: str | None,
    stage: str,
    seconds: float,
) -> Failure:
    """The failure of a cell that raised ``error``."""
    key = digest(identity)
    return Failure(
        fingerprint=key,
        name=config.scalars.name,
        label=config.label,
        cell=config.cell,
        config=config.tree,
        overrides=config.overrides,
        identity=dict(identity),
        error_type=type(error).__name__,
        message=str(error).strip() or type(error).__name__,
        traceback="".join(traceback.format_exception(error)),
        stage=stage,
        log=f"{config.scalars.name}/{key}/{LOG_NAME}",
        seconds=seconds,
        sweep=sweep,
        exit_code=error.exit_code if isinstance(error, Q2NError) else 1,
        unexpected=not isinstance(error, Q2NError),
    )


def folder_of(results_dir: str | Path, name: str, fingerprint: str) -> Path:
    """Where everything about one cell is."""
    return Path(results_dir) / name / fingerprint


def save(failure: Failure, results_dir: str | Path) -> Path:
    """Write the failure atomically to its place; a finished record beside it is not touched.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder_of(results_dir, failure.name, failure.fingerprint) / FILE_NAME
    write_json_atomic(path, plain(failure.model_dump()))
    return path


def load(path: str | Path) -> Failure:
    """Read one failure.

    Raises:
        RecordError: no such file, not JSON, a schema of the future, or fields that do not fit; names it.
    """
    return read_versioned(path, Failure, SCHEMA_VERSION, "failure")


def find(results_dir: str | Path, name: str, fingerprint: str) -> Failure | None:
    """The last try's failure, or ``None`` if the cell was not tried or succeeded.

    Raises:
        RecordError: there is a file and it cannot be read.
    """
    path = folder_of(results_dir, name, fingerprint) / FILE_NAME
    return load(path) if path.exists() else None


def of_config(results_dir: str | Path, name: str, config: Mapping[str, Any]) -> list[Failure]:
    """Every failure of a configuration, oldest first, whatever code, data or libraries it was tried with."""
    wanted = relevant(config)
    failures, _ = read_all(results_dir, name)
    return [failure for failure in failures if relevant(failure.config) == wanted]


def clear(results_dir: str | Path, name: str, config: Mapping[str, Any]) -> None:
    """Forget the failures of a configuration that now has a record."""
    for failure in of_config(results_dir, name, config):
        folder = folder_of(results_dir, name, failure.fingerprint)
        (folder / FILE_NAME).unlink(missing_ok=True)
        if not (folder / RECORD_NAME).exists():  # of other code: nothing there is of use any more
            (folder / LOG_NAME).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty after all
                folder.rmdir()


def read_all(results_dir: str | Path, name: str | None = None) -> tuple[list[Failure], list[str]]:
    """All failures (of one experiment) by name and time, and one sentence an unreadable file."""
    pattern = f"{name or '*'}/*/{FILE_NAME}"
    failures: list[Failure] = []
    faults: list[str] = []
    for path in sorted(Path(results_dir).glob(pattern)):
        try:
            failures.append(load(path))
        except RecordError as error:
            faults.append(str(error))
    failures.sort(key=lambda failure: (failure.name, failure.created, failure.fingerprint))
    return failures, faults
