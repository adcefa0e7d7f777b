"""No experiment tracker: the only output is the records below the results folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from q2n.options import option

if TYPE_CHECKING:
    from q2n.records.store import RunRecord


@option
class NoTracking:
    """Tracks nothing."""

    def log_run(self, record: RunRecord, sweep_group: str | None = None) -> str | None:
        """Log nothing and return None."""
        del record, sweep_group
        return None

    def log_sweep(self, records: Sequence[RunRecord], sweep_group: str) -> str | None:
        """Log nothing and return None."""
        del records, sweep_group
        return None
