"""Hydra's own complaints, said the way ours are: dotted key, value, rule, nearest alternatives."""

from __future__ import annotations

import re
from pathlib import Path

from omegaconf import OmegaConf

from q2n.options import did_you_mean


def explain(error: Exception, config_dir: Path) -> str:
    """One readable message for an exception of Hydra or OmegaConf."""
    text = str(error).strip()
    unknown_key = re.search(r"Could not (?:override|append to config|delete from config).*?'([^']+)'", text)
    if unknown_key:
        return _unknown_key(unknown_key.group(1), config_dir)
    option = re.search(r"Could not find '([^'/]+)/([^']+)'", text) or re.search(r"In '[^']*': Could not find '([^'/]+)/([^']+)'", text)
    if option:
        return _unknown_option(option.group(1), option.group(2), config_dir)
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _unknown_key(key: str, config_dir: Path) -> str:
    root = OmegaConf.load(config_dir / "config.yaml")
    keys = [str(name) for name in root if name not in ("defaults",)]
    groups = sorted(path.name for path in config_dir.iterdir() if path.is_dir() and path.name != "hydra")
    top, _, rest = key.partition(".")
    if rest and top in groups:
        fields = _fields(config_dir / top)
        return f"{key}: no such key in any option of {top}{did_you_mean(rest, fields)} (keys: {', '.join(fields)})"
    known = keys + groups
    return f"{key}: no such key{did_you_mean(key, known)} (keys: {', '.join(keys)}; groups: {', '.join(groups)})"


def _unknown_option(group: str, option: str, config_dir: Path) -> str:
    options = sorted(path.stem for path in (config_dir / group).glob("*.yaml"))
    return f"{group}={option}: no such option{did_you_mean(option, options)} (options: {', '.join(options)})"


def _fields(folder: Path) -> list[str]:
    names: dict[str, None] = {}
    for path in sorted(folder.glob("*.yaml")):
        tree = OmegaConf.load(path)
        names.update({str(key): None for key in tree if key not in ("_target_", "defaults")})
    return list(names)
