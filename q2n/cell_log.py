"""The log file of a cell: what it was about to do, warnings, and how it ended.

A progress bar is of no use on a machine nobody watches, and of a cell that was killed the last line of its
log is all there is.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
from pathlib import Path
from types import TracebackType

from q2n.progress import LOGGER as PROGRESS

_LOG = logging.getLogger(__name__)
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class CellLog:
    """A context manager: inside, what the package and its libraries log is appended to ``path``.

    ``stage`` is the last step that began. A warning goes to standard error as well, unless logging is set up
    to do something else.
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
        """Since the cell began."""
        return time.perf_counter() - self._began

    def __enter__(self) -> CellLog:
        self._began = time.perf_counter()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        to_file = _StageHandler(self, self._path)
        self._handlers = [to_file]
        root, package = logging.getLogger(), logging.getLogger("q2n")
        if not root.handlers:  # or else the first handler would silence what is printed without any
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            _LOG.info("%s: finished after %.1f s", self._label, self.seconds)
        else:
            # Not for the terminal, where the command says it once, in the end.
            _LOG.info("%s: ended after %.1f s", self._label, self.seconds, exc_info=error)
        logging.captureWarnings(False)
        logging.getLogger("q2n").setLevel(self._level)
        for handler in self._handlers:
            logging.getLogger().removeHandler(handler)
            handler.close()


class _StageHandler(logging.FileHandler):
    """Writes to the cell's file and remembers the step that began last."""

    def __init__(self, log: CellLog, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter(_FORMAT))
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == PROGRESS.name:
            self._log.stage = record.getMessage()
        super().emit(record)
