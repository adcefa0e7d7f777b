"""``diagnostics=none``, and what a group of measures is."""

from __future__ import annotations

from typing import ClassVar, Protocol

from q2n.options import option
from q2n.types import LinearProblem, NullSpaceReport, Solution, Statistic


class Diagnostics(Protocol):
    """Measures of solved layers that go into the record and change nothing."""

    @property
    def requires(self) -> frozenset[Statistic]: ...

    @property
    def heldout(self) -> int:
        """Held-out sequences it asks for; 0: it looks at them where there are some."""
        ...

    def measure(self, problem: LinearProblem, solution: Solution) -> list[NullSpaceReport | None]:
        """One entry a layer of the problem."""
        ...


@option
class NoDiagnostics:
    """Measures nothing beside the layers' errors."""

    requires: ClassVar[frozenset[Statistic]] = frozenset()
    heldout: ClassVar[int] = 0

    def measure(self, problem: LinearProblem, solution: Solution) -> list[NullSpaceReport | None]:
        return [None] * len(problem.names)
