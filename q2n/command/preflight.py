"""Before the first cell starts, every cell of the sweep is composed and validated.

A mistake in the fortieth cell of a sweep then costs a second, not a day. Nothing heavy is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import SearchPathException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from q2n.command.grid import Cell, Grid, foreign_settings, task_overrides
from q2n.command.summary import Command
from q2n.command.unread import refuse_unread
from q2n.config import GROUPS, RunConfig
from q2n.exceptions import ConfigurationError
from q2n.launchers import extras as engines
from q2n.launchers.space import search
from q2n.options import did_you_mean

Compose = Callable[[Sequence[str]], DictConfig]
"""From overrides to a configuration with its ``hydra`` section."""


def preflight(config_dir: Path, arguments: Sequence[str], sweep: str = "") -> Command:
    """Validate what the command line asks for and return it; without cells if none will run.

    Args:
        sweep: the command's id.

    Raises:
        ConfigurationError: a cell cannot be run.
        HydraException: a key, an option or the folder of ``--config-dir`` does not exist, or an override
            cannot be parsed.
    """
    parsed = get_args_parser().parse_args(list(arguments))
    if any(getattr(parsed, flag, None) for flag in ("help", "hydra_help", "cfg", "info", "shell_completion")):
        return Command(sweep)
    if parsed.experimental_rerun:
        raise ConfigurationError(
            "--experimental-rerun: would run what nobody has validated; give the cell's overrides again"
        )
    overrides = list(parsed.overrides)
    folders = config_folders(config_dir, arguments)
    with _composing(folders, config_name(arguments)) as composed:
        base = composed([item for item in overrides if not _is_sweep(item)])
        multirun = bool(parsed.multirun) or base.hydra.mode == RunMode.MULTIRUN
        product, complete = _product(base, overrides) if multirun else ([overrides], True)
        grid = _grid(product, composed) if multirun and complete else Grid()
        configs: dict[frozenset[str], RunConfig] = {}
        whole, used, faults = [], set[str](), []
        unread: dict[frozenset[str], dict[str, str]] = {}
        for cell in grid.cells(product):
            try:
                config = _configure(composed(cell))
            except ConfigurationError as error:
                faults.append((cell, error))
                continue
            whole.append(config)
            used |= task_overrides(cell)
            if settings := config.unread_settings():
                unread[task_overrides(cell)] = settings
            configs.setdefault(task_overrides(config.overrides), config)
        grid = replace(grid.without_corners(faults, used), unread=unread)
        refuse_unread(whole, folders)
    return Command(sweep, list(configs.values()), complete, multirun, grid)


def _grid(product: Sequence[Cell], composed: Compose) -> Grid:
    """What options of a sweep have no use for (each is composed once, by itself)."""
    options: dict[str, DictConfig] = {}

    def has(option: str, key: str) -> bool:
        if option not in options:
            options[option] = composed([option])
        section, _, name = key.rpartition(".")
        parent = OmegaConf.select(options[option], section)
        return isinstance(parent, DictConfig) and name in list(parent)

    return Grid(foreign_settings(product, GROUPS, has))


def _configure(composed: DictConfig) -> RunConfig:
    choices, task = composed.hydra.runtime.choices, tuple(composed.hydra.overrides.task)
    with open_dict(composed):
        del composed["hydra"]
    return RunConfig.from_hydra(composed, choices, task)


def config_folders(config_dir: Path, arguments: Sequence[str]) -> list[Path]:
    """Where options are looked for: the project's folder, or that of ``--config-path``, then the one that
    ``--config-dir`` adds to it; relative ones are meant from where the command was given."""
    given = get_args_parser().parse_known_args(list(arguments))[0]
    main = Path(given.config_path).absolute() if given.config_path else config_dir
    return [main, *([Path(given.config_dir).absolute()] if given.config_dir else [])]


def config_name(arguments: Sequence[str]) -> str:
    """The file that is the root of the configuration, without its suffix: ``--config-name`` or ``config``."""
    given: str | None = get_args_parser().parse_known_args(list(arguments))[0].config_name
    return (given or "config").removesuffix(".yaml")


def _check_root(folders: Sequence[Path], name: str) -> None:
    if any((folder / f"{name}.yaml").is_file() for folder in folders):
        return
    names = sorted({path.stem for folder in folders for path in folder.glob("*.yaml")})
    raise ConfigurationError(
        f"--config-name={name}: there is no {name}.yaml in {' or '.join(map(str, folders))}"
        f"{did_you_mean(name, names)} (there: {', '.join(names) or 'none'})"
    )


@contextmanager
def _composing(folders: Sequence[Path], name: str) -> Iterator[Compose]:
    """Hydra with the search path its own start will build: the first of two files of one name is used."""
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
        _check_root(folders, name)
        yield lambda overrides: compose(name, list(overrides), return_hydra_config=True)


def _product(base: DictConfig, overrides: list[str]) -> tuple[list[list[str]], bool]:
    """The override lists of a grid sweep, experiment files' ``hydra.sweeper.params`` included, and true; some
    to validate and false where another sweeper chooses the cells as it goes."""
    engines.check(base.hydra)
    sweeper = base.hydra.sweeper
    params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
    if sweeper.get("_target_", "").endswith("OptunaSweeper"):
        return search(sweeper.get("params") or {}, overrides).extremes(), False
    if not sweeper.get("_target_", "").endswith("BasicSweeper"):
        return [[item for item in overrides if not _is_sweep(item)]], False
    given = {item.split("=", 1)[0].lstrip("+~") for item in overrides}
    params = [item for item in params if item.split("=", 1)[0] not in given]
    parsed = OverridesParser.create().parse_overrides(params + overrides)
    return [list(cell) for batch in BasicSweeper.split_arguments(parsed, None) for cell in batch], True


def _is_sweep(override: str) -> bool:
    return OverridesParser.create().parse_overrides([override])[0].is_sweep_override()
