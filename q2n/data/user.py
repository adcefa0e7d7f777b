"""The user's own text files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from q2n.data.text import Split, TextSource
from q2n.exceptions import DataError
from q2n.runtime.files import sha256_file

JSON_NAMES = (".json", ".jsonl", ".ndjson")
"""Extensions of files that must contain JSON."""
TABLES = (".csv", ".tsv")
"""Extensions that are refused."""
WHAT_WORKS = "text files are plain text in UTF-8, or JSON objects with a field 'text'"
BINARY = {
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "Parquet",
    b"%PDF": "PDF",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""First bytes of formats that are refused, and the words for them in the message."""
_LIKE_JSON = re.compile(r"""\s*(\{\s*["']|\[\s*["{])""")
_MARKUP = re.compile(r"\s*<(!doctype html|html|\?xml)\b", re.IGNORECASE)
_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class UserText(TextSource):
    """Files in UTF-8, read by content, not by name.

    A file that begins like JSON holds JSON objects, one after the other (JSON lines) or in one array; each
    object is a document with its text in the field ``text``. Any other file is plain text and one document.
    Files that are not running text are refused: damaged JSON, a JSON extension without JSON, tables (.csv,
    .tsv), HTML and XML, compressed and binary files, empty files.

    The files are not split into sides: give different files to calibration and to evaluation.
    """

    paths: tuple[str, ...]
    name = "text"

    @property
    def title(self) -> str:
        """Name and the first three paths, for messages."""
        more = f" and {len(self.paths) - 3} more" if len(self.paths) > 3 else ""
        return f"{self.name!r} ({', '.join(self.paths[:3])}{more})"

    def identity(self) -> dict[str, str]:
        """Return the digests of the files, in order.

        Raises:
            DataError: a file is missing or cannot be read.
        """
        return {"text": self.name, "sha256": " ".join(map(_digest, self._files()))}

    def documents(self, split: Split) -> list[str]:
        """Return the documents of all files, those without text left out; ``split`` is ignored.

        Raises:
            DataError: a file is missing, or is neither plain text nor JSON objects with text.
        """
        texts = [text for path in self._files() for text in _read(path)]
        return [text for text in texts if text.strip()]

    def _files(self) -> list[Path]:
        files = [Path(path).expanduser() for path in self.paths]
        missing = [f"{path}{_why_not(path)}" for path in files if not path.is_file()]
        if missing:
            raise DataError(f"text files not found: {', '.join(missing)}")
        return files


def _why_not(path: Path) -> str:
    """Return the likely reason why a path is not a file, in brackets, or an empty text."""
    if path.is_dir():
        return " (a folder; name its files)"
    return " (patterns are not expanded; name the files)" if re.search(r"[*?\[]", str(path)) else ""


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _read(path: Path) -> list[str]:
    """Return the documents of a file.

    Raises:
        DataError: the file is empty, or neither plain text nor JSON objects with text.
    """
    content = _content(path)
    if _LIKE_JSON.match(content) or path.suffix.lower() in JSON_NAMES:
        return [_text(where, item) for where, item in _items(path, content)]
    if _MARKUP.match(content):
        raise DataError(f"{path}: HTML or XML, whose tags are not text; {WHAT_WORKS}")
    if path.suffix.lower() in TABLES:
        raise DataError(f"{path}: a table, of which at most one column is running text; {WHAT_WORKS}")
    return [content]


def _content(path: Path) -> str:
    """Return the text of a file.

    Raises:
        DataError: the file is empty, binary, compressed, not UTF-8, or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(8)  # the longest entry of BINARY has 6 bytes
        found = next((what for mark, what in BINARY.items() if start.startswith(mark)), None)
        if found:
            raise DataError(f"{path}: is {found}; {WHAT_WORKS}")
        content = path.read_text(encoding="utf-8-sig")  # Windows editors write a byte order mark
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); {WHAT_WORKS}") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if "\0" in content:
        raise DataError(f"{path}: a binary file; {WHAT_WORKS}")
    if not content.strip():
        raise DataError(f"{path}: is empty")
    return content


def _items(path: Path, content: str) -> Iterator[tuple[str, Any]]:
    """Yield every JSON value of a file, arrays entry by entry, with its place for messages."""
    decoder = json.JSONDecoder()
    line, end = 1, 0
    while (start := cast(re.Match[str], _SPACE.match(content, end)).end()) < len(content):
        line += content.count("\n", end, start)
        where = f"{path}:{line}"
        try:
            value, end = decoder.raw_decode(content, start)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{error.lineno}: not JSON, although the file's name or its beginning is "
                f"({error.msg}); {WHAT_WORKS}"
            ) from error
        line += content.count("\n", start, end)
        if isinstance(value, list):
            yield from ((f"{where}: entry {number}", item) for number, item in enumerate(value, 1))
        else:
            yield where, value


def _text(where: str, item: Any) -> str:
    """Return the field ``text`` of a JSON object.

    Raises:
        DataError: ``item`` is not an object with such a field, or the field is not valid text.
    """
    if not isinstance(item, dict) or "text" not in item:
        fields = f"; its fields are {', '.join(item)}" if isinstance(item, dict) and item else ""
        raise DataError(
            f"{where}: not a JSON object with a field 'text'{fields}. Rename the field that holds the "
            "text, for instance with: jq -c '{text: .content}' FILE"
        )
    text = item["text"]
    if not isinstance(text, str):
        raise DataError(f"{where}: the field 'text' is not a string")
    if _SURROGATE.search(text):
        raise DataError(f"{where}: the field 'text' holds half of a surrogate pair (\\ud800-\\udfff)")
    return text
