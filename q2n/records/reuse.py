"""What a cell found ready made, for its record."""

from __future__ import annotations

from q2n.records.schema import Reuse


class Ledger:
    """What was found of each stage."""

    def __init__(self) -> None:
        self._stages: dict[str, Reuse] = {}

    def note(self, stage: str, key: str, found: bool, seconds: float = 0.0) -> None:
        """One part of ``stage`` was ``found``, which saved ``seconds``, or had to be made."""
        known = self._stages.get(stage, Reuse(key=key, parts=0, found=0, saved_seconds=0.0))
        self._stages[stage] = Reuse(
            key=key,
            parts=known.parts + 1,
            found=known.found + found,
            saved_seconds=known.saved_seconds + (seconds if found else 0.0),
        )

    @property
    def reused(self) -> dict[str, Reuse]:
        """Stages of which anything was found."""
        return {stage: tally for stage, tally in self._stages.items() if tally.found}
