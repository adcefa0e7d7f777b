"""A user's own text files."""

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
TABLES = (".csv", ".tsv")
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
"""First bytes of formats that people have their text in."""
_LIKE_JSON = re.compile(r"""\s*(\{\s*["']|\[\s*["{])""")
_MARKUP = re.compile(r"\s*<(!doctype html|html|\?xml)\b", re.IGNORECASE)
_SPACE = re.compile(r"[ \t\r\n]*")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class UserText(TextSource):
    """Files in UTF-8, read by what they hold, not by what they are called.

    A file that begins like JSON holds JSON objects, one after the other (JSON lines) or in one array; each is
    a document, its text is in the field ``text``. Any other file is plain text and one document. What would
    put something else than running text into the model is refused: damaged JSON, a name that promises JSON
    of a file without it, tables (.csv, .tsv), HTML and XML, compressed and binary files, empty files.

    The files are not split: name different ones for calibration and for evaluation.
    """

    paths: tuple[str, ...]
    name = "text"

    @property
    def title(self) -> str:
        more = f" and {len(self.paths) - 3} more" if len(self.paths) > 3 else ""
        return f"{self.name!r} ({', '.join(self.paths[:3])}{more})"

    def identity(self) -> dict[str, str]:
        return {"text": self.name, "sha256": " ".join(map(_digest, self._files()))}

    def documents(self, split: Split) -> list[str]:
        texts = [text for path in self._files() for text in _read(path)]
        return [text for text in texts if text.strip()]

    def _files(self) -> list[Path]:
        files = [Path(path).expanduser() for path in self.paths]
        missing = [f"{path}{_why_not(path)}" for path in files if not path.is_file()]
        if missing:
            raise DataError(f"text files not found: {', '.join(missing)}")
        return files


def _why_not(path: Path) -> str:
    if path.is_dir():
        return " (a folder; name its files)"
    return " (patterns are not expanded; name the files)" if re.search(r"[*?\[]", str(path)) else ""


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _read(path: Path) -> list[str]:
    """The documents of a file.

    Raises:
        DataError: it holds no text, or not as text or JSON.
    """
    content = _content(path)
    if _LIKE_JSON.match(content) or path.suffix.lower() in JSON_NAMES:
        return [_text(where, item) for where, item in _items(path, content)]
    if _MARKUP.match(content):
        raise DataError(f"{path}: HTML or XML, whose tags are no text; {WHAT_WORKS}")
    if path.suffix.lower() in TABLES:
        raise DataError(f"{path}: a table, of which one column at most is running text; {WHAT_WORKS}")
    return [content]


def _content(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
        found = next((what for mark, what in BINARY.items() if start.startswith(mark)), None)
        if found:
            raise DataError(f"{path}: is {found}; {WHAT_WORKS}")
        content = path.read_text(encoding="utf-8-sig")  # editors on Windows put a mark at the start
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
    """Every JSON value of a file, those of an array one by one, with its place for messages."""
    decoder = json.JSONDecoder()
    line, end = 1, 0
    while (start := cast(re.Match[str], _SPACE.match(content, end)).end()) < len(content):
        line += content.count("\n", end, start)
        where = f"{path}:{line}"
        try:
            value, end = decoder.raw_decode(content, start)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}:{error.lineno}: not JSON, though the file's name or its beginning is ({error.msg}); "
                f"{WHAT_WORKS}"
            ) from error
        line += content.count("\n", start, end)
        if isinstance(value, list):
            yield from ((f"{where}: entry {number}", item) for number, item in enumerate(value, 1))
        else:
            yield where, value


def _text(where: str, item: Any) -> str:
    if not isinstance(item, dict) or "text" not in item:
        fields = f"; its fields are {', '.join(item)}" if isinstance(item, dict) and item else ""
        raise DataError(
            f"{where}: not a JSON object with a field 'text'{fields}. Give the text that name, for instance "
            "with: jq -c '{text: .content}' FILE"
        )
    text = item["text"]
    if not isinstance(text, str):
        raise DataError(f"{where}: the field 'text' is not a string")
    if _SURROGATE.search(text):
        raise DataError(f"{where}: the field 'text' holds half of a surrogate pair (\\ud800-\\udfff)")
    return text
