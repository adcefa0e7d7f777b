"""Errors that a user can cause or must understand, all derived from :class:`Q2NError`.

Only the command line turns them into one readable message and an exit code.
"""

from __future__ import annotations


class Q2NError(Exception):
    """Base of all errors raised on purpose by this package."""

    exit_code = 1
    """Exit code of a command for just one cell."""


class ConfigurationError(Q2NError):
    """Configuration that cannot be run; the message has dotted key, value, rule and alternatives."""

    exit_code = 2


class UnsupportedError(ConfigurationError):
    """Valid method and valid model that do not fit each other; the message has what would fit."""


class StoppedEarly(Q2NError):  # noqa: N818 (nothing is wrong)
    """Cell that a sweeper stops early, because it will not be among the best; no error."""


class DataError(Q2NError):
    """Text that is missing, too short, or different from its fingerprint."""


class ModelError(Q2NError):
    """Model that cannot be found or read, or whose architecture has no adapter."""


class DepartureError(Q2NError):
    """Score of the unquantized model that departs from its known value under the same protocol."""


class NumericalError(Q2NError):
    """Factorisation, eigendecomposition or loss that is not finite or does not exist."""


class OutOfMemoryError(Q2NError):
    """Too little memory on host or device for a cell; the message has settings that would make it fit."""


class StorageError(Q2NError, OSError):
    """File that cannot be written; the message has path, reason and free space, ``errno`` is the system's."""


class CheckpointError(Q2NError):
    """Required checkpoint that is missing, damaged or another cell's."""


class RecordError(Q2NError):
    """Record that is unreadable or has a schema this version does not know."""


class IncompleteRecordError(RecordError):
    """Record whose values per layer and window are missing or do not match it; it counts as no record."""
