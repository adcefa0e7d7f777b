"""Outcome of one cell of a command."""

from __future__ import annotations

from dataclasses import dataclass

from q2n.records.failure import Failure
from q2n.records.notes import State
from q2n.records.schema import CellRef, RunRecord


@dataclass(frozen=True)
class Outcome:
    """Outcome of one cell.

    ``failure`` is the failure of the last try, if it did not succeed; ``reason`` explains why there is no
    record.
    """

    ref: CellRef
    decision: State
    results_dir: str
    record: RunRecord | None = None
    failure: Failure | None = None
    reason: str = ""
    exit_code: int = 0

    @property
    def why(self) -> str:
        """Reason why there is no record; empty if there is one."""
        return self.reason or (self.failure.reason if self.failure else "")
