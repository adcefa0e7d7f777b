"""Weights & Biases, as a copy of what the record already holds.

A run is logged after its record is safely on disk, in one go. Whatever goes wrong here (no client, no
account, no network, a full disk) costs one line on the terminal and never a result.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from q2n.options import option
from q2n.tracking.content import config_of, history_of, run_name, summary_of, table_of

if TYPE_CHECKING:
    from q2n.record import RunRecord

_LOG = logging.getLogger(__name__)
_START_SECONDS = 30.0
_FINISH_SECONDS = 120.0


@option
class WandbTracking:
    """Logs each finished cell as a run; the cells of a sweep share a group.

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
        try:
            return self._log(record, self.group or sweep_group)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            _LOG.warning(
                "W&B: %s was not logged (%s: %s); its record is safe",
                record.fingerprint,
                type(error).__name__,
                reason,
            )
            return None

    def _log(self, record: RunRecord, group: str | None) -> str:
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
            group=group,
            dir=self.dir,
            name=run_name(record),
            config=config_of(record),
            settings=settings,
            reinit="create_new",
        )
        try:
            where = str(run.url if self.mode == "online" else run.settings.sync_dir)
            _fill(run, record)
        except BaseException:
            run.finish(exit_code=1)
            raise
        run.finish()
        return where


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


def _fill(run: Any, record: RunRecord) -> None:
    import wandb

    run.define_metric("block")
    run.define_metric("layers/*", step_metric="block")
    history = history_of(record)
    for step, values in history:
        run.log(values, step=step)
    columns, rows = table_of(record)
    run.log({"results": wandb.Table(columns=columns, data=rows)}, step=len(history))
    run.summary.update(summary_of(record))
