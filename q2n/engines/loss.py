"""What is written down of a cell whose worker died: the cell itself had no time to."""

from __future__ import annotations

import contextlib

from omegaconf import DictConfig, OmegaConf, open_dict

from q2n import failure as failures
from q2n.config import RunConfig
from q2n.fingerprint import fingerprint
from q2n.killed import ERROR_TYPE, failure_of
from q2n.sweeps import VARIABLE, Note, leave_note, read_notes


def record_loss(composed: DictConfig, reason: str) -> None:
    """Make a failure of a cell that was taken up; note one that nobody could take up; leave what has ended.

    Args:
        composed: the cell's configuration with its ``hydra`` section.
        reason: what the engine knows of it.
    """
    sweep = OmegaConf.select(composed, f"hydra.job.env_set.{VARIABLE}")
    choices, task = composed.hydra.runtime.choices, tuple(composed.hydra.overrides.task)
    with open_dict(composed):
        del composed["hydra"]
    config = RunConfig.from_hydra(composed, choices, task)
    folder = config.scalars.results_dir
    if sweep is None:
        return
    with contextlib.suppress(OSError):  # the folder itself may be what is wrong
        notes = {note.key: note for note in read_notes(folder, sweep)}
        note = notes.get(config.key) or _never_taken_up(config)
        if note.decision != "started":
            return
        change = {"decision": "failed", "reason": f"{ERROR_TYPE}: {reason}", "exit_code": 1}
        if config.key in notes:
            failure = failure_of(note, folder, sweep)
            failure = failure.model_copy(update={"message": f"{reason}; {failure.message}"})
            failures.save(failure, folder)
            change["reason"] = failure.reason
        leave_note(folder, sweep, note.model_copy(update=change))


def _never_taken_up(config: RunConfig) -> Note:
    identity = failures.partial_identity(config)
    return Note(
        key=config.key,
        label=config.label,
        name=config.scalars.name,
        fingerprint=fingerprint(identity),
        cell=config.cell,
        decision="started",
        identity=identity,
    )
