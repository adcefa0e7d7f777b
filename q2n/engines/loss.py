"""What is written down of a cell whose worker died: the cell itself had no time to."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf, open_dict

from q2n import failure as failures
from q2n.config import RunConfig
from q2n.fingerprint import fingerprint
from q2n.killed import ERROR_TYPE, give_up
from q2n.sweeps import VARIABLE, Note, leave_note, read_note


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
    note = read_note(folder, sweep, config.key)
    if note is None:
        lost = {"decision": "failed", "reason": f"{ERROR_TYPE}: {reason}", "exit_code": 1}
        leave_note(folder, sweep, _never_taken_up(config).model_copy(update=lost))
    elif note.decision == "started":
        give_up(note, folder, sweep, f"ended without a word: {reason}")


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
