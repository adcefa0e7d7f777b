"""Values of a record per layer, and per window or item of its metrics: ``layers.parquet``.

A row of the table is either a layer of the model or a window (item) of a metric: ``metric`` is the position
of the metric in the record, null in the rows of layers. A layer's measures of the null space are the columns
``null_space.*``, a method's own numbers ``extra.*``. A column that would be null in all rows is left out.
Windows are in their order. Numbers are exact, so that tables come out the same; times of layers are rounded
to a microsecond.
"""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from q2n.exceptions import RecordError
from q2n.records.schema import LAYER_TIMES

if TYPE_CHECKING:
    import pyarrow as pa

    from q2n.records.schema import RunRecord

FILE_NAME = "layers.parquet"

WINDOW_COLUMNS = {
    "per_window": "value",
    "per_item": "right",
    "weights": "weight",
    "reference_per_window": "reference",
    "reference_per_item": "reference_right",
}
"""Column of each field of a :class:`~q2n.records.schema.Metric` that has a value per window or item."""

_NESTED = ("null_space", "extra")
_MICROSECONDS = {name: name.replace("seconds", "microseconds") for name in LAYER_TIMES}
_SECONDS = {micro: name for name, micro in _MICROSECONDS.items()}

ValueRow = dict[str, Any]
"""Values by column."""


def layer_rows(record: RunRecord) -> list[ValueRow]:
    """Return one row per layer."""
    return [_flat(layer) for layer in record.model_dump(include={"layers"})["layers"]]


def window_rows(record: RunRecord) -> list[ValueRow]:
    """Return one row per metric and window or item."""
    rows: list[ValueRow] = []
    for place, metric in enumerate(record.metrics):
        found = {column: _values(getattr(metric, name)) for name, column in WINDOW_COLUMNS.items()}
        for window, values in enumerate(zip_longest(*found.values())):
            rows.append({"metric": place, "window": window, **dict(zip(found, values, strict=True))})
    return rows


def pack(record: RunRecord) -> bytes:
    """Return the file's bytes, which are the same for equal values and one version of Arrow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [*map(_packed, layer_rows(record)), *window_rows(record)]
    names = dict.fromkeys(name for row in rows for name in row if name != "window")  # windows are in order
    columns = {name: pa.array([row.get(name) for row in rows]) for name in names}
    table = pa.table({name: column for name, column in columns.items() if column.null_count < len(column)})
    stream = io.BytesIO()
    pq.write_table(
        table,
        stream,
        compression="zstd",
        compression_level=19,
        # most numbers never repeat: dictionaries and statistics of them would only take room
        use_dictionary=False,
        use_byte_stream_split=[name for name in table.column_names if _is_noise(table[name])],
        write_statistics=False,
        store_schema=False,
    )
    return stream.getvalue()


def unpack(data: bytes) -> tuple[list[ValueRow], dict[int, ValueRow]]:
    """Return the fields of the layers, and by position of a metric its fields per window.

    Raises:
        RecordError: the bytes are no such table.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).to_pylist()
    except pa.ArrowException as error:
        raise RecordError(f"{FILE_NAME} cannot be read: {error}") from None
    layers: list[ValueRow] = []
    windows: dict[int, list[ValueRow]] = defaultdict(list)
    for row in rows:
        if (place := row.pop("metric", None)) is None:
            layers.append(_layer(row))
        else:
            windows[place].append(row)
    return layers, {place: _metric(found) for place, found in windows.items()}


def _packed(row: ValueRow) -> ValueRow:
    """Return a layer's row with its times as whole microseconds, as :mod:`q2n.records.schema` rounds them."""
    return {
        _MICROSECONDS.get(name, name): round(value * 1e6) if name in _MICROSECONDS else value
        for name, value in row.items()
    }


def _flat(layer: Mapping[str, Any]) -> ValueRow:
    nested = {f"{name}.{key}": value for name in _NESTED for key, value in (layer[name] or {}).items()}
    return {**{key: value for key, value in layer.items() if key not in _NESTED}, **nested}


def _layer(row: ValueRow) -> ValueRow:
    fields: ValueRow = {}
    for name, value in row.items():
        group, _, key = name.partition(".")
        if value is None:
            continue
        if group in _NESTED:
            fields.setdefault(group, {})[key] = value
        elif name in _SECONDS:
            fields[_SECONDS[name]] = value / 1e6
        else:
            fields[name] = value
    return fields


def _values(field: str | Sequence[float]) -> Sequence[Any]:
    return [mark == "1" for mark in field] if isinstance(field, str) else field


def _metric(rows: Sequence[ValueRow]) -> ValueRow:
    found: ValueRow = {}
    for name, column in WINDOW_COLUMNS.items():
        values = [row[column] for row in rows if row.get(column) is not None]
        found[name] = "".join("01"[value] for value in values) if name.endswith("per_item") else values
    return found


def _is_noise(column: pa.ChunkedArray) -> bool:
    """Tell whether most numbers occur only once, so that only their exponents compress."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return False
    known = len(column) - column.null_count
    return bool(pc.count_distinct(column).as_py() > known / 2)
