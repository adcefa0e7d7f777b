"""A checkpoint of Llama-3-8B's shapes, and a process that quantizes a block of it within a memory limit.

Run as a program: ``big_model.py FOLDER LIMIT_BYTES BASELINE`` prints what it needed.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch

WIDTH, INNER, KEYS, VOCABULARY = 4096, 14336, 1024, 8192
BLOCKS = 3
BLOCK = {
    "self_attn.q_proj.weight": (WIDTH, WIDTH),
    "self_attn.k_proj.weight": (KEYS, WIDTH),
    "self_attn.v_proj.weight": (KEYS, WIDTH),
    "self_attn.o_proj.weight": (WIDTH, WIDTH),
    "mlp.gate_proj.weight": (INNER, WIDTH),
    "mlp.up_proj.weight": (INNER, WIDTH),
    "mlp.down_proj.weight": (WIDTH, INNER),
    "input_layernorm.weight": (WIDTH,),
    "post_attention_layernorm.weight": (WIDTH,),
}
OUTSIDE = {
    "model.embed_tokens.weight": (VOCABULARY, WIDTH),
    "model.norm.weight": (WIDTH,),
    "lm_head.weight": (VOCABULARY, WIDTH),
}
TOKENS = (2, 64)
GiB = 2**30


def size(shapes):
    """Bytes in bfloat16."""
    return 2 * sum(torch.Size(shape).numel() for shape in shapes.values())


def write(folder: Path) -> None:
    """A sharded checkpoint of random weights, one file a block."""
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from q2n.models.tiny import byte_tokenizer

    byte_tokenizer().save_pretrained(folder)
    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=BLOCKS,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
    ).save_pretrained(folder)
    generator, places = torch.Generator().manual_seed(0), {}
    parts = [
        OUTSIDE,
        *({f"model.layers.{i}.{name}": it for name, it in BLOCK.items()} for i in range(BLOCKS)),
    ]
    for number, shapes in enumerate(parts):
        file = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = {name: weight(shape, generator) for name, shape in shapes.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, file))
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def weight(shape, generator):
    tensor = torch.empty(shape, dtype=torch.bfloat16)
    return tensor.fill_(1) if len(shape) == 1 else tensor.normal_(0, 0.02, generator=generator)


def main(folder: str, limit: int, name: str) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    from q2n.baselines.gptq import GPTQ
    from q2n.baselines.rtn import RTN
    from q2n.corrections.none import NoCorrection
    from q2n.evaluation.windows import last_hidden_states
    from q2n.models.spec import HubModel
    from q2n.pipeline.activations import activation_store
    from q2n.pipeline.blocks import BlockLoop, Method
    from q2n.pipeline.checkpoint import Checkpoint
    from q2n.records import provenance
    from q2n.runtime.signals import Interrupted

    cpu = torch.device("cpu")
    tokens = torch.randint(0, 256, TOKENS, generator=torch.Generator().manual_seed(0))
    adapter = HubModel(path=folder).load(torch.bfloat16, streaming="on").adapter
    with torch.no_grad():
        before = last_hidden_states(adapter, tokens, 2, cpu, lambda done: None)
    loaded = provenance.peak_memory_bytes()
    baseline = {"rtn": RTN, "gptq": GPTQ}[name](bits=3, group_size=128)

    def progress(block: int, group: str) -> None:
        if block == 1:  # the others take the same memory, and minutes
            raise Interrupted("one block is quantized")

    checkpoint = Checkpoint(Path(folder) / "checkpoint", "0" * 16)
    try:
        with checkpoint, activation_store("memory") as store:
            BlockLoop(
                Method(baseline, NoCorrection()),
                tokens,
                batch_size=2,
                true_sequential=True,
                store=store,
                device=cpu,
                progress=progress,
                checkpoint=checkpoint,
            ).quantize(adapter)
    except Interrupted:
        pass
    with torch.no_grad():
        after = last_hidden_states(adapter, tokens, 2, cpu, lambda done: None)
    found = {
        "finite": bool(after.isfinite().all()),
        "changed": not torch.equal(before, after),
        "peak_streaming": loaded,
        "peak": provenance.peak_memory_bytes(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
