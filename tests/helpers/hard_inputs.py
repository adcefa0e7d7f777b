"""Inputs and models whose statistics are zero, singular, tiny or too large."""

import torch

from q2n.diagnostics.null_space import NullSpaceMeasures
from q2n.models.spec import TinyModel
from q2n.pipeline.activations import activation_store
from q2n.pipeline.blocks import BlockLoop, Method
from q2n.pipeline.sharing.context import StageContext, StageMemory
from q2n.pipeline.sharing.keys import StageKeys
from q2n.pipeline.sharing.static import StaticStages
from q2n.pipeline.sharing.store import StageStore


def ordinary(sequences, tokens, columns):
    """``(n, T, C)``, correlated and with a mean."""
    generator = torch.Generator().manual_seed(5)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    return torch.randn(sequences, tokens, columns, generator=generator) @ mixing + 0.2


def changed(change):
    def inputs(sequences, tokens, columns):
        batch = ordinary(sequences, tokens, columns)
        result = change(batch)
        return batch if result is None else result

    return inputs


def _put(batch, value):
    batch[0, 0, 0] = value


def _dead(batch):
    batch[..., ::3] = 0


SMALL = {
    "zero": changed(torch.zeros_like),
    "constant": changed(lambda batch: torch.full_like(batch, 0.5)),
    "rank one": changed(lambda batch: batch[..., :1] * torch.linspace(-1, 1, batch.shape[-1])),
    "dead columns": changed(_dead),
    "one live column": changed(lambda batch: batch * torch.eye(batch.shape[-1])[0]),
    "one outlier": changed(lambda batch: _put(batch, 1e6)),
    "subnormal squares": changed(lambda batch: batch * 1e-21),
    "squares below float32": changed(lambda batch: batch * 1e-25),
    "subnormal": changed(lambda batch: batch * 1e-41),
    "mixed magnitudes": changed(lambda batch: batch * torch.logspace(-22, 12, batch.shape[-1])),
    "large": changed(lambda batch: batch * 1e15),
}
"""Inputs that have statistics in float32: everything must work."""

LARGE = {
    "squares beyond float32": changed(lambda batch: batch * 1e25),
    "NaN": changed(lambda batch: _put(batch, float("nan"))),
    "infinite": changed(lambda batch: _put(batch, float("-inf"))),
}
"""Inputs that have none."""


def _zero_mlp(model):
    model.model.layers[0].post_attention_layernorm.weight.zero_()


def _zero_attention(model):
    model.model.layers[1].input_layernorm.weight.zero_()


def _zero_up(model):
    model.model.layers[0].mlp.up_proj.weight.zero_()


def _all_zero(model):
    for layer in model.model.layers:
        layer.input_layernorm.weight.zero_()
        layer.post_attention_layernorm.weight.zero_()


def _equal_tokens(model):
    table = model.model.embed_tokens.weight
    table.copy_(table[5].expand_as(table))


def _dead_channels(model):
    model.model.layers[0].input_layernorm.weight[3] = 0
    model.model.layers[1].post_attention_layernorm.weight[:32] = 0


def _one_channel(model):
    gain = model.model.layers[0].post_attention_layernorm.weight
    gain.copy_(torch.eye(len(gain))[4])


def _tiny(factor):
    def spoil(model):
        model.model.layers[0].post_attention_layernorm.weight.mul_(factor)

    return spoil


def _outlier(model):
    model.model.layers[0].input_layernorm.weight[3] = 1e4


MODELS = {
    "inputs of the MLP are zero": _zero_mlp,
    "inputs of the attention are zero": _zero_attention,
    "inputs of down_proj are zero": _zero_up,
    "all inputs are zero": _all_zero,
    "all tokens are equal": _equal_tokens,
    "dead channels": _dead_channels,
    "one live channel": _one_channel,
    "one outlier": _outlier,
    "tiny inputs": _tiny(1e-12),
    "subnormal squares": _tiny(1e-22),
    "squares below float32": _tiny(1e-26),
}
"""What is done to a tiny model whose layers then have statistics that are zero, singular or tiny."""

STAGES = ("true_sequential", "whole_block", "static")


def tokens(sequences=4, length=16):
    return torch.randint(3, 259, (sequences, length), generator=torch.Generator().manual_seed(0))


def quantized(baseline, correction, stages, spoil, tmp_path, *, dtype=torch.float32, ids=None):
    """A spoiled tiny model and its reports, with all diagnostics and held-out sequences; also the weights it
    had."""
    loaded = TinyModel(name="tiny", family="llama", head_dim=16, tied=True).load(dtype)
    with torch.no_grad():
        spoil(loaded.model)
    adapter, ids = loaded.adapter, tokens() if ids is None else ids
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    baseline.check(adapter)
    method = Method(baseline, correction.bind(baseline), NullSpaceMeasures(points=8))
    static = None
    if stages == "static":
        context = StageContext(StageStore(tmp_path, 0), torch.device("cpu"), memory=StageMemory(0))
        keys = StageKeys("statistics", "spectra", "codes")
        static = StaticStages(context, keys, baseline, method.requires, len(adapter.blocks))
    with activation_store("memory") as store:
        reports = BlockLoop(
            method,
            ids,
            batch_size=2,
            true_sequential=stages == "true_sequential",
            store=store,
            device=torch.device("cpu"),
            progress=lambda block, group: None,
            heldout=tokens(7, ids.shape[1])[5:],
            static=static,
        ).quantize(adapter)
    return loaded.model, before, reports


def numbers(value):
    """All floats of a report."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, dict):
        yield from numbers(list(value.values()))
    elif hasattr(value, "__dataclass_fields__"):
        yield from numbers(vars(value))
