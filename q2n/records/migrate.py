"""Conversion of former records to the current two files: ``python -m q2n.records.migrate FOLDER``.

Each record is first written elsewhere, read back and compared, so that no record is replaced that would not
be read back whole. An interrupted command leaves records of both kinds, which every command reads; repeating
the command converts the rest.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from q2n.exceptions import RecordError
from q2n.records import kept_code
from q2n.records import values as record_values
from q2n.records.fingerprint import canonical_json, fingerprint
from q2n.records.schema import SCHEMA_VERSION
from q2n.records.store import FILE_NAME, RunRecord, load, read_tree, write
from q2n.runtime.files import write_json_atomic


def migrate(results_dir: Path) -> tuple[int, list[str]]:
    """Convert every record below the folder that has a former version.

    Returns:
        The number of converted records, and a sentence for each that cannot be read.

    Raises:
        RecordError: a converted record would differ from the former one, which is kept.
        OSError: the folder cannot be written; the former records are kept.
    """
    converted, faults = 0, []
    for path in sorted(results_dir.glob(f"*/*/{FILE_NAME}")):
        try:
            if read_tree(path, SCHEMA_VERSION, "record")["schema_version"] != SCHEMA_VERSION:
                _convert(load(path), path, results_dir)
                converted += 1
        except RecordError as error:
            faults.append(str(error))
    return converted, faults


def _convert(record: RunRecord, path: Path, results_dir: Path) -> None:
    new = _with_sources_kept(record, results_dir)
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / FILE_NAME
        write(new, trial)
        if canonical_json(load(trial).model_dump()) != canonical_json(new.model_dump()):
            raise RecordError(f"{path}: would differ after conversion; left as it is")
    write(new, path)


def _with_sources_kept(record: RunRecord, results_dir: Path) -> RunRecord:
    """Move the digests of the source files, which many records share, to a file of their own."""
    sources = record.identity.get("sources")
    if not isinstance(sources, Mapping):
        return record
    key = fingerprint(sources)
    place = results_dir / kept_code.FOLDER / f"{key}.json"
    if not place.exists():
        write_json_atomic(place, sources)
    return record.model_copy(update={"identity": {**record.identity, "sources": key}})


def _size(results_dir: Path) -> int:
    """Return the bytes of all records."""
    names = (f"*/*/{FILE_NAME}", f"*/*/{record_values.FILE_NAME}", f"{kept_code.FOLDER}/*.json")
    return sum(path.stat().st_size for name in names for path in results_dir.glob(name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        "python -m q2n.records.migrate",
        description="convert records of former versions to the current two files",
    )
    parser.add_argument("results", type=Path, help="folder of the records")
    folder = parser.parse_args(arguments).results
    if not folder.is_dir():
        print(f"{folder}: no such folder", file=sys.stderr)
        return 1
    before = _size(folder)
    try:
        converted, faults = migrate(folder)
    except OSError as error:
        print(
            f"{error.filename or folder}: {error.strerror}; repeat the command to convert the rest",
            file=sys.stderr,
        )
        return 1
    for fault in faults:
        print(f"left as it is: {fault}", file=sys.stderr)
    print(f"{converted} converted; records take {_size(folder) / 1e6:.1f} MB, before {before / 1e6:.1f} MB")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
