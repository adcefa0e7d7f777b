"""Weights & Biases, as a copy of what the record already holds.

A run is logged after its record is safely on disk, in one go. Whatever goes wrong here (no client, no
account, no network, a full disk) costs one line on the terminal and never a result.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from q2n.options import option
from q2n.records.store import RunRecord, to_frame
from q2n.runtime.files import write_text_atomic
from q2n.tracking.content import config_of, history_of, run_name, summary_of, table_of

if TYPE_CHECKING:
    import pandas as pd

    from q2n.tracking.sweep import SweepContent

_LOG = logging.getLogger(__name__)
_START_SECONDS = 30.0
_FINISH_SECONDS = 120.0
_ROOM = 1 << 16
"""Bytes for which there is room after a run was written: its last part is smaller."""


@option
class WandbTracking:
    """Logs each finished cell as a run, and a sweep that has ended as one more (``job_type`` ``sweep``): the
    tables and figures of its report. All runs of a sweep share a group.

    ``offline`` needs neither account nor network and writes under ``dir`` (default: ``./wandb``), to be
    uploaded later with ``wandb sync``. ``group`` overrides the sweep's own.
    """

    project: str = Field(default="q2n", min_length=1)
    entity: str | None = None
    mode: Literal["offline", "online"] = "offline"
    group: str | None = None
    dir: str | None = None

    def log_run(self, record: RunRecord, sweep_group: str | None = None) -> str | None:
        """Log a finished cell.

        Args:
            record: the cell's record, already saved.
            sweep_group: the sweep's identifier.

        Returns:
            The run's address (online) or its folder (offline); ``None`` if it could not be logged.
        """
        return _guarded(lambda: self._log(record, self.group or sweep_group), record.fingerprint)

    def log_sweep(self, records: Sequence[RunRecord], sweep_group: str) -> str | None:
        """Log what a sweep came to.

        Args:
            records: the sweep's records, already saved.
            sweep_group: the sweep's identifier.

        Returns:
            As :meth:`log_run`.
        """
        return _guarded(lambda: self._log_sweep(records, self.group or sweep_group), "the sweep")

    def _log(self, record: RunRecord, group: str | None) -> str:
        about = {"name": run_name(record), "config": config_of(record), "group": group, "job_type": "cell"}
        with self._run(about) as run:
            run.define_metric("block")
            run.define_metric("layers/*", step_metric="block")
            history = history_of(record)
            for step, values in history:
                run.log(values, step=step)
            run.log({"results": _table(to_frame([record]))}, step=len(history))
            run.summary.update(summary_of(record))
            return self._where(run)

    def _log_sweep(self, records: Sequence[RunRecord], group: str) -> str:
        from q2n.tracking.sweep import sweep_content

        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            content = sweep_content(records, Path(folder))
            name = "sweep-" + "-".join(content.config["names"])
            about = {"name": name, "config": content.config, "group": group, "job_type": "sweep"}
            with self._run(about) as run:
                run.log(_of_sweep(content, Path(folder)), step=0)
                run.summary.update(content.summary)
                return self._where(run)

    @contextmanager
    def _run(self, about: dict[str, Any]) -> Iterator[Any]:
        """A run that ends with the block, as failed if the block fails."""
        import wandb

        logging.getLogger("wandb").setLevel(logging.ERROR)
        settings = _settings()
        if self.mode == "online":
            wandb.setup(settings=settings)
            if not wandb.login(prompt=False):  # a question in the middle of a sweep would wait for ever
                raise RuntimeError("no API key is configured: run `wandb login`, or use wandb_offline")
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            dir=self.dir and str(Path(self.dir).expanduser()),
            settings=settings,
            reinit="create_new",
            **about,
        )
        try:
            yield run
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()
        if self.mode == "offline":
            _check_room(Path(run.settings.sync_dir))

    def _where(self, run: Any) -> str:
        return str(run.url if self.mode == "online" else run.settings.sync_dir)


def _guarded(log: Callable[[], str], what: str) -> str | None:
    """What ``log`` returns; whatever goes wrong in it costs one line."""
    try:
        return log()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        safe = "its record is safe" if what != "the sweep" else "its records are safe"
        _LOG.warning("W&B: %s was not logged (%s: %s); %s", what, type(error).__name__, reason, safe)
        return None


def _check_room(folder: Path) -> None:
    """Whether the files below ``folder`` can be whole: the process that writes them does not tell.

    Raises:
        StorageError: there is no room left by now.
    """
    probe = folder / ".q2n-room"
    write_text_atomic(probe, " " * _ROOM)
    probe.unlink()


def _settings() -> Any:
    """A silent client that collects nothing by itself: no console, no code, no git remote, no host."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        init_timeout=_START_SECONDS,
        finish_timeout=_FINISH_SECONDS,
        finish_timeout_raises=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )


def _of_sweep(content: SweepContent, folder: Path) -> dict[str, Any]:
    """Tables and figures, whose files are below ``folder``, by the key they are logged under."""
    import wandb

    infinite = [math.inf, -math.inf]  # a chart has no place for them
    finite = {name: table.mask(table.isin(infinite)) for name, table in content.tables.items()}
    tables = {f"sweep/{name}": _table(table) for name, table in finite.items() if not table.empty}
    for drawn in content.figures:
        svg, png = drawn.files
        # a server takes a dot for the path into a nested value
        key = re.sub(r"[^A-Za-z0-9-]+", "_", Path(svg).stem)
        tables[f"figures/{key}"] = wandb.Image(str(folder / png), caption=drawn.caption)
    return tables


def _table(frame: pd.DataFrame) -> Any:
    import wandb

    columns, rows = table_of(frame)
    return wandb.Table(columns=columns, data=rows)
