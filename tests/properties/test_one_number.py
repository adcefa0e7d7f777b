"""One fingerprint, one number: whatever ran before in the process, whatever a cache or a checkpoint held."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers.folders import KINDS, model_folder
from helpers.static import numbers, small_cell, static_cell, write_texts

from q2n.cells.run import run_cell
from q2n.runtime.signals import Interrupted

SIZES = ("calibration.seqlen=32", "evaluation.seqlen=96", "evaluation.windows=2", "baseline=gptq", "q2n=on")
"""Evaluation is longer than calibration, and both lie on other sides of what some models were trained on."""
OTHER_SIZES = ("calibration.seqlen=80", "evaluation.seqlen=128", "baseline=rtn")
DEFAULT = ("dynamic", "sliding_mistral")
"""Kinds of the default run: one that adapts its rotation, one with masks."""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.mark.parametrize("stages", ["true_sequential", pytest.param("static", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "kind", [kind if kind in DEFAULT else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_a_fingerprint_has_one_number(kind, stages, text, tmp_path):
    model = model_folder(tmp_path / "model", **KINDS[kind])
    cell = ("model=path", f"model.path={model}", f"calibration.stages={stages}", "checkpoint_every=1")

    def ran(*sizes, cache="cache", **options):
        return numbers(static_cell(text, tmp_path, *cell, *sizes, cache=cache, **options))

    cold = ran(*SIZES)
    found = {"with all of it kept": ran(*SIZES)}
    ran(*OTHER_SIZES)
    found["after another cell"] = ran(*SIZES, cache="second")
    found["after another cell, reference kept"] = ran(*SIZES, cache="second", forget=False)
    found["streamed"] = ran(*SIZES, "streaming=on", cache="third")
    if stages == "true_sequential":  # a static cell has no activations to go on from
        found["resumed"] = resumed(small_cell(text, tmp_path, *cell, *SIZES, "force=false", cache="fourth"))
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found[f"threads: {threads}"] = ran(*SIZES, cache=f"threads{threads}")
        finally:
            torch.set_num_threads(before)
    assert [name for name, number in found.items() if number != cold] == []


def resumed(config):
    """The numbers of a cell that is interrupted after its first block and run again."""

    def stop(reports):
        raise Interrupted("test")

    shutil.rmtree(Path(config.scalars.results_dir))
    with pytest.raises(Interrupted):
        run_cell(config, watch=stop)
    outcome = run_cell(config)
    assert outcome.record is not None, outcome.why
    assert outcome.record.resumed_at == (1,)
    return numbers(outcome.record)
