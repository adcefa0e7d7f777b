"""Numbers of the paper beside ours: read from a file a user fills, never known by heart."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from q2n.exceptions import ConfigurationError
from q2n.options import construct, did_you_mean
from q2n.records.fingerprint import plain
from q2n.records.store import RunRecord
from q2n.report.studies.yaml_file import named, read_mapping
from q2n.report.tables.lines import Row
from q2n.report.tables.models import own_name
from q2n.report.tables.settings import values_by_key
from q2n.report.tables.table import Table

FILE = "published.yaml"

_Text = Annotated[str, Field(min_length=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PublishedRow(_Frozen):
    """The line of our tables it belongs to."""

    model: _Text
    baseline: _Text
    q2n: _Text


class PublishedColumn(_Frozen):
    """The column of our tables it belongs to."""

    bits: int | float
    metric: _Text
    dataset: str


class PublishedValue(_Frozen):
    """One published number. ``protocol`` has what is said of how it was measured, by field of our protocols
    or by dotted configuration key; ``table`` and ``note`` are for the reader."""

    study: _Text
    table: _Text
    row: PublishedRow
    column: PublishedColumn
    value: float = Field(allow_inf_nan=False)
    protocol: dict[str, Any] = Field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Beside:
    """A published number and one of ours. ``measured`` is None where no cell has its place; ``differs`` says
    in what the protocols differ (empty: comparable), ``cells`` are the fingerprints of our records."""

    published: PublishedValue
    row: Row | None = None
    measured: float | None = None
    differs: tuple[str, ...] = ()
    cells: tuple[str, ...] = ()

    @property
    def difference(self) -> float | None:
        """Measured minus published; None where the two may not be compared."""
        if self.measured is None or self.differs:
            return None
        return self.measured - self.published.value

    @property
    def remark(self) -> str:
        """What a reader must know of the comparison."""
        if self.measured is None:
            return "not measured here"
        return f"not comparable: {'; '.join(self.differs)}" if self.differs else ""


def load_published(folder: Path, studies: Collection[str] | None = None) -> tuple[PublishedValue, ...]:
    """The numbers in ``published.yaml`` of the folder of experiments; none where there is no such file.

    Args:
        studies: names a number may belong to; None: any.

    Raises:
        ConfigurationError: an entry is not as it should be; names file, key, rule and alternatives.
    """
    path = folder / FILE
    if not path.exists():
        return ()
    fields = read_mapping(path)
    with named(path):
        if set(fields) != {"values"} or not isinstance(fields["values"], list):
            raise ConfigurationError("must have the one key 'values', with a list (empty: values: [])")
        found = tuple(_entry(entry, f"values.{place}") for place, entry in enumerate(fields["values"]))
        for place, value in enumerate(found):
            if studies is not None and value.study not in studies:
                hint = did_you_mean(value.study, studies)
                raise ConfigurationError(
                    f"values.{place}.study={value.study!r}: there is no such study{hint}"
                )
    return found


def _entry(entry: Any, key: str) -> PublishedValue:
    if not isinstance(entry, dict):
        raise ConfigurationError(
            f"{key}={entry!r}: must have keys (study, table, row, column, value, protocol)"
        )
    fields = dict(entry)
    for part, cls in (("row", PublishedRow), ("column", PublishedColumn)):
        if isinstance(fields.get(part), dict):
            fields[part] = construct(cls, fields[part], f"{key}.{part}")
    return construct(PublishedValue, fields, key)


def beside(
    values: Sequence[PublishedValue], name: str, tables: Sequence[Table], records: Sequence[RunRecord]
) -> tuple[Beside, ...]:
    """Every published number of a study with each of our cells at its place, in the file's order."""
    by_fingerprint = {record.fingerprint: record for record in records}
    lines: list[Beside] = []
    for value in values:
        if value.study == name:
            lines += _of_value(value, tables, by_fingerprint) or [Beside(value)]
    return tuple(lines)


def _of_value(
    value: PublishedValue, tables: Sequence[Table], records: Mapping[str, RunRecord]
) -> list[Beside]:
    found = []
    for table in tables:
        mean = table.mean.to_numpy()
        for (i, j), (cells, _) in table.sources.items():
            row, column = table.rows[i], table.columns[j]
            if row.kind != "value" or not cells or column.protocol is None:
                continue
            first = records[next(iter(cells.values()))]
            place = (row.baseline, row.correction, column.bits, column.name, column.dataset)
            if (own_name(first), *place) != _place(value):
                continue
            differs = _differs(value.protocol, column.protocol.model_dump(), values_by_key(first))
            found.append(Beside(value, row, float(mean[i, j]), differs, tuple(cells.values())))
    return found


def _place(value: PublishedValue) -> tuple[Any, ...]:
    row, column = value.row, value.column
    return (row.model, row.baseline, row.q2n, column.bits, column.metric, column.dataset)


def _differs(
    said: Mapping[str, Any], protocol: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[str, ...]:
    """``seqlen is 512 here, 2048 there``, one a field."""
    ours = {**config, **protocol}
    return tuple(
        f"{key} is {ours[key]} here, {theirs} there" if key in ours else f"{key} is not known here"
        for key, theirs in said.items()
        if key not in ours or not _same(plain(ours[key]), plain(theirs))
    )


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, (int, float)) and isinstance(theirs, (int, float)):
        return math.isclose(ours, theirs, rel_tol=1e-12)
    return bool(ours == theirs)
