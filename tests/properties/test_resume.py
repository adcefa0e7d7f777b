"""A cell that goes on from a checkpoint ends where an undisturbed one does, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.baselines import BASELINES, ON
from helpers.runs import tiny, tokens

from q2n.baselines.gptq import GPTQ
from q2n.exceptions import CheckpointError
from q2n.pipeline.activations import activation_store
from q2n.pipeline.blocks import BlockLoop, Method
from q2n.pipeline.checkpoint import MANIFEST, Checkpoint, seed_block
from q2n.runtime.signals import Interrupted

BLOCKS = 4


class Drawing(GPTQ):
    """A method that draws from the global generators, as one of a user's own may."""

    def quantize(self, problem):
        noise = torch.rand(()) + np.random.rand()
        return super().quantize(replace(problem, weight=problem.weight * (1 + 1e-3 * float(noise))))


def quantized(folder, baseline, *, stop=None, family="qwen2", activations="memory", staged=True, **options):
    """``(state of the model, reports, checkpoint)``; interrupted when block ``stop`` is at its last group."""
    loaded = tiny(family, num_blocks=BLOCKS, tied=True)

    def progress(block, group):
        if block == stop and group == "mlp.down":
            raise Interrupted("test")

    checkpoint = Checkpoint(folder / "checkpoint", "0" * 16, **{"every": 1, **options})
    with checkpoint, activation_store(activations) as store:
        reports = BlockLoop(
            Method(baseline, ON),
            tokens(),
            batch_size=2,
            true_sequential=staged,
            store=store,
            device=torch.device("cpu"),
            progress=progress,
            seed=3,
            checkpoint=checkpoint,
        ).quantize(loaded.adapter)
    numbers = [replace(report, solve_seconds=0.0, correct_seconds=0.0) for report in reports]
    return loaded.model.state_dict(), numbers, checkpoint


def expect_equal(one, other):
    assert list(one[0]) == list(other[0])
    assert all(torch.equal(one[0][name], other[0][name]) for name in one[0])
    assert one[1] == other[1]


def interrupted(folder, baseline, stop, **options):
    with pytest.raises(Interrupted):
        quantized(folder, baseline, stop=stop, **options)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_goes_on_bit_for_bit(tmp_path, name):
    whole = quantized(tmp_path / "whole", BASELINES[name])
    interrupted(tmp_path, BASELINES[name], 2)
    resumed = quantized(tmp_path, BASELINES[name], resume="required")
    assert resumed[2].resumed_at == (2,)
    expect_equal(whole, resumed)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("activations", ["memory", "disk"])
@pytest.mark.parametrize("staged", [True, False])
def test_interrupted_in_every_block(tmp_path, family, activations, staged):
    common = {"family": family, "activations": activations, "staged": staged}
    whole = quantized(tmp_path / "whole", BASELINES["gptq"], **common)
    for stop in range(BLOCKS):
        interrupted(tmp_path, BASELINES["gptq"], stop, **common)
    resumed = quantized(tmp_path, BASELINES["gptq"], **common)
    assert resumed[2].resumed_at == (1, 2, 3)
    expect_equal(whole, resumed)


def test_what_draws_at_random_draws_the_same_after_a_resume(tmp_path):
    method = Drawing(bits=3, group_size=16)
    whole = quantized(tmp_path / "whole", method)
    interrupted(tmp_path, method, 2)
    np.random.seed(99)
    torch.manual_seed(99)
    expect_equal(whole, quantized(tmp_path, method, resume="required"))


def test_seeds_differ_by_block_and_by_seed():
    drawn = set()
    for seed, block in ((0, 0), (0, 1), (1, 0)):
        seed_block(seed, block)
        drawn.add((float(torch.rand(())), np.random.rand()))
    assert len(drawn) == 3


def test_an_interruption_saves_blocks_no_checkpoint_was_due_for(tmp_path):
    whole = quantized(tmp_path / "whole", BASELINES["awq"])
    interrupted(tmp_path, BASELINES["awq"], 3, every="auto")
    resumed = quantized(tmp_path, BASELINES["awq"])
    assert resumed[2].resumed_at == (3,)
    expect_equal(whole, resumed)


def test_nothing_is_written_with_checkpoint_every_0(tmp_path):
    interrupted(tmp_path, BASELINES["rtn"], 2, every=0)
    assert not (tmp_path / "checkpoint").exists()


def test_a_finished_quantization_is_not_repeated(tmp_path):
    whole = quantized(tmp_path, BASELINES["quarot"])
    files = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    blocks = [f"block-{index:05d}.safetensors" for index in range(BLOCKS)]
    assert files == [".gitignore", *blocks, MANIFEST]  # no activations: nobody would read them
    again = quantized(tmp_path, BASELINES["quarot"], stop=0)  # block 0 is not computed, so nothing stops it
    assert again[2].resumed_at == (BLOCKS,)
    expect_equal(whole, again)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def edit(path):
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "next_block": 1}))


def of_another_cell(path):
    from q2n.pipeline.checkpoint import _signature

    tree = {**json.loads(path.read_text()), "fingerprint": "f" * 16}
    del tree["signature"]
    path.write_text(json.dumps({**tree, "signature": _signature(tree)}))


DAMAGES = [
    ("block-00001.safetensors", flip, "is damaged"),
    ("activations-00002.safetensors", cut, "is damaged"),
    ("activations-00002.safetensors", lambda path: path.unlink(), "cannot be read"),
    (MANIFEST, cut, "cannot be read"),
    (MANIFEST, edit, "its signature"),
    (MANIFEST, of_another_cell, "another cell"),
]


@pytest.mark.parametrize(("file", "damage", "reason"), DAMAGES)
def test_a_damaged_or_foreign_checkpoint_is_noticed(tmp_path, file, damage, reason):
    whole = quantized(tmp_path / "whole", BASELINES["gptq"])
    interrupted(tmp_path, BASELINES["gptq"], 2)
    damage(tmp_path / "checkpoint" / file)
    with pytest.raises(CheckpointError, match=f"resume=required.*{reason}"):
        quantized(tmp_path, BASELINES["gptq"], resume="required")
    said = []
    anew = quantized(tmp_path, BASELINES["gptq"], say=said.append)
    assert anew[2].resumed_at == ()
    assert reason in said[0]
    expect_equal(whole, anew)


def test_required_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        quantized(tmp_path, BASELINES["rtn"], resume="required")


def test_never_begins_anew(tmp_path):
    interrupted(tmp_path, BASELINES["rtn"], 2)
    assert quantized(tmp_path, BASELINES["rtn"], resume="never")[2].resumed_at == ()


def test_another_method_s_modules_are_not_filled(tmp_path):
    """A checkpoint of a rotated model, whose blocks have wrappers, in a model without them."""
    interrupted(tmp_path, BASELINES["quarot"], 2)
    said = []
    assert quantized(tmp_path, BASELINES["rtn"], say=said.append)[2].resumed_at == ()
    assert "modules or tensors" in said[0]


def test_a_full_disk_costs_only_the_checkpoint(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    whole = quantized(tmp_path / "whole", BASELINES["rtn"])
    monkeypatch.setattr("q2n.pipeline.checkpoint.write_tensors", full)
    said = []
    expect_equal(whole, quantized(tmp_path, BASELINES["rtn"], say=said.append))
    assert "No space left" in said[0]


def test_an_error_keeps_the_checkpoint_before_it(tmp_path):
    def fail(block, group):
        if block == 2:
            raise RuntimeError("test")

    checkpoint = Checkpoint(tmp_path / "checkpoint", "0" * 16, every=1)
    with pytest.raises(RuntimeError), checkpoint, activation_store("memory") as store:
        BlockLoop(
            Method(BASELINES["gptq"], ON),
            tokens(),
            batch_size=2,
            true_sequential=True,
            store=store,
            device=torch.device("cpu"),
            progress=fail,
            seed=3,
            checkpoint=checkpoint,
        ).quantize(tiny("qwen2", num_blocks=BLOCKS, tied=True).adapter)
    whole = quantized(tmp_path / "whole", BASELINES["gptq"])
    resumed = quantized(tmp_path, BASELINES["gptq"], resume="required")
    assert resumed[2].resumed_at == (2,)
    expect_equal(whole, resumed)
