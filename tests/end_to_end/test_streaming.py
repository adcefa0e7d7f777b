"""A sweep on a model in a folder, with its blocks in memory and streamed from files."""

from __future__ import annotations

import pytest
import torch
from helpers.commands import numbers, records, run
from helpers.tiny_models import SHAPES

from q2n.models.quiet import quiet_transformers
from q2n.models.spec import TinyModel


@pytest.mark.slow
def test_records_do_not_depend_on_streaming(tmp_path):
    loaded = TinyModel(name="tiny", **SHAPES["qwen2_tied_biases"]).load(torch.float32)
    folder = tmp_path / "model"
    with quiet_transformers():
        loaded.model.save_pretrained(folder, max_shard_size="100KB")
        loaded.tokenizer.save_pretrained(folder)
    found = {}
    for streaming in ("off", "on"):
        sweep = [
            "-m",
            "model=path",
            f"model.path={folder}",
            "baseline=gptq,quarot",
            "dtype=bfloat16",
            f"streaming={streaming}",
        ]
        run(tmp_path, tmp_path / f"cache_{streaming}", *sweep, f"results_dir={streaming}")
        found[streaming] = {key: numbers(it) for key, it in records(tmp_path / streaming).items()}
    assert len(found["on"]) == 2
    assert found["on"] == found["off"]


@pytest.mark.slow
def test_streaming_a_model_without_files_is_refused(tmp_path):
    out = run(tmp_path, tmp_path / "cache", "model=tiny_llama", "streaming=on", code=2)
    assert "streaming=on: model tiny_llama has random weights" in out
