"""What an option of the config group ``tracking`` can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from q2n.records.store import RunRecord


class Tracking(Protocol):
    def log_run(self, record: RunRecord, sweep_group: str | None = None) -> str | None:
        """Log a finished cell whose record is saved; where to, or None. Never raises."""
        ...

    def log_sweep(self, records: Sequence[RunRecord], sweep_group: str) -> str | None:
        """Log what a sweep came to, once, when all its cells have ended; where to, or None. Never raises.

        Args:
            records: of the cells that finished or were reused, whichever process ran them.
            sweep_group: the sweep's identifier, as :meth:`log_run` was given it.
        """
        ...
