"""Files and folders that are written atomically: a reader sees the whole or nothing.

A process killed at any moment leaves the old file or the new one, never half of either: a file is written
beside its destination, flushed to the disk, and moved into place in one step.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from q2n.exceptions import StorageError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""The system's error numbers for a full disk and an exhausted quota."""


def _read_umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_WIDTH = 110
"""Characters of a line of JSON, roughly."""

_UMASK = _read_umask()  # read once: the mask can only be read by setting it, which is not safe among threads


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Create ``path`` (and the folders above it) with ``write``, so that no reader ever sees a part of it.

    Args:
        path: destination.
        write: called with the path of an empty file beside ``path``, which is then flushed to the disk and
            moved into place.

    Raises:
        StorageError: the folder cannot be written; the former file, if any, is untouched.
    """
    target = Path(path)
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            _settle_file(temporary)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)


def write_text_atomic(path: str | Path, text: str) -> None:
    """Write UTF-8 ``text`` to ``path`` by :func:`write_atomic`."""
    whole = text.encode("utf-8")
    with explained(Path(path), len(whole)):
        write_atomic(path, lambda file: file.write_bytes(whole))


@contextlib.contextmanager
def explained(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn the system's errors of writing below ``path`` into :class:`StorageError`, inside the block.

    Args:
        path: file or folder that is written.
        needed: bytes that are written, or None if unknown.
    """
    try:
        yield
    except Exception as error:
        number = _number_of(error)
        if number is None or (isinstance(error, StorageError) and needed is None):
            raise  # unknown, or explained already
        raise _unwritten(path, number, needed) from error


def _unwritten(path: Path, number: int, needed: int | None) -> StorageError:
    there = path if path.is_dir() else next((each for each in path.parents if each.is_dir()), path)
    room = ""
    if number in FULL:
        with contextlib.suppress(OSError):
            free = f"{_size(shutil.disk_usage(there).free)} free"
            room = f" ({free})" if needed is None else f" (needs {_size(needed)}, {free})"
    reason = os.strerror(number)
    error = StorageError(f"{reason[0].lower()}{reason[1:]}: {path}{room}")
    error.errno = number
    return error


def _number_of(error: Exception) -> int | None:
    """Return the system's number of an error; safetensors has it in the text of its own errors."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found.group(1)) if found else None


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def write_json_atomic(path: str | Path, value: Any) -> None:
    """Write :func:`json_text` of ``value`` to ``path`` by :func:`write_atomic`."""
    write_text_atomic(path, json_text(value))


def json_text(value: Any) -> str:
    """Format ``value`` as JSON for people: indented, with as many short items per line as fit.

    Raises:
        ValueError: a number is not finite, which JSON does not have.
        TypeError: a value has no JSON form.
    """
    return _indented(value, "") + "\n"


def _indented(value: Any, indent: str) -> str:
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(indent) + len(flat) <= _WIDTH or not isinstance(value, (dict, list, tuple)):
        return flat
    inner = indent + " "
    if isinstance(value, dict):
        keys = (json.dumps(str(key), ensure_ascii=False) for key in value)
        items = [f"{key}: {_indented(item, inner)}" for key, item in zip(keys, value.values(), strict=True)]
    else:
        items = [_indented(item, inner) for item in value]
    lines = items if any("\n" in item for item in items) else _filled(items, _WIDTH - len(inner))
    return f"{flat[0]}\n{inner}" + f",\n{inner}".join(lines) + f"\n{indent}{flat[-1]}"


def _filled(items: Iterable[str], width: int) -> list[str]:
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + len(item) + 2 <= width:
            lines[-1] += f", {item}"
        else:
            lines.append(item)
    return lines


def sha256_file(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    """Return the hexadecimal SHA-256 of the UTF-8 bytes of ``text``."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def make_folder_atomic(target: Path, fill: Callable[[Path], None], valid: Callable[[Path], bool]) -> Path:
    """Create the folder ``target`` once, even if several processes try at the same time.

    Args:
        target: destination.
        fill: writes the files into a private folder, which is then moved into place.
        valid: tells whether a folder is complete. A valid ``target``, also one that another process has
            finished in the meantime, is kept; an invalid one is replaced.

    Returns:
        ``target``.

    Raises:
        StorageError: the parent folder cannot be written.
    """
    if valid(target):
        return target
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
        try:
            fill(private)
            _settle(private)
            _move_into_place(private, target, valid)
        finally:
            shutil.rmtree(private, ignore_errors=True)
        _sync_folder(target.parent)
    return target


def _settle(folder: Path) -> None:
    """Flush everything in ``folder`` to the disk, with the permissions that the user's umask allows."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            _settle_file(path)
        else:
            path.chmod(0o777 & ~_UMASK)
    folder.chmod(0o777 & ~_UMASK)
    _sync_folder(folder)


def _settle_file(path: Path) -> None:
    path.chmod(0o666 & ~_UMASK)  # temporary files are made private; results are shared
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _move_into_place(private: Path, target: Path, valid: Callable[[Path], bool]) -> None:
    """Move ``private`` to ``target`` unless a valid folder is there by now."""
    with _alone(target.parent):  # or else one could take away what another has just put there
        if not valid(target):
            _take_away(target)
            os.replace(private, target)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one thread of one process at a time inside, where folders can be locked (not on Windows)."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which also unlocks


def _take_away(target: Path) -> None:
    """Delete ``target`` so that no reader sees half of it; it may be gone by now."""
    grave = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    try:
        with contextlib.suppress(FileNotFoundError):
            os.replace(target, grave / "old")
    finally:
        shutil.rmtree(grave, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable where the platform can (Windows cannot open folders)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
