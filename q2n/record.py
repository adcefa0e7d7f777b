"""The result of a cell and its provenance: written whole, read back exactly, queried as a table.

The record is the result: tables and figures are rendered from records, never from memory. One cell is
one file, ``<results_dir>/<name>/<fingerprint>/record.json``, strict JSON; a loss that is not finite is
written as ``"inf"``, ``"-inf"`` or ``"nan"`` and read back as that number. The objects themselves are
in :mod:`q2n.schema` and importable from here.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError

from q2n.exceptions import RecordError
from q2n.files import write_json_atomic
from q2n.fingerprint import plain
from q2n.provenance import Provenance
from q2n.schema import SCHEMA_VERSION, AnyProtocol, Cell, EvaluationProtocol, Metric, RunRecord, TaskProtocol

if TYPE_CHECKING:
    import pandas as pd

FILE_NAME = "record.json"

Versioned = TypeVar("Versioned", bound=BaseModel)


class UnreadableRecordWarning(UserWarning):
    """A file under results/ is not a record this version can read; it was left out."""


def path_of(results_dir: str | Path, name: str, fingerprint: str) -> Path:
    """Where the record of a cell is or will be."""
    return Path(results_dir) / name / fingerprint / FILE_NAME


def checkpoint_folder(results_dir: str | Path, name: str, fingerprint: str) -> Path:
    """Where an unfinished cell keeps what it has."""
    return path_of(results_dir, name, fingerprint).with_name("checkpoint")


def save(record: RunRecord, results_dir: str | Path) -> Path:
    """Write the record atomically to its place and return the path.

    Raises:
        StorageError: the folder cannot be written; a former record is untouched.
    """
    path = path_of(results_dir, record.name, record.fingerprint)
    write_json_atomic(path, plain(record.model_dump()))
    return path


def load(path: str | Path) -> RunRecord:
    """Read one record.

    Raises:
        RecordError: no such file, not JSON, a schema of the future, or fields that do not fit; names it.
    """
    return read_versioned(path, RunRecord, SCHEMA_VERSION, "record")


def read_versioned(path: str | Path, model: type[Versioned], newest: int, what: str) -> Versioned:
    """A file of JSON with a ``schema_version``, as an object of ``model``.

    Args:
        newest: the last version this code can read.
        what: the object in a message's words.

    Raises:
        RecordError: see :func:`load`.
    """
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RecordError(f"{path}: is not JSON: {error}") from None
    version = tree.get("schema_version") if isinstance(tree, dict) else None
    if not isinstance(version, int):
        raise RecordError(f"{path}: is not a {what} (it has no schema_version)")
    if version > newest:
        raise RecordError(
            f"{path}: has schema {version}, this version of q2n reads up to {newest}: update q2n"
        )
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RecordError(f"{path}: {where}: {first['msg']} ({error.error_count()} faults)") from None


def look_up(results_dir: str | Path, name: str, fingerprint: str) -> RunRecord | None:
    """The finished record of a cell, or ``None``; nothing is written.

    A fingerprint says all that decides a number and nothing of the study it belongs to. So where this study
    has no record, one that another study of the same folder has is the cell's: it is returned under this
    ``name`` (its ``config`` still says where it was computed). One that cannot be read is passed over.

    Raises:
        RecordError: the study's own file cannot be read; running the cell over it is the user's choice.
    """
    path = path_of(results_dir, name, fingerprint)
    if path.exists():
        return load(path)
    for other in sorted(Path(results_dir).glob(f"*/{fingerprint}/{FILE_NAME}")):
        with contextlib.suppress(RecordError):
            return load(other).model_copy(update={"name": name})
    return None


def find(results_dir: str | Path, name: str, fingerprint: str) -> RunRecord | None:
    """:func:`look_up`, and a record that another study made is written under this name as well, so that a
    study's folder holds all its cells and a cell shared by studies is computed once.

    Raises:
        RecordError: the study's own file cannot be read.
        OSError: the folder cannot be written.
    """
    record = look_up(results_dir, name, fingerprint)
    if record is not None and not path_of(results_dir, name, fingerprint).exists():
        save(record, results_dir)
    return record


def load_all(results_dir: str | Path, name: str | None = None) -> list[RunRecord]:
    """All readable records (of one experiment), by name, time and fingerprint.

    A file that cannot be read costs a :class:`UnreadableRecordWarning` that names it, not the others.
    """
    records, faults = read_all(results_dir, name)
    for fault in faults:
        warnings.warn(f"left out: {fault}", UnreadableRecordWarning, stacklevel=2)
    return records


def read_all(results_dir: str | Path, name: str | None = None) -> tuple[list[RunRecord], list[str]]:
    """:func:`load_all` with the complaints returned: ``(records, one sentence an unreadable file)``."""
    root = Path(results_dir)
    folders = [root / name] if name is not None else [path for path in root.glob("*") if path.is_dir()]
    records: list[RunRecord] = []
    faults: list[str] = []
    for path in sorted(path for folder in folders for path in folder.glob(f"*/{FILE_NAME}")):
        try:
            records.append(load(path))
        except RecordError as error:
            faults.append(str(error))
    records.sort(key=lambda record: (record.name, record.created, record.fingerprint))
    return records, faults


def to_frame(records: Iterable[RunRecord]) -> pd.DataFrame:
    """One row per cell and metric, flat columns; a cell without metrics has one row."""
    import pandas as pd

    rows: list[Mapping[str, Any]] = []
    for record in records:
        rows += [{**_cell_columns(record), **_metric_columns(metric)} for metric in record.metrics] or [
            _cell_columns(record)
        ]
    return pd.DataFrame(rows)


def _cell_columns(record: RunRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "fingerprint": record.fingerprint,
        "created": record.created,
        **record.cell.model_dump(),
        "bits_per_weight": record.bits_per_weight,
        **{f"seconds_{stage}": value for stage, value in record.seconds.items()},
        "peak_memory_bytes": record.peak_memory_bytes,
        "peak_device_memory_bytes": record.peak_device_memory_bytes,
        "git_commit": record.provenance.git_commit,
        "device": record.provenance.device,
        "weights": record.provenance.weights,
    }


def _metric_columns(metric: Metric) -> dict[str, Any]:
    return {
        "metric": metric.name,
        "dataset": metric.dataset,
        "value": metric.value,
        "reference": metric.reference,
        "unit": metric.unit,
        "count": metric.count,
        "count_unit": metric.count_unit,
        "lower_is_better": metric.lower_is_better,
        "stderr": metric.stderr,
        "tokens": metric.tokens,
        "metric_seconds": metric.seconds,
        "protocol": metric.protocol.label(),
        "protocol_key": metric.protocol.key(),
    }


__all__ = [
    "FILE_NAME",
    "SCHEMA_VERSION",
    "AnyProtocol",
    "Cell",
    "EvaluationProtocol",
    "Metric",
    "Provenance",
    "RunRecord",
    "TaskProtocol",
    "UnreadableRecordWarning",
    "checkpoint_folder",
    "find",
    "load",
    "load_all",
    "look_up",
    "path_of",
    "read_all",
    "save",
    "to_frame",
]
