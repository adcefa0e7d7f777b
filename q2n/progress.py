"""What a person sees while a cell runs: one bar with block, stage and time left, on standard error."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class CellProgress:
    """A context manager around one bar that is reused for each phase of a cell."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[stage]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._bar.add_task(title, total=1.0, stage="")

    def __enter__(self) -> CellProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, phase: str) -> None:
        """A new phase (``quantizing``): the bar starts again."""
        self._bar.reset(self._task, description=self._title, total=1.0, stage=phase)

    def advance(self, fraction: float, stage: str) -> None:
        """``fraction`` of the phase is done; ``stage`` is what comes now."""
        self._bar.update(self._task, completed=fraction, stage=stage)
