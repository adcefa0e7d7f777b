"""Settings that no cell of a command reads are refused, as misspelt keys are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from q2n.config import RunConfig, key_of
from q2n.exceptions import ConfigurationError


def refuse_unread(configs: Sequence[RunConfig], folders: Sequence[Path]) -> None:
    """Refuse settings that none of the cells of a command that have them reads.

    Args:
        folders: where options are looked for.

    Raises:
        ConfigurationError: names each setting, why nothing reads it, and what would.
    """
    reading = {key_of(override) for config in configs for override in config.overrides}
    complaints = dict.fromkeys(
        _complaint(key, config, folders)
        for config in configs
        for key in config.unread_settings()
        if key not in reading
    )
    if complaints:
        raise ConfigurationError("\n".join(complaints))


def _complaint(key: str, config: RunConfig, folders: Sequence[Path]) -> str:
    if config.unread[key]:
        return f"{key}: {config.unread[key]}"
    baseline, choice = config.baseline, config.choices["baseline"]
    if key == "group_size" and baseline.no_groups:
        rule = f"{choice} has {baseline.no_groups}: group_size does not apply"
        return f"{rule}; baselines with groups: {_following(key, folders)}"
    if f"baseline.{key}" in config.unread:
        return f"{key}: {config.unread[f'baseline.{key}']}"
    rule = f"{key}: baseline={choice} does not follow it: set baseline.{key}"
    return f"{rule}; baselines that follow {key}: {_following(key, folders)}"


def _following(key: str, folders: Sequence[Path]) -> str:
    """The baselines whose options refer to a top-level key."""
    files = sorted(path for folder in folders for path in (folder / "baseline").glob("*.yaml"))
    names = [path.stem for path in files if f"${{{key}}}" in path.read_text(encoding="utf-8")]
    return ", ".join(sorted(set(names)))
