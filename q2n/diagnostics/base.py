"""Protocol of diagnostics, and ``diagnostics=none``."""

from __future__ import annotations

from typing import ClassVar, Protocol

from q2n.options import option
from q2n.types import LinearProblem, NullSpaceReport, Solution, Statistic


class Diagnostics(Protocol):
    """Measures of quantized layers for the record; they change nothing."""

    @property
    def requires(self) -> frozenset[Statistic]:
        """Statistics that :meth:`measure` needs."""
        ...

    @property
    def heldout(self) -> int:
        """Number of held-out sequences to request; with 0, those of other settings are still used."""
        ...

    def measure(self, problem: LinearProblem, solution: Solution) -> list[NullSpaceReport | None]:
        """Return one report per layer of the problem, or None where nothing is measured."""
        ...


@option
class NoDiagnostics:
    """Measures nothing in addition to the output errors, which the record always contains."""

    requires: ClassVar[frozenset[Statistic]] = frozenset()
    heldout: ClassVar[int] = 0

    def measure(self, problem: LinearProblem, solution: Solution) -> list[NullSpaceReport | None]:
        """Return None per layer."""
        return [None] * len(problem.names)
