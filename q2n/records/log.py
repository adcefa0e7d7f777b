"""Log file of a cell: its steps, its warnings, and its end.

A progress bar is of no use on an unattended machine, and the last line of the log is all that is known of a
cell that was killed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import socket
import sys
import time
from io import TextIOWrapper
from pathlib import Path

from q2n.runtime.progress import LOGGER as PROGRESS

_LOG = logging.getLogger(__name__)
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class CellLog:
    """Context manager that appends the log of the package and its libraries to ``path``.

    ``stage`` is the last step that began. Warnings go to standard error as well, unless logging is configured
    otherwise. A log that cannot be written is reported once, and the cell continues without it.
    """

    def __init__(self, path: Path, label: str) -> None:
        self._path = path
        self._label = label
        self._began = time.perf_counter()
        self._handlers: list[logging.Handler] = []
        self._level = logging.NOTSET
        self.stage = ""

    @property
    def seconds(self) -> float:
        """Seconds since the cell began."""
        return time.perf_counter() - self._began

    def __enter__(self) -> CellLog:
        self._began = time.perf_counter()
        self._handlers = [_StageHandler(self, self._path)]
        root, package = logging.getLogger(), logging.getLogger("q2n")
        if (
            not root.handlers
        ):  # without a handler logging prints warnings itself; with the one above it would not
            to_terminal = logging.StreamHandler()
            to_terminal.setLevel(logging.WARNING)
            self._handlers.append(to_terminal)
        for handler in self._handlers:
            root.addHandler(handler)
        self._level = package.level
        package.setLevel(logging.INFO)
        logging.captureWarnings(True)
        _LOG.info(
            "%s: begun by process %d on %s, Python %s",
            self._label,
            os.getpid(),
            socket.gethostname(),
            platform.python_version(),
        )
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            _LOG.info("%s: finished after %.1f s", self._label, self.seconds)
        else:
            # Not for the terminal, where the command prints the error once, at its end.
            _LOG.info("%s: ended after %.1f s", self._label, self.seconds, exc_info=error)
        logging.captureWarnings(False)
        logging.getLogger("q2n").setLevel(self._level)
        for handler in self._handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()


class _StageHandler(logging.FileHandler):
    """Writes to the cell's file, as long as that is possible, and keeps the step that began last."""

    def __init__(self, log: CellLog, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self.setFormatter(logging.Formatter(_FORMAT))
        self._log = log
        self._usable = True

    def emit(self, record: logging.LogRecord) -> None:
        """Write ``record``, and keep its text as the stage if it is a step of the progress."""
        if record.name == PROGRESS.name:
            self._log.stage = record.getMessage()
        if self._usable:
            try:
                super().emit(record)
            except OSError:  # of opening the file
                self.handleError(record)

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Stop writing, with one message, after an error of the file; leave others to logging."""
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._usable = False
        with contextlib.suppress(OSError):  # what could not be written before cannot be written now
            self.close()
        print(f"the log cannot be written any more: {error.strerror}: {self.baseFilename}", file=sys.stderr)
