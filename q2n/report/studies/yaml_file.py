"""YAML files that people write beside the experiments: read strictly, complaints name file and key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from q2n.exceptions import ConfigurationError


def read_mapping(path: Path) -> dict[str, Any]:
    """The file's keys and values; interpolations stay as they are written.

    Raises:
        ConfigurationError: the file cannot be read, is not YAML, or holds no mapping; names it.
    """
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.load(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigurationError(f"{path}: is not YAML: {error}") from None
    if not isinstance(config, DictConfig):
        raise ConfigurationError(f"{path}: must hold keys with values, not a list")
    return {str(key): value for key, value in (OmegaConf.to_container(config) or {}).items()}  # type: ignore[union-attr]


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Complaints about what is in the file get its name, line by line."""
    try:
        yield
    except ConfigurationError as error:
        lines = [f"{path}: {line}" for line in str(error).splitlines()]
        raise ConfigurationError("\n".join(lines)) from None
