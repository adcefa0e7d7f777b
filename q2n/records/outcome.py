"""What became of one cell of a command."""

from __future__ import annotations

from dataclasses import dataclass

from q2n.records.failure import Failure
from q2n.records.notes import State
from q2n.records.schema import CellRef, RunRecord


@dataclass(frozen=True)
class Outcome:
    """One cell. ``failure`` is what was left of the last try where that one did not succeed; ``reason`` is
    why there is no record."""

    ref: CellRef
    decision: State
    results_dir: str
    record: RunRecord | None = None
    failure: Failure | None = None
    reason: str = ""
    exit_code: int = 0

    @property
    def why(self) -> str:
        """Why there is no record."""
        return self.reason or (self.failure.reason if self.failure else "")
