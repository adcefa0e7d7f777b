"""Models whose blocks are read from files when they are used."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers.runs import tokens
from helpers.tiny_models import SHAPES, TOKENS, logits
from safetensors.torch import load_file, save_file

from q2n.baselines.awq import AWQ
from q2n.baselines.gptq import GPTQ
from q2n.baselines.quarot import QuaRot
from q2n.baselines.rtn import RTN
from q2n.baselines.smoothquant import SmoothQuant
from q2n.corrections.null_space import NullSpaceScale
from q2n.exceptions import ConfigurationError, ModelError, UnsupportedError
from q2n.models import loading
from q2n.models.quiet import quiet_transformers
from q2n.models.spec import HubModel, TinyModel
from q2n.pipeline.activations import activation_store
from q2n.pipeline.blocks import BlockLoop, Method
from q2n.pipeline.checkpoint import Checkpoint
from q2n.runtime.memory import available_memory
from q2n.runtime.signals import Interrupted

ON = NullSpaceScale(t=0.1, lam=0.2, skip=[])
BLOCKS = 3
BASELINES = {
    "gptq": GPTQ(bits=3, group_size=16, act_order=True),
    "awq": AWQ(bits=3, group_size=16),
    "smoothquant": SmoothQuant(bits=4),
    "quarot": QuaRot(bits=4, k_bits=4, v_bits=4),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """One folder a shape, as ``save_pretrained`` writes it, in several files."""
    made = {}
    for shape in ("llama", "qwen2_tied_biases", "qwen3_wide_heads"):
        folder = made[shape] = tmp_path_factory.mktemp(shape)
        loaded = TinyModel(name=shape, num_blocks=BLOCKS, **SHAPES[shape]).load(torch.float32)
        with quiet_transformers():
            loaded.model.save_pretrained(folder, max_shard_size="100KB")
            loaded.tokenizer.save_pretrained(folder)
        assert len(list(folder.glob("*.safetensors"))) > 2
    return made


def load(folder, streaming, dtype=torch.float32):
    return HubModel(path=str(folder)).load(dtype, streaming=streaming)


def in_memory(adapter):
    return [not any(it.is_meta for it in block.tensors().values()) for block in adapter.blocks]


def quantized(folder, streaming, baseline, where, stop=None, **options):
    """``(logits, reports)``."""
    adapter = load(folder, streaming).adapter

    def progress(block, group):
        if streaming == "on":  # only the block at work has weights
            assert in_memory(adapter) == [index == block for index in range(BLOCKS)]
        if block == stop and group == "mlp.down":
            raise Interrupted("test")

    checkpoint = Checkpoint(where / "checkpoint", "0" * 16, **options)
    with checkpoint, activation_store("memory") as store:
        reports = BlockLoop(
            Method(baseline, ON),
            tokens(),
            batch_size=2,
            true_sequential=True,
            store=store,
            device=torch.device("cpu"),
            progress=progress,
            checkpoint=checkpoint,
        ).quantize(adapter)
        return streamed_logits(adapter), [
            replace(it, solve_seconds=0.0, correct_seconds=0.0) for it in reports
        ]


@torch.no_grad()
def streamed_logits(adapter):
    adapter.prepare(TOKENS.shape[1])
    hidden = adapter.embed(TOKENS)
    for block in adapter.blocks:
        with block.on(torch.device("cpu")):
            hidden = block.forward(hidden)
    return adapter.lm_head(adapter.final_norm(hidden))


@pytest.mark.parametrize("shape", ["llama", "qwen2_tied_biases", "qwen3_wide_heads"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_streamed_model_computes_the_same(folders, shape, dtype):
    whole, streamed = load(folders[shape], "off", dtype), load(folders[shape], "on", dtype)
    assert in_memory(streamed.adapter) == [False] * BLOCKS
    assert streamed.adapter.tied == whole.adapter.tied
    assert streamed.provenance == whole.provenance
    assert torch.equal(streamed_logits(streamed.adapter), streamed_logits(whole.adapter))
    assert in_memory(streamed.adapter) == [False] * BLOCKS


@pytest.mark.parametrize("name", BASELINES)
def test_quantization_is_the_same_bit_for_bit(folders, tmp_path, name):
    for shape in ("llama", "qwen2_tied_biases") if name == "quarot" else ("qwen2_tied_biases",):
        whole = quantized(folders[shape], "off", BASELINES[name], tmp_path / "off", every=0)
        streamed = quantized(folders[shape], "on", BASELINES[name], tmp_path / "on", every=0)
        assert torch.equal(whole[0], streamed[0])
        assert whole[1] == streamed[1]
        assert not (tmp_path / "on" / "checkpoint").exists()  # nothing to go on from


@pytest.mark.parametrize("name", ["awq", "quarot"])
def test_a_streamed_cell_goes_on_and_so_does_one_in_memory(folders, tmp_path, name):
    folder, method = folders["qwen2_tied_biases"], BASELINES[name]
    whole = quantized(folder, "off", method, tmp_path / "whole", every=0)
    for begun, ended in (("on", "on"), ("on", "off"), ("off", "on")):
        where = tmp_path / f"{begun}-{ended}"
        with pytest.raises(Interrupted):
            quantized(folder, begun, method, where, stop=2)
        resumed = quantized(folder, ended, method, where, resume="required")
        assert torch.equal(whole[0], resumed[0])
        assert whole[1] == resumed[1]


def test_the_model_can_be_called_as_a_whole(folders):
    whole, streamed = load(folders["llama"], "off"), load(folders["llama"], "on")
    with torch.no_grad(), streamed.adapter.on(torch.device("cpu")):
        found = streamed.model(TOKENS, use_cache=False).logits
        assert torch.equal(found, whole.model(TOKENS, use_cache=False).logits)
        texts = streamed.model.generate(TOKENS, max_new_tokens=4, do_sample=False)
    assert torch.equal(texts, whole.model.generate(TOKENS, max_new_tokens=4, do_sample=False))
    assert in_memory(streamed.adapter) == [False] * BLOCKS


class ChangesBlocksItself(RTN):
    def rewrite(self, adapter):
        for block in adapter.blocks:
            block.linear("mlp.down_proj").weight.data.mul_(2)


def test_a_rewrite_that_would_be_lost_is_refused(folders, tmp_path):
    with pytest.raises(UnsupportedError, match=r"use streaming=off .*block\.rewrite\(change\)"):
        quantized(folders["llama"], "on", ChangesBlocksItself(bits=3, group_size=16), tmp_path)


def test_auto_streams_what_does_not_fit(folders, monkeypatch):
    size = sum(file.stat().st_size for file in folders["llama"].glob("*.safetensors"))
    for free, streamed in ((1.9 * size, True), (2.1 * size, False)):
        monkeypatch.setattr(loading, "available_memory", lambda free=free: free)
        adapter = load(folders["llama"], "auto").adapter
        assert in_memory(adapter) == [not streamed] * BLOCKS


def test_free_memory_is_a_number_of_this_machine():
    assert 2**20 < available_memory() < 2**50


def test_random_models_have_no_file():
    with pytest.raises(ConfigurationError, match="streaming=on: model tiny has random weights"):
        TinyModel(name="tiny", family="llama").load(torch.float32, streaming="on")


def test_a_weight_that_is_missing_is_named_before_anything_runs(folders, tmp_path):
    for file in folders["llama"].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    index = tmp_path / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    shard = tmp_path / tree["weight_map"]["model.layers.1.mlp.up_proj.weight"]
    kept = {name: it for name, it in load_file(shard).items() if not name.endswith("1.mlp.up_proj.weight")}
    save_file(kept, shard, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"block 1: mlp.up_proj.weight"):
        load(tmp_path, "on")


def test_logits_helper_agrees(folders):
    adapter = load(folders["llama"], "off").adapter
    assert torch.equal(streamed_logits(adapter), logits(adapter))
