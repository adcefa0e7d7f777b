"""Weights & Biases: a copy of the records' content.

A run is logged in one go after its record is on disk. Any failure here (no client, no account, no network, a
full disk) becomes one warning on the terminal and never loses a result.
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
"""Bytes that must still fit on the disk after a run was written; the run's last part is smaller."""


@option
class WandbTracking:
    """Logs each finished cell as a run and each finished sweep as one more run.

    The run of a sweep (``job_type`` ``sweep``) has the tables and figures of its report. All runs of a sweep
    share a group; ``group`` overrides the sweep's identifier. ``offline`` needs neither account nor network
    and writes below ``dir`` (default: ``./wandb``); ``wandb sync`` uploads such runs later.
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
            sweep_group: the sweep's identifier, or None if there is none.

        Returns:
            The run's address (online) or folder (offline), or None if logging failed.
        """
        return _guarded(lambda: self._log(record, self.group or sweep_group), record.fingerprint)

    def log_sweep(self, records: Sequence[RunRecord], sweep_group: str) -> str | None:
        """Log the results of a sweep.

        Args:
            records: the sweep's records, already saved.
            sweep_group: the sweep's identifier.

        Returns:
            The same as :meth:`log_run`.
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
        """Open a W&B run for the block; the run ends with the block, marked as failed if the block raises.

        Raises:
            RuntimeError: no API key is configured (online only).
            StorageError: the disk is full (offline only).
        """
        import wandb

        logging.getLogger("wandb").setLevel(logging.ERROR)
        settings = _settings()
        if self.mode == "online":
            wandb.setup(settings=settings)
            if not wandb.login(prompt=False):  # a prompt in the middle of a sweep would block it forever
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
    """Return the result of ``log``, or None after one warning if ``log`` raises."""
    try:
        return log()
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        safe = "its record is safe" if what != "the sweep" else "its records are safe"
        _LOG.warning("W&B: %s was not logged (%s: %s); %s", what, type(error).__name__, reason, safe)
        return None


def _check_room(folder: Path) -> None:
    """Write and delete a probe file: W&B's own process does not report a full disk.

    Raises:
        StorageError: the disk is full, so the files below ``folder`` may be incomplete.
    """
    probe = folder / ".q2n-room"
    write_text_atomic(probe, " " * _ROOM)
    probe.unlink()


def _settings() -> Any:
    """Settings of a silent client that collects no console output, code, git remote or host data."""
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
    """Tables and figures by the key they are logged under; the figures' files are below ``folder``."""
    import wandb

    infinite = [math.inf, -math.inf]  # a chart cannot show infinite values
    finite = {name: table.mask(table.isin(infinite)) for name, table in content.tables.items()}
    tables = {f"sweep/{name}": _table(table) for name, table in finite.items() if not table.empty}
    for drawn in content.figures:
        svg, png = drawn.files
        # W&B reads a dot in a key as the path into a nested value
        key = re.sub(r"[^A-Za-z0-9-]+", "_", Path(svg).stem)
        tables[f"figures/{key}"] = wandb.Image(str(folder / png), caption=drawn.caption)
    return tables


def _table(frame: pd.DataFrame) -> Any:
    import wandb

    columns, rows = table_of(frame)
    return wandb.Table(columns=columns, data=rows)
