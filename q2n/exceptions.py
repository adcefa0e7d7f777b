"""Every error a user can cause or must understand. All derive from :class:`Q2NError`.

The command line turns them into one readable message and an exit code; nothing else does.
"""

from __future__ import annotations


class Q2NError(Exception):
    """Base of all errors raised on purpose by this package."""

    exit_code = 1


class ConfigurationError(Q2NError):
    """The configuration cannot be run: names the dotted key, the value, the rule, the alternatives."""

    exit_code = 2


class UnsupportedError(ConfigurationError):
    """A valid method and a valid model that do not fit each other; says what would fit."""


class StoppedEarly(Q2NError):  # noqa: N818 (nothing is wrong)
    """A sweeper has seen enough of the cell: it will not be among the best."""


class DataError(Q2NError):
    """Text is missing, too short, or not what its fingerprint says."""


class ModelError(Q2NError):
    """A model cannot be found, read, or is of an architecture no adapter knows."""


class DepartureError(Q2NError):
    """The unquantized model does not score what it is known to score; says by which protocol field."""


class NumericalError(Q2NError):
    """A factorisation, an eigendecomposition or a loss is not finite or does not exist."""


class OutOfMemoryError(Q2NError):
    """Host or device has too little memory for a cell; says what would make it fit."""


class StorageError(Q2NError, OSError):
    """A file cannot be written; says which, why, and how much room there was. ``errno`` is the system's."""


class CheckpointError(Q2NError):
    """A checkpoint that must be used is missing, damaged or another cell's."""


class RecordError(Q2NError):
    """A record is unreadable or of a schema this version does not know."""


class IncompleteRecordError(RecordError):
    """A record's values per layer and window are missing or others: it counts as no record."""
