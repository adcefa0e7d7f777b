"""Records, the results of cells with provenance: written atomically, read exactly, queried as a table.

Tables and figures are rendered from records, never from memory. The record of a cell is a folder of two
files, ``<results_dir>/<name>/<fingerprint>/``. ``record.json`` has configuration, provenance, metrics and
totals as strict JSON that people can read; a loss that is not finite is written as ``"inf"``, ``"-inf"`` or
``"nan"`` and read back as that number. ``layers.parquet`` has the values per layer and window
(:mod:`q2n.records.values`). ``record.json`` has the digest of this file: without exactly that file the record
counts as missing. The parts of a record are defined in :mod:`q2n.records.schema`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from q2n.exceptions import IncompleteRecordError, RecordError
from q2n.options import complaints
from q2n.records import values as record_values
from q2n.records.fingerprint import canonical_json, plain
from q2n.records.schema import SCHEMA_VERSION, Metric
from q2n.records.schema import RunRecord as RunRecord  # noqa: PLC0414 (others import it from here)
from q2n.runtime.files import json_text, write_atomic

if TYPE_CHECKING:
    import pandas as pd

FILE_NAME = "record.json"

T = TypeVar("T")
Versioned = TypeVar("Versioned", bound=BaseModel)


class UnreadableRecordWarning(UserWarning):
    """File under the results folder that this version cannot read as a record; the file is left out."""


def path_of(results_dir: str | Path, name: str, fingerprint: str) -> Path:
    """Return the path of a cell's record, finished or not."""
    return Path(results_dir) / name / fingerprint / FILE_NAME


def checkpoint_folder(results_dir: str | Path, name: str, fingerprint: str) -> Path:
    """Return the folder of an unfinished cell's checkpoint."""
    return path_of(results_dir, name, fingerprint).with_name("checkpoint")


def save(record: RunRecord, results_dir: str | Path) -> Path:
    """Write the record atomically and return the path of its ``record.json``.

    Raises:
        StorageError: the folder cannot be written; a former record is untouched.
    """
    path = path_of(results_dir, record.name, record.fingerprint)
    write(record, path)
    return path


def write(record: RunRecord, path: Path) -> None:
    """Write ``record.json`` to ``path`` and the other file beside it, as :func:`save` does."""
    values = record_values.pack(record)
    text = json_text(_short_tree(record, hashlib.sha256(values).hexdigest()))

    def write_both(file: Path) -> None:
        # The JSON is written first and moved into place last: a full disk costs no former record.
        file.write_text(text, encoding="utf-8", newline="\n")
        write_atomic(path.with_name(record_values.FILE_NAME), lambda other: other.write_bytes(values))

    write_atomic(path, write_both)


def _short_tree(record: RunRecord, digest: str) -> dict[str, Any]:
    """Return the content of ``record.json``, without repetitions.

    In the identity, the keys of the configuration stand for their values, and ``provenance`` for the
    versions. In a metric, a key stands for the protocol, which several metrics may share. Fields of metrics
    and protocols with their default values are left out.
    """
    tree: dict[str, Any] = plain(record.model_dump(exclude={"layers", "metrics"}))
    tree["metrics"] = [plain(_short_metric(metric)) for metric in record.metrics]
    protocols = {protocol.key(): protocol for protocol in record.protocols}
    tree["protocols"] = {key: plain(it.model_dump(exclude_defaults=True)) for key, it in protocols.items()}
    tree["layers"] = {"file": record_values.FILE_NAME, "sha256": digest}
    identity, config = tree["identity"], tree["identity"].get("config")
    if isinstance(config, dict) and canonical_json(config) == canonical_json(_chosen(tree["config"], config)):
        identity["config"] = list(config)
    if identity.get("versions") == tree["provenance"]["versions"]:
        identity["versions"] = "provenance"
    return tree


def _short_metric(metric: Metric) -> dict[str, Any]:
    # Always written: where the difference is missing, as in former records, it is derived from the name.
    said = {"difference": metric.difference, "count_unit": metric.count_unit}
    fields = metric.model_dump(exclude=set(record_values.WINDOW_COLUMNS), exclude_defaults=True)
    return {**fields, **said, "protocol": metric.protocol.key()}


def _chosen(config: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: config[key] for key in keys if key in config}


def load(path: str | Path) -> RunRecord:
    """Read one record.

    Raises:
        IncompleteRecordError: the values per layer and window are missing or do not match the record.
        RecordError: the file is missing, is not JSON, or has a newer schema or wrong fields; names it.
    """
    tree = read_tree(path, SCHEMA_VERSION, "record")
    if tree["schema_version"] == 1:  # one file with the same fields
        return _fitted(path, {**tree, "schema_version": SCHEMA_VERSION}, RunRecord)
    try:
        whole = _whole_tree(tree, Path(path))
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path}: its parts do not fit together ({error})") from None
    return _fitted(path, whole, RunRecord)


def _whole_tree(tree: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the fields of a record from :func:`_short_tree` and the values beside ``path``."""
    tree["layers"], windows = record_values.unpack(_values(tree, path))
    protocols = tree.pop("protocols")
    for place, metric in enumerate(tree["metrics"]):
        metric.update(windows.get(place, {}), protocol=protocols[metric["protocol"]])
    identity = tree["identity"]
    if isinstance(identity.get("config"), list):
        identity["config"] = _chosen(tree["config"], identity["config"])
    if identity.get("versions") == "provenance":
        identity["versions"] = tree["provenance"]["versions"]
    return tree


def _values(tree: Mapping[str, Any], path: Path) -> bytes:
    """Read the other file of the record at ``path``, and compare its digest."""
    noted = tree.get("layers")
    if not isinstance(noted, dict) or "sha256" not in noted:
        raise RecordError(f"{path}: has no digest of {record_values.FILE_NAME}")
    other = path.with_name(record_values.FILE_NAME)
    try:
        values = other.read_bytes()
    except OSError as error:
        raise IncompleteRecordError(f"{path}: {other.name} cannot be read: {error.strerror}") from None
    if hashlib.sha256(values).hexdigest() != noted["sha256"]:
        raise IncompleteRecordError(
            f"{path}: {other.name} beside it does not have the digest noted in the record"
        )
    return values


def read_versioned(path: str | Path, model: type[Versioned], newest: int, what: str) -> Versioned:
    """Read a JSON file with a ``schema_version`` as an object of ``model``.

    Args:
        path: the file.
        model: class of the object.
        newest: the last version this code can read.
        what: name of the object in messages.

    Raises:
        RecordError: as in :func:`load`.
    """
    return _fitted(path, read_tree(path, newest, what), model)


def read_tree(path: str | Path, newest: int, what: str) -> dict[str, Any]:
    """Read the fields of a JSON file with a ``schema_version``, for :func:`read_versioned`.

    Raises:
        RecordError: the file is missing, is not JSON, or has no version or a newer one; names it.
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
    assert isinstance(tree, dict)
    if version > newest:
        raise RecordError(
            f"{path}: has schema {version}, this version of q2n reads up to {newest}: update q2n"
        )
    return tree


def _fitted(path: str | Path, tree: dict[str, Any], model: type[Versioned]) -> Versioned:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        faults = complaints(error, tree)
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise RecordError(f"{path}: {faults[0]}{more}") from None


def look_up(results_dir: str | Path, name: str, fingerprint: str) -> RunRecord | None:
    """Return the finished record of a cell, or None if there is none; nothing is written.

    A fingerprint depends on everything that decides a number, but not on the study. Where this study has no
    record, the record of another study in the same folder is therefore returned under this ``name`` (its
    ``config`` still names the study that computed it). An unreadable record of another study is ignored. A
    record without its values counts as missing, with an :class:`UnreadableRecordWarning`.

    Raises:
        RecordError: the study's own file cannot be read; whether to overwrite it is the user's choice.
    """
    return _own(results_dir, name, fingerprint) or _shared(results_dir, name, fingerprint)


def _own(results_dir: str | Path, name: str, fingerprint: str) -> RunRecord | None:
    path = path_of(results_dir, name, fingerprint)
    try:
        return load(path) if path.exists() else None
    except IncompleteRecordError as error:
        warnings.warn(f"counts as no record: {error}", UnreadableRecordWarning, stacklevel=4)
        return None


def _shared(results_dir: str | Path, name: str, fingerprint: str) -> RunRecord | None:
    for other in sorted(Path(results_dir).glob(f"*/{fingerprint}/{FILE_NAME}")):
        with contextlib.suppress(RecordError):
            return load(other).model_copy(update={"name": name})
    return None


def find(results_dir: str | Path, name: str, fingerprint: str) -> RunRecord | None:
    """Return the record as :func:`look_up` does, and save one of another study under this name as well.

    A study's folder thus holds all its cells, and a cell that studies share is computed once.

    Raises:
        RecordError: the study's own file cannot be read.
        OSError: the folder cannot be written.
    """
    own = _own(results_dir, name, fingerprint)
    if own is None and (shared := _shared(results_dir, name, fingerprint)) is not None:
        save(shared, results_dir)
        return shared
    return own


def load_all(results_dir: str | Path, name: str | None = None) -> list[RunRecord]:
    """Return all readable records (of one experiment), by name, time and fingerprint.

    Each unreadable file is named by an :class:`UnreadableRecordWarning` and left out.
    """
    records, faults = read_all(results_dir, name)
    for fault in faults:
        warnings.warn(f"left out: {fault}", UnreadableRecordWarning, stacklevel=2)
    return records


def read_all(results_dir: str | Path, name: str | None = None) -> tuple[list[RunRecord], list[str]]:
    """Return the records as :func:`load_all` does, and one sentence per unreadable file."""
    records, faults = read_each(results_dir, name, FILE_NAME, load)
    return sorted(records, key=lambda record: (record.name, record.created, record.fingerprint)), faults


def read_each(
    results_dir: str | Path, name: str | None, file_name: str, read: Callable[[Path], T]
) -> tuple[list[T], list[str]]:
    """Read all files of a name (of one experiment); also return one sentence per unreadable file."""
    found: list[T] = []
    faults: list[str] = []
    for path in sorted(Path(results_dir).glob(f"{escape(name) if name else '*'}/*/{file_name}")):
        try:
            found.append(read(path))
        except RecordError as error:
            faults.append(str(error))
    return found, faults


def to_frame(
    records: Iterable[RunRecord], per: Literal["metric", "layer", "window"] = "metric"
) -> pd.DataFrame:
    """Convert records to a table with flat columns, those of the cell first.

    Args:
        records: the finished cells.
        per: one row per metric (and one for a cell without metrics), per layer, or per window or item of each
            metric.
    """
    import pandas as pd

    rows: list[Mapping[str, Any]] = []
    for record in records:
        cell = _cell_columns(record)
        rows += [{**cell, **row} for row in _rows(record, per)]
    return pd.DataFrame(rows)


def _rows(record: RunRecord, per: str) -> Iterable[Mapping[str, Any]]:
    if per == "layer":
        # renamed, because the cell has columns of these names
        renamed = {"name": "layer", "bits_per_weight": "layer_bits_per_weight"}
        layers = record_values.layer_rows(record)
        return [{renamed.get(key, key): value for key, value in row.items()} for row in layers]
    metrics = [_metric_columns(metric) for metric in record.metrics]
    if per == "window":
        windows = record_values.window_rows(record)
        told = ("metric", "dataset", "protocol_key")
        return [{**row, **_chosen(metrics[row["metric"]], told)} for row in windows]
    return metrics or [{}]


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
