"""What is written down of a cell whose worker died: the cell itself had no time to."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf, open_dict

from q2n.config import RunConfig
from q2n.records.killed import ERROR_TYPE, give_up
from q2n.records.notes import VARIABLE, Note, State, leave_note, read_note


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
        why = f"{ERROR_TYPE}: {reason}"
        leave_note(folder, sweep, Note(ref=config.ref(), decision=State.FAILED, reason=why, exit_code=1))
    elif note.decision is State.STARTED:
        give_up(note, folder, sweep, f"ended without a word: {reason}")
