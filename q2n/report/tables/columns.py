"""The columns of a table: bits x what was measured, by which protocol. Two protocols, two columns."""

from __future__ import annotations

from dataclasses import dataclass

from q2n.records.schema import AnyProtocol, Metric


@dataclass(frozen=True)
class Column:
    """One column. Equality of all fields decides what may stand in it; ``protocol`` is ``None`` only for
    what no evaluation measured (bits per weight)."""

    bits: int | float
    name: str
    dataset: str
    unit: str
    count: int
    count_unit: str
    lower_is_better: bool
    protocol: AnyProtocol | None

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Labels of the column in a pandas MultiIndex: bits, metric, unit, protocol."""
        protocol = "" if self.protocol is None else f"{self.protocol.label()} #{self.protocol.key()}"
        return (f"{self.bits} bit", f"{self.dataset} {self.name}".strip(), self.unit, protocol)

    def header(self, ambiguous: bool) -> tuple[str, ...]:
        """Lines of the printed header below the bits: metric and direction, unit, windows, protocol.

        Args:
            ambiguous: whether another column prints the same lines; then the protocol's digest tells
                them apart (the texts or the tokenizers differ).
        """
        if self.protocol is None:
            return ("bits per", "weight", self.unit)
        arrow = "↓" if self.lower_is_better else "↑"
        windows, *rest = self.protocol.parts()
        counted: tuple[str, ...] = (f"{self.count} {self.count_unit}", "x " + windows.partition(" x ")[2])
        if windows == f"{self.count} {self.count_unit}":
            counted = (windows,)
        elif (self.count, self.count_unit) != (self.protocol.windows, "windows"):
            counted = (f"{self.count} {self.count_unit}", windows)
        digest = (f"#{self.protocol.key()}",) if ambiguous else ()
        return (f"{self.dataset} {self.name} {arrow}", self.unit, *counted, *rest, *digest)


def column_of(metric: Metric, bits: int | float) -> Column:
    """The column a metric of a cell belongs to."""
    return Column(
        bits=bits,
        name=metric.name,
        dataset=metric.dataset,
        unit=metric.unit,
        count=metric.count,
        count_unit=metric.count_unit,
        lower_is_better=metric.lower_is_better,
        protocol=metric.protocol,
    )


def storage_column(bits: int | float) -> Column:
    """The column of the average bits a quantized weight really needs."""
    return Column(bits, "bits/weight", "", "mean", 0, "", True, None)
