"""Identity of tasks and their data for fingerprints, without loading either."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from q2n.data.bundled import BundledText
from q2n.evaluation.harness.bundled import RULE, TASK_FILES
from q2n.records.fingerprint import fingerprint
from q2n.runtime.files import sha256_file, sha256_text


def identify_tasks(tasks: Sequence[str], include_path: Sequence[str], data_dir: str | None) -> dict[str, Any]:
    """Return what identifies each task, the folders of ``include_path`` and local data.

    A bundled task is identified by a digest of its settings and text, the user's own task by a digest of its
    file, and lm-eval's tasks by name (their content follows from lm-eval's version). Folders are identified
    by a digest of names, sizes and modification times.

    Raises:
        DataError: the text of a bundled task is not installed.
    """
    found: dict[str, Any] = {name: _task(name) for name in tasks}
    folders = {"include_path": include_path, "data_dir": [data_dir] if data_dir else []}
    for key, paths in folders.items():
        if paths:
            found[key] = listing(Path(path).expanduser() for path in paths)
    return found


def _task(name: str) -> dict[str, str]:
    """Return the identity of one task by name or file."""
    shipped = TASK_FILES / f"{name}.yaml"
    if shipped.is_file():
        tree = _plain(shipped)
        text = BundledText(tree["dataset_kwargs"]["text"])
        return {"task": fingerprint(tree), **text.identity(), "items": RULE}
    file = Path(name).expanduser()
    if not file.is_file():
        return {"task": name}
    # Functions and included files are usually in the same folder.
    beside = [path for path in file.parent.iterdir() if path.suffix in (".py", ".yaml", ".yml")]
    # Any text in the file may be the path of a data file; a path is on one line and of limited length.
    short = (text for text in _strings(_plain(file)) if "/" in text and "\n" not in text and len(text) < 1000)
    local = [path for path in (Path(text).expanduser() for text in short) if path.exists()]
    return {"task": sha256_file(file), "beside": listing(beside), "data": listing(local)}


def listing(paths: Iterable[Path]) -> str:
    """Return a digest of names, sizes and modification times of files and of all files in folders."""
    files = sorted({item for path in paths for item in ([path] if path.is_file() else path.rglob("*"))})
    status = [(path, path.stat()) for path in files if path.is_file()]
    return sha256_text("\n".join(f"{path} {item.st_size} {item.st_mtime_ns}" for path, item in status))


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Loader that reads a ``!function`` of lm-eval as its name, without an import."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def _plain(file: Path) -> Any:
    """Return the content of a task file, with functions by name."""
    return yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)


def _strings(tree: Any) -> Iterator[str]:
    """Yield all strings among the values of nested dictionaries and lists."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, (dict, list)):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _strings(item)
