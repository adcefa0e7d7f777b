"""What an option of the config group ``tracking`` can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from q2n.record import RunRecord


class Tracking(Protocol):
    def log_run(self, record: RunRecord, sweep_group: str | None = None) -> str | None:
        """Log a finished cell whose record is saved; where to, or None. Never raises."""
        ...
