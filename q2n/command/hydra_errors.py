"""Hydra's errors in the form of this project's: dotted key, value, rule, nearest alternatives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import InstantiationException, OverrideParseException
from omegaconf import DictConfig, OmegaConf

from q2n.command.preflight import config_name
from q2n.options import did_you_mean


def explain(error: Exception, folders: Sequence[Path], overrides: Sequence[str]) -> str:
    """Return one readable message for an exception of Hydra or OmegaConf.

    Args:
        error: the exception.
        folders: folders of the options, the main one first.
        overrides: the command line's, which name the options of the groups.
    """
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return str(error.__cause__)  # of a launcher or sweeper, which names its setting
    text = str(error).strip()
    if isinstance(error, OverrideParseException):
        found = re.search("'(.*)'", text.splitlines()[0])  # the rest of the line is the parser's own terms
        near = "at its end" if found is None or "EOF" in found[1] else f"near {found[1]!r}"
        return f"{error.override}: cannot be parsed as key=value, {near}"
    unknown_key = re.search(r"Could not (?:override|append to config|delete from config).*?'([^']+)'", text)
    if unknown_key:
        return _unknown_key(unknown_key.group(1), folders, overrides)
    unknown_option = re.search(r"Could not find '([^'/]+)/([^']+)'", text)
    if unknown_option:
        group, name = unknown_option.groups()
        options = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
        hint = did_you_mean(name, options)
        return f"{group}={name}: no such option{hint} (options: {', '.join(options)})"
    if text.startswith("Ambiguous value for argument"):
        return f"{text.splitlines()[0].split()[-1]}: several values make a sweep; add -m (run.py -m ...)"
    first = (text or type(error).__name__).splitlines()[0]
    key = getattr(error, "full_key", None)  # of OmegaConf
    return f"{key}: {first}" if key else first


def _unknown_key(key: str, folders: Sequence[Path], overrides: Sequence[str]) -> str:
    roots = _roots(folders, config_name(overrides))
    keys = list(dict.fromkeys(str(name) for root in roots for name in root if name != "defaults"))
    groups = sorted(path.name for path in folders[0].iterdir() if path.is_dir() and path.name != "hydra")
    top, _, rest = key.partition(".")
    if rest and top in groups:
        chosen = _chosen(top, roots, overrides)
        files = [folder / top / f"{option}.yaml" for option in chosen for folder in folders]
        fields = list(dict.fromkeys(name for file in files for name in _fields(file)))
        where = f"{top}={','.join(chosen)}"
        return f"{key}: no such key in {where}{did_you_mean(rest, fields)} (keys: {', '.join(fields)})"
    known = keys + groups
    return (
        f"{key}: no such key{did_you_mean(key, known)} (keys: {', '.join(keys)}; groups: {', '.join(groups)})"
    )


def _fields(file: Path) -> list[str]:
    """Return the keys of an option, and those of the options below its own keys (``perplexity@parts.x``)."""
    tree = _tree(file)
    placed = [str(entry).partition("@") for entry in tree.get("defaults") or ()]
    below = [
        f"{key}.{name}"
        for option, at, key in placed
        if at
        for name in _fields(file.with_name(f"{option}.yaml"))
    ]
    return [str(name) for name in tree if name not in ("_target_", "defaults")] + below


def _roots(folders: Sequence[Path], name: str) -> list[DictConfig]:
    """Return the root of the configuration, and the roots it builds on (``defaults: [config]``)."""
    file = next((path for folder in folders if (path := folder / f"{name}.yaml").is_file()), None)
    if file is None:
        return []
    below = [
        entry for entry in _tree(file).get("defaults") or () if isinstance(entry, str) and entry != "_self_"
    ]
    return [_tree(file), *(tree for entry in below for tree in _roots(folders, entry))]


def _chosen(group: str, roots: Sequence[DictConfig], overrides: Sequence[str]) -> list[str]:
    """Return the options of ``group`` that the command line names, else the default."""
    named = [item.partition("=")[2] for item in overrides if item.partition("=")[0].lstrip("+") == group]
    if named:
        return named[-1].split(",")
    listed = [entry for root in roots for entry in root.get("defaults") or ()]
    entries = [entry for entry in listed if isinstance(entry, DictConfig)]
    return [str(entry[group]) for entry in entries if group in entry]


def _tree(path: Path) -> DictConfig:
    tree = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
    assert isinstance(tree, DictConfig)
    return tree
