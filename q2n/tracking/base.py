"""The interface of the options in the config group ``tracking``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from q2n.records.store import RunRecord


class Tracking(Protocol):
    """An experiment tracker. Its methods never raise: a failed copy must not lose a result."""

    def log_run(self, record: RunRecord, sweep_group: str | None = None) -> str | None:
        """Log a finished cell whose record is already saved.

        Args:
            record: the record of the cell.
            sweep_group: identifier of the sweep the cell belongs to, or None if there is none.

        Returns:
            Address or folder of the logged run, or None if nothing was logged.
        """
        ...

    def log_sweep(self, records: Sequence[RunRecord], sweep_group: str) -> str | None:
        """Log the results of a sweep once, after all its cells have ended.

        Args:
            records: records of the cells that finished or were reused, whichever process ran the cells.
            sweep_group: identifier of the sweep, the same as in :meth:`log_run`.

        Returns:
            Address or folder of the logged run, or None if nothing was logged.
        """
        ...
