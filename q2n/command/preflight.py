"""Validation of every cell of a sweep before the first cell starts.

A mistake in the fortieth cell of a sweep then costs a second, not a day. Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hydra.errors import SearchPathException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from q2n.command.grid import Combination, Grid, combinations, foreign_settings, task_overrides
from q2n.command.outcomes import Command
from q2n.config import GROUPS, RunConfig, key_of
from q2n.exceptions import ConfigurationError
from q2n.launchers import base as launchers
from q2n.launchers.space import search
from q2n.options import did_you_mean

Compose = Callable[[Sequence[str]], DictConfig]
"""Function from overrides to a composed configuration with its ``hydra`` section."""


def preflight(config_dir: Path, arguments: Sequence[str], sweep: str = "") -> Command:
    """Validate the command line and return its cells; without cells if none will run (``--help``).

    Args:
        config_dir: the project's folder of options.
        arguments: the command line.
        sweep: the command's id.

    Raises:
        ConfigurationError: a cell cannot be run.
        HydraException: a key, an option or the folder of ``--config-dir`` does not exist, or an override
            cannot be parsed.
    """
    launchers.own_names()
    parsed = get_args_parser().parse_args(list(arguments))
    if any(getattr(parsed, flag, None) for flag in ("help", "hydra_help", "cfg", "info", "shell_completion")):
        return Command(sweep)
    if parsed.experimental_rerun:
        raise ConfigurationError(
            "--experimental-rerun: is not supported: it skips the validation; give the overrides again"
        )
    overrides = list(parsed.overrides)
    folders = config_folders(config_dir, arguments)
    with _composing(folders, config_name(arguments)) as composed:
        base = composed([item for item in overrides if not _is_sweep(item)])
        multirun = bool(parsed.multirun) or base.hydra.mode == RunMode.MULTIRUN
        product, complete = _product(base, overrides) if multirun else ([overrides], True)
        grid = _grid(product, composed) if multirun and complete else Grid()
        configs: list[RunConfig] = []
        faults: list[tuple[Combination, ConfigurationError]] = []
        for cell in grid.cells(product):
            tree = composed(cell)
            try:
                configs.append(RunConfig.from_hydra(tree, tree.hydra))
            except ConfigurationError as error:
                faults.append((cell, error))
        grid = grid.judged(configs, faults)
        _refuse_unread(configs, folders)
    different: dict[frozenset[str], RunConfig] = {}
    for config in configs:
        different.setdefault(task_overrides(config.overrides), config)
    return Command(sweep, list(different.values()), complete, multirun, grid)


def _grid(product: Sequence[Combination], composed: Compose) -> Grid:
    """Return the settings that options of a sweep do not have (each option is composed once, by itself)."""
    options: dict[str, DictConfig] = {}

    def has(option: str, key: str) -> bool:
        if option not in options:
            options[option] = composed([option])
        section, _, name = key.rpartition(".")
        parent = OmegaConf.select(options[option], section)
        return isinstance(parent, DictConfig) and name in list(parent)

    return Grid(foreign_settings(product, GROUPS, has))


def config_folders(config_dir: Path, arguments: Sequence[str]) -> list[Path]:
    """Return the folders of the options: the project's or that of ``--config-path``, then ``--config-dir``.

    Relative paths are relative to the folder of the command.
    """
    given = get_args_parser().parse_known_args(list(arguments))[0]
    main = Path(given.config_path).absolute() if given.config_path else config_dir
    return [main, *([Path(given.config_dir).absolute()] if given.config_dir else [])]


def config_name(arguments: Sequence[str]) -> str:
    """Return the name of the configuration's root file without suffix: ``--config-name`` or ``config``."""
    given: str | None = get_args_parser().parse_known_args(list(arguments))[0].config_name
    return (given or "config").removesuffix(".yaml")


@contextmanager
def _composing(folders: Sequence[Path], name: str) -> Iterator[Compose]:
    """Set Hydra up with the search path of its own start: of two files with one name, the first is used."""
    first, *others = folders
    if not first.is_dir():
        raise SearchPathException(f"--config-path={first}: there is no such folder")
    with initialize_config_dir(config_dir=str(first), version_base="1.3"):
        path = create_config_search_path(str(first))
        for folder in others:
            if not folder.is_dir():
                raise SearchPathException(f"--config-dir={folder}: there is no such folder")
            path.prepend("command-line", f"file://{folder}", SearchPathQuery(provider="schema"))
        GlobalHydra.instance().clear()
        Hydra.create_main_hydra2("q2n", path)
        if not any((folder / f"{name}.yaml").is_file() for folder in folders):
            names = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
            raise ConfigurationError(
                f"--config-name={name}: there is no {name}.yaml in {' or '.join(map(str, folders))}"
                f"{did_you_mean(name, names)} (there: {', '.join(names) or 'none'})"
            )

        def composed(overrides: Sequence[str]) -> DictConfig:
            for override in overrides:
                _refuse_nameless(override, folders)
            return compose(name, list(overrides), return_hydra_config=True)

        yield composed


@cache
def _names_an_option(override: str) -> bool:
    parsed = OverridesParser.create().parse_overrides([override])[0]
    unusual = parsed.is_delete() or parsed.is_sweep_override()  # Hydra has messages of its own for them
    return unusual or isinstance(parsed.value(), (str, list, QuotedString))


def _refuse_nameless(override: str, folders: Sequence[Path]) -> None:
    """Refuse a value of a group that is no name (``tracking=null``): Hydra would raise a bare ValueError.

    Raises:
        ConfigurationError: names the group's options.
    """
    group = key_of(override)
    if group in GROUPS and not _names_an_option(override):
        names = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
        raise ConfigurationError(f"{override}: must be the name of an option (options: {', '.join(names)})")


def _product(base: DictConfig, overrides: list[str]) -> tuple[list[Combination], bool]:
    """Return the overrides of each cell of a sweep, and whether these are all cells.

    Axes in experiment files (``hydra.sweeper.params``) are included. Where a sweeper chooses the cells one
    after the other, some cells are returned for validation.
    """
    launchers.check(base.hydra)
    params = base.hydra.sweeper.get("params") or {}
    kind = base.hydra.sweeper.get("_target_", "").rpartition(".")[2]
    if kind == "OptunaSweeper":
        return search(params, overrides).extremes(), False
    if kind != "GridSweeper":
        return [[item for item in overrides if not _is_sweep(item)]], False
    return combinations(params, overrides, GlobalHydra.instance().config_loader()), True


def _is_sweep(override: str) -> bool:
    return OverridesParser.create().parse_overrides([override])[0].is_sweep_override()


def _refuse_unread(configs: Sequence[RunConfig], folders: Sequence[Path]) -> None:
    """Refuse settings that no cell of a command reads.

    Args:
        configs: the cells.
        folders: folders of the options.

    Raises:
        ConfigurationError: names each setting, the reason, and the options that read it.
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
    """List the baselines whose options refer to a top-level key."""
    files = sorted(path for folder in folders for path in (folder / "baseline").glob("*.yaml"))
    names = [path.stem for path in files if f"${{{key}}}" in path.read_text(encoding="utf-8")]
    return ", ".join(sorted(set(names)))
