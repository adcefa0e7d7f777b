"""What became of each cell of this command, and how that is shown at the end."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from q2n.exceptions import Q2NError, UnsupportedError

if TYPE_CHECKING:
    from q2n.config import RunConfig
    from q2n.schema import RunRecord

Decision = Literal["computed", "reused", "forced", "failed", "unsupported"]


@dataclass(frozen=True)
class Outcome:
    """One cell. ``error`` is set exactly when there is no record."""

    label: str
    decision: Decision
    record: RunRecord | None
    results_dir: str
    error: Exception | None = None

    @property
    def reason(self) -> str:
        if isinstance(self.error, Q2NError):
            return f"{type(self.error).__name__}: {self.error}"
        return "".join(traceback.format_exception(self.error)).strip() if self.error else ""


class OutcomeLog:
    """Collects outcomes as the cells of one command finish."""

    def __init__(self) -> None:
        self._outcomes: list[Outcome] = []
        self._expected = 0

    def expect(self, cells: int) -> None:
        self._expected = cells

    def title(self, config: RunConfig) -> str:
        """``[2/4] smollm2_135m gptq q2n=on 3 bit``."""
        return f"[{len(self._outcomes) + 1}/{max(self._expected, 1)}] {config.label}"

    def add(self, outcome: Outcome) -> None:
        self._outcomes.append(outcome)

    def close(self) -> int:
        """Show everything and return the exit code: 1 if a cell failed (an unsupported one is no failure)."""
        self.show()
        return int(any(outcome.decision == "failed" for outcome in self._outcomes))

    def show(self) -> None:
        """The table of all cells with a record, the reasons of those without, and what was written."""
        if not self._outcomes:
            return
        from rich.console import Console

        from q2n.report.render import print_report, write_report

        console = Console()
        records = [outcome.record for outcome in self._outcomes if outcome.record is not None]
        if records:
            print_report(records, console)
        for outcome in self._outcomes:
            if outcome.error is not None:
                kind = "not valid" if isinstance(outcome.error, UnsupportedError) else "FAILED"
                console.print(f"{kind}: {outcome.label}: {outcome.reason}", markup=False, highlight=False)
        self._say_reuse(console.print)
        for folder, name in sorted({(item.results_dir, item.record.name) for item in self._outcomes if item.record}):
            from q2n.record import load_all

            written = write_report(load_all(folder, name), folder, name)
            console.print(f"records  {Path(folder) / name}", highlight=False)
            console.print(f"tables   {', '.join(str(path) for path in written)}", highlight=False)
        self._outcomes.clear()

    def _say_reuse(self, say: object) -> None:
        counts = {kind: sum(item.decision == kind for item in self._outcomes) for kind in ("computed", "forced", "reused")}
        parts = [f"{count} {kind}" for kind, count in counts.items() if count]
        if parts and callable(say):
            say(f"cells: {', '.join(parts)}" + (" (why: python -m q2n.explain last)" if counts["reused"] else ""))
