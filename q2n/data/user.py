"""A user's own text files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from q2n.data.text import Split, TextSource
from q2n.exceptions import DataError
from q2n.files import sha256_file


@dataclass(frozen=True)
class UserText(TextSource):
    """Files in UTF-8: ``.jsonl`` holds one document a line in its field ``text``, any other file is one
    document. The files are not split: name different ones for calibration and for evaluation."""

    paths: tuple[str, ...]
    name = "text"

    def identity(self) -> dict[str, str]:
        return {"text": self.name, "sha256": " ".join(sha256_file(path) for path in self._files())}

    def documents(self, split: Split) -> list[str]:
        texts = [text for path in self._files() for text in _read(path)]
        return [text for text in texts if text.strip()]

    def _files(self) -> list[Path]:
        files = [Path(path).expanduser() for path in self.paths]
        missing = [str(path) for path in files if not path.is_file()]
        if missing:
            raise DataError(f"text files not found: {', '.join(missing)}")
        return files


def _read(path: Path) -> list[str]:
    try:
        content = path.read_text(encoding="utf-8-sig")  # editors on Windows put a mark at the start
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error})") from error
    if path.suffix.lower() != ".jsonl":
        return [content]
    # Not splitlines(): JSON strings may hold characters that it takes for line ends.
    return [
        _document(path, number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()
    ]


def _document(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}:{number}: not a JSON object with a field 'text' ({error!r})") from error
    if not isinstance(text, str):
        raise DataError(f"{path}:{number}: the field 'text' is not a string")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{path}:{number}: the field 'text' holds half of a surrogate pair (\\ud800-\\udfff)")
    return text
