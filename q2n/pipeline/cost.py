"""Cost of a cell: wall time per stage and peak memory, over all processes that worked on it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from q2n.records import provenance
from q2n.runtime.clock import WorkClock


@dataclass(frozen=True)
class Cost:
    """Cost of a cell.

    Attributes:
        seconds: wall time per stage, in seconds.
        work_seconds: wall time of the stage ``quantize`` by kind of work (:mod:`q2n.runtime.clock`).
        peak_memory_bytes: peak memory of the host.
        peak_device_memory_bytes: peak memory of the device, or None if none was used.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    work_seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int = 0
    peak_device_memory_bytes: int | None = None

    def plus(self, other: Cost) -> Cost:
        """Return the cost of both, one after the other: times add up, peaks are the larger one."""
        peaks = [
            it for it in (self.peak_device_memory_bytes, other.peak_device_memory_bytes) if it is not None
        ]
        return Cost(
            _sum(self.seconds, other.seconds),
            _sum(self.work_seconds, other.work_seconds),
            max(self.peak_memory_bytes, other.peak_memory_bytes),
            max(peaks, default=None),
        )


def _sum(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in dict.fromkeys([*one, *other])}


class Expense:
    """Measurement of a cell's cost, from its creation; ``earlier`` is the cost of former processes."""

    def __init__(self) -> None:
        provenance.reset_peak_memory()
        self.earlier = Cost()
        self.work = WorkClock()
        self._seconds: dict[str, float] = {}
        self._running: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the wall time of the stage ``name``."""
        self._running[name] = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - self._running.pop(name)
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    @property
    def total(self) -> Cost:
        """Cost so far, including stages that still run."""
        now = time.perf_counter()
        running = Cost({name: now - began for name, began in self._running.items()})
        memory = (provenance.peak_memory_bytes(), provenance.peak_device_memory_bytes())
        return self.earlier.plus(Cost(self._seconds, self.work.seconds, *memory)).plus(running)

    def note(self) -> Mapping[str, Any]:
        """Return :attr:`total` as a JSON tree with the fields of :class:`Cost`."""
        return asdict(self.total)
