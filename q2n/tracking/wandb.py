"""Weights & Biases, as a copy of what the record already holds.

A run is logged after its record is safely on disk, in one go. Whatever goes wrong here (no client, no
account, no network, a full disk) costs one line on the terminal and never a result.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from q2n.options import option
from q2n.runtime.files import write_text_atomic
from q2n.tracking.content import config_of, history_of, run_name, summary_of, table_of

if TYPE_CHECKING:
    from q2n.records.store import RunRecord
    from q2n.tracking.heat_maps import HeatMap
    from q2n.tracking.sweep import Curves, Sheet, SweepContent

_LOG = logging.getLogger(__name__)
_START_SECONDS = 30.0
_FINISH_SECONDS = 120.0
_ROOM = 1 << 16
"""Bytes for which there is room after a run was written: its last part is smaller."""

HEAT_MAP = "wandb/confusion_matrix/v1"
"""The heat map among the charts every W&B server has: two columns of text, and one that is the colour."""


@option
class WandbTracking:
    """Logs each finished cell as a run, and a sweep that has ended as one more (``job_type`` ``sweep``): its
    tables, heat maps and layers' curves. All runs of a sweep share a group.

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
            _fill(run, record)
            return self._where(run)

    def _log_sweep(self, records: Sequence[RunRecord], group: str) -> str:
        from q2n.tracking.sweep import sweep_content

        content = sweep_content(records)
        name = "sweep-" + "-".join(content.config["names"])
        about = {"name": name, "config": content.config, "group": group, "job_type": "sweep"}
        with self._run(about) as run:
            run.log(_of_sweep(content), step=0)
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


def _of_sweep(content: SweepContent) -> dict[str, Any]:
    """Tables and charts by the key they are logged under."""
    tables = {name: getattr(content, name) for name in ("results", "differences", "layers")}
    return {
        **{f"sweep/{name}": _table(sheet) for name, sheet in tables.items() if sheet.rows},
        **{f"heat_map/{_key(item.name)}": _heat_map(item) for item in content.heat_maps},
        **{f"layer_errors/{_key(item.layer)}": _curves(item) for item in content.curves},
    }


def _key(name: str) -> str:
    """Without what a server may take for a path into a nested value; the title has the name itself."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", name)


def _table(sheet: Sheet) -> Any:
    import wandb

    columns: list[str | int] = [*sheet.columns]
    rows: list[Iterable[Any]] = [*sheet.rows]
    return wandb.Table(columns=columns, data=rows)


def _heat_map(item: HeatMap) -> Any:
    import wandb

    columns: list[str | int] = [item.x, item.y, item.value]
    places = {"Predicted": item.x, "Actual": item.y, "nPredictions": item.value}
    table = wandb.Table(columns=columns, data=[list(cell) for cell in item.cells])
    title = {"title": f"{item.value} over {item.x} and {item.y}: {item.name}"}
    return wandb.plot_table(HEAT_MAP, table, places, title)


def _curves(item: Curves) -> Any:
    import wandb

    lines = item.lines.values()
    return wandb.plot.line_series(
        xs=[[block for block, _ in line] for line in lines],
        ys=[[error for _, error in line] for line in lines],
        keys=list(item.lines),
        title=f"{item.layer}: relative output error by block",
        xname="block",
    )
