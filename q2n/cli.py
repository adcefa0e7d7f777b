"""The command line: check everything, hand over to Hydra, show the table, leave with an honest exit code.

Exit codes: 0 all cells finished (or were reused), 1 a cell failed, 2 the configuration cannot be run,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from q2n.config import RunConfig
from q2n.exceptions import Q2NError
from q2n.hydra_errors import explain
from q2n.outcomes import OutcomeLog
from q2n.preflight import config_folders, preflight

CONFIG_DIR = Path(__file__).resolve().parent.parent / "conf"

_log = OutcomeLog()


def main() -> None:
    """Entry point of ``run.py``."""
    # Hydra then raises instead of printing a traceback of its own and leaving with code 1.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    arguments = sys.argv[1:]
    try:
        _log.expect(preflight(CONFIG_DIR, arguments))
        _hydra_main()
    except Q2NError as error:
        _leave(f"{type(error).__name__}: {error}", error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        _leave(f"ConfigurationError: {explain(error, config_folders(CONFIG_DIR, arguments), arguments)}", 2)
    except KeyboardInterrupt:
        _leave("interrupted; finished cells are kept and will be reused", 130)
    sys.exit(_log.close())


@hydra.main(config_path=str(CONFIG_DIR), config_name="config", version_base="1.3")
def _hydra_main(composed: DictConfig) -> None:
    from q2n.run import run_cell

    runtime = HydraConfig.get()
    multirun = runtime.mode == hydra.types.RunMode.MULTIRUN
    config = RunConfig.from_hydra(composed, runtime.runtime.choices, tuple(runtime.overrides.task))
    _log.add(run_cell(config, sweep=runtime.sweep.dir if multirun else None, title=_log.title(config)))


def _leave(message: str, code: int) -> NoReturn:
    _log.show()
    print(message, file=sys.stderr)
    sys.exit(code)
