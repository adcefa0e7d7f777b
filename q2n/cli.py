"""Command line: check all cells, hand over to Hydra, print the table, return the exit code.

Exit codes:

* 0: all cells finished (or were reused)
* 1: a cell failed
* 2: the configuration cannot be run
* 75: interrupted by SIGINT (Ctrl-C) or SIGTERM (a batch system's time limit); finished cells and the
  checkpoint of the unfinished cell are kept, and the same command resumes from there
* 130, 143 (as a shell shows them): a second such signal, which does not wait for a checkpoint
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from q2n.command import supervisor
from q2n.command.grid import GridSweeper
from q2n.command.hydra_errors import explain
from q2n.command.outcomes import Command, ended, exit_code, shared_settings, show, track, without_shared
from q2n.command.preflight import config_folders, preflight
from q2n.config import RunConfig
from q2n.exceptions import Q2NError, UnsupportedError
from q2n.launchers.optuna import trial_of
from q2n.plan.fit import misfit
from q2n.records.notes import VARIABLE, State, group_of, new_id, read_sweep
from q2n.runtime import signals as interruption
from q2n.runtime.files import FULL

CONFIG_DIR = Path(__file__).resolve().parent.parent / "conf"

INTERRUPTED = (
    "interrupted; finished cells are kept, the same command resumes the unfinished cell from its checkpoint"
)

_busy: list[tuple[RunConfig, str, str | None]] = []
"""Cells that other processes were running at their turn: configuration, title, group."""


def main() -> None:
    """Run the command line of ``run.py`` and exit the process with its code."""
    # Hydra then raises instead of printing a traceback of its own and leaving with code 1.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    arguments = sys.argv[1:]
    command = Command(new_id())
    death = supervisor.in_child()
    try:
        with interruption.graceful():
            command = preflight(CONFIG_DIR, arguments, command.sweep)
            if not death:
                for remark in command.grid.remarks:
                    print(remark, file=sys.stderr)
            if any(config.scalars.plan for config in command.cells):
                from q2n.plan.table import plan, show_plan

                sys.exit(show_plan(plan(command.cells), command.complete))
            misfits = _misfits(command)
            if death and not command.goes_on(death):
                _leave(command, f"the process of the command {death.how}", 1)
            elif command.cells:
                if not death:
                    command.announce(misfits)
                    shared = shared_settings([config.label for config in command.cells])
                    if shared and command.complete:
                        print(f"all {len(command.cells)} cells: {' '.join(shared)}", file=sys.stderr)
                sys.argv.append(f"+hydra.job.env_set.{VARIABLE}={command.sweep}")
            # Hydra would resolve a relative path beside this file.
            sys.argv.append(f"--config-path={config_folders(CONFIG_DIR, arguments)[0]}")
            GridSweeper.chosen = command.to_run(misfits)
            _hydra_main()
            _visit_busy_again(command.sweep)
    except Q2NError as error:
        _leave(command, f"{type(error).__name__}: {error}", error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        message = explain(error, config_folders(CONFIG_DIR, arguments), arguments)
        _leave(command, f"ConfigurationError: {message}", 2)
    except KeyboardInterrupt:  # Interrupted, too
        _leave(command, INTERRUPTED, interruption.EXIT_CODE)
    except Exception as error:  # of a launcher or of Hydra's own files: cells may have finished nevertheless
        message = traceback.format_exc()
        if isinstance(error, OSError) and error.errno in (*FULL, errno.EROFS, errno.EACCES):
            where = f"{error.filename or Path.cwd()} (Hydra's copy of the configuration)"
            message = f"StorageError: {error.strerror}: {where}"
        _leave(command, message, 1)
    outcomes = command.outcomes()
    whole = show(outcomes)
    track(command, outcomes)
    sys.exit(max(exit_code(outcomes, command.multirun), int(not whole)))


def _misfits(command: Command) -> list[tuple[RunConfig, UnsupportedError]]:
    """Return the cells of a grid that can never run, each with the reason.

    Raises:
        UnsupportedError: the command has one cell, and it is such a cell.
    """
    found = [(config, error) for config in command.cells if (error := misfit(config))]
    if found and not command.multirun:
        raise found[0][1]
    return found if command.complete else []


def run_composed(composed: DictConfig) -> float | None:
    """Run one cell, in the process that Hydra's launcher chose, and return the number a sweeper optimises."""
    from q2n.cells.run import objective, run_cell

    runtime = HydraConfig.get()
    sweep, group = os.environ.get(VARIABLE), None
    # All paths are relative to the command's folder, whatever hydra.job.chdir is.
    with contextlib.chdir(runtime.runtime.cwd):
        watch = trial_of(runtime.sweeper)
        config = RunConfig.from_hydra(composed, runtime)
        title = f"[1/1] {config.label}"
        comes_back = False  # to a cell that another process runs, after all other cells
        if runtime.mode == RunMode.MULTIRUN:
            launcher, sweeper = str(runtime.launcher._target_), str(runtime.sweeper._target_)
            comes_back = launcher.endswith(".BasicLauncher") and sweeper.endswith(".GridSweeper")
            announced = read_sweep(config.scalars.results_dir, sweep) if sweep else None
            labels = [cell.label for cell in announced.cells] if announced else []
            label = without_shared(config.label, shared_settings(labels))
            title = f"[{runtime.job.num + 1}/{len(labels) or '?'}] {label}"
            group = group_of(sweep) if sweep else runtime.sweep.dir
        with interruption.graceful():  # in a launcher's worker process, too
            outcome = ended(config, sweep) if sweep and supervisor.goes_on() else None
            if outcome is None:
                supervisor.taken_up()
                outcome = run_cell(config, sweep, title, group, not comes_back, watch)
    if outcome.decision is State.BUSY:
        _busy.append((config, title, group))
    if outcome.record is None:
        return None
    return objective(outcome.record, config.scalars.objective, OmegaConf.select(runtime.sweeper, "direction"))


def _visit_busy_again(sweep: str) -> None:
    """Run the cells that another process was running at their turn, or reuse its records."""
    from q2n.cells.run import run_cell

    for config, title, group in _busy:
        run_cell(config, sweep, title, group)
    _busy.clear()


# Undecorated, the function can be pickled by name for the workers of a launcher.
_hydra_main = hydra.main(config_path=str(CONFIG_DIR), config_name="config", version_base="1.3")(run_composed)


def _leave(command: Command, message: str, code: int) -> NoReturn:
    show(command.outcomes())
    print(message, file=sys.stderr)
    sys.exit(code)
