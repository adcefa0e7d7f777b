"""The adapter against Hugging Face's own forward pass, bit for bit."""

import copy

import pytest
import torch
from helpers.folders import KINDS, model_folder
from helpers.tiny_models import SHAPES, TOKENS, logits, tiny
from torch import nn
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM, OPTConfig, OPTForCausalLM

from q2n.exceptions import ModelError
from q2n.models import attention
from q2n.models.adapter import adapt
from q2n.models.shapes import DOWN, GATE_UP, O_PROJ, QKV
from q2n.models.spec import HubModel
from q2n.pipeline.activations import activation_store
from q2n.pipeline.calibration import start

DTYPES = (torch.float32, torch.bfloat16)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def theirs(adapter, tokens=TOKENS):
    return adapter.model(tokens, use_cache=False).logits


def staged(adapter, tokens=TOKENS, at=lambda block, group, inputs: None):
    """Logits from staged forwards; ``at`` is called at every stop."""
    adapter.prepare(tokens.shape[1])
    hidden = adapter.embed(tokens)
    for block in adapter.blocks:
        forward = block.staged_forward(hidden)
        while True:
            try:
                group, inputs = next(forward)
            except StopIteration as stop:
                hidden = stop.value
                break
            at(block, group, inputs)
    return adapter.lm_head(adapter.final_norm(hidden))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_block_by_block_is_the_whole_model(shape, dtype):
    adapter = tiny(shape, dtype)
    expected = theirs(adapter)
    assert expected.dtype == dtype
    assert torch.equal(logits(adapter), expected)
    assert torch.equal(staged(adapter), expected)


def test_sliding_windows_and_their_masks_are_the_models_own():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=259, sliding_window=5, attn_implementation="sdpa", **sizes, **heads)
    torch.manual_seed(0)
    adapter = adapt(MistralForCausalLM(config).eval())
    expected = theirs(adapter)
    assert torch.equal(logits(adapter), expected)
    assert torch.equal(staged(adapter), expected)
    adapter.model.config.sliding_window = 1000
    assert not torch.equal(logits(adapter), expected), "the window must matter here"


def test_stops_come_in_order_and_carry_what_the_linears_read():
    adapter = tiny("qwen3_wide_heads")
    stops, heard = [], {}

    def listen(module, arguments):
        heard[module] = arguments[0].clone()

    linears = [m for block in adapter.blocks for m in block.module.modules() if isinstance(m, nn.Linear)]
    handles = [linear.register_forward_pre_hook(listen) for linear in linears]
    theirs(adapter)
    for handle in handles:
        handle.remove()
    staged(adapter, at=lambda block, group, inputs: stops.append((block, group, inputs.clone())))
    assert [(block.index, group) for block, group, _ in stops] == [
        (index, group) for index in (0, 1) for group in (QKV, O_PROJ, GATE_UP, DOWN)
    ]
    names = [name for _, group, _ in stops[:4] for name in group.linears]
    assert len(names) == len(set(names)) == len(linears) // 2 == 7
    for block, group, inputs in stops:
        for name in group.linears:
            assert torch.equal(inputs, heard[block.linear(name)])


@pytest.mark.parametrize("shape", ["llama", "qwen2_tied_biases", "qwen3_wide_heads", "mistral"])
def test_weights_replaced_at_a_stop_are_used_from_there_on(shape):
    """The definition of true-sequential: each group sees what comes of the groups changed before it."""
    adapter, oracle = tiny(shape), tiny(shape)
    original = copy.deepcopy(adapter.model.state_dict())
    seen = []

    def coarsen(block, group, inputs):
        seen.append(inputs.clone())
        for name in group.linears:
            weight = block.linear(name).weight.data
            weight.copy_((weight * 8).round() / 8)

    actual = staged(adapter, at=coarsen)
    assert any(not torch.equal(original[name], value) for name, value in adapter.model.state_dict().items())

    expected = []  # a whole forward a group, with all groups before it changed

    def listen(module, arguments):
        expected.append(arguments[0].clone())
        raise StopIteration

    for block in oracle.blocks:
        for group in block.groups:
            handle = block.linear(group.linears[0]).register_forward_pre_hook(listen)
            with pytest.raises(StopIteration):
                theirs(oracle)
            handle.remove()
            for name in group.linears:
                weight = block.linear(name).weight.data
                weight.copy_((weight * 8).round() / 8)
    assert all(torch.equal(one, other) for one, other in zip(seen, expected, strict=True))
    assert torch.equal(actual, theirs(oracle))


def test_a_forward_begun_leaves_the_module_as_it_was():
    adapter = tiny("llama")
    block = adapter.blocks[0]
    before = list(block.module.named_modules())
    forward = block.staged_forward(adapter.embed(TOKENS))
    for _ in block.groups:
        next(forward)
        assert list(block.module.named_modules()) == before
    forward.close()


class Doubling(nn.Module):
    """Doubles its input, then halves the result of the layer."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def prepare_input(self, x):
        return 2 * x

    def forward(self, x):
        return self.linear(self.prepare_input(x)) / 2


@pytest.mark.parametrize("group", [O_PROJ, DOWN], ids=lambda group: group.name)
def test_a_wrapper_shows_its_layer_and_its_prepared_input(group):
    adapter, plain = tiny("llama"), tiny("llama")
    name = group.linears[0]
    for block in adapter.blocks:
        layer = block.linear(name)
        block.replace(name, Doubling(layer))
        assert block.linear(name) is layer
    stops, plain_stops = [], []
    actual = staged(adapter, at=lambda block, which, inputs: stops.append((which, inputs.clone())))
    expected = staged(plain, at=lambda block, which, inputs: plain_stops.append((which, inputs.clone())))
    assert torch.equal(actual, expected), "powers of two cost nothing"
    for (which, inputs), (_, plain_inputs) in zip(stops, plain_stops, strict=True):
        assert torch.equal(inputs, 2 * plain_inputs if which == group else plain_inputs)
    assert torch.equal(theirs(adapter), expected)


@pytest.mark.parametrize(("shape", "tied"), [("llama_tied_own_heads", True), ("llama", False)])
def test_tied_says_whether_the_head_is_the_embedding(shape, tied):
    adapter = tiny(shape)
    assert adapter.tied is tied
    adapter.embeddings.weight.data[5] += 1
    changed = bool((adapter.lm_head.weight[5] == adapter.embeddings.weight[5]).all())
    assert changed is tied
    assert torch.equal(logits(adapter), theirs(adapter))


def test_norms_before_groups():
    block = tiny("llama").blocks[0]
    assert block.norm_before(QKV) is block.module.input_layernorm
    assert block.norm_before(GATE_UP) is block.module.post_attention_layernorm
    assert block.norm_before(O_PROJ) is block.norm_before(DOWN) is None


def test_attention_with_other_weights():
    adapter = tiny("qwen2_tied_biases")
    block = adapter.blocks[0]
    normed = torch.randn(2, TOKENS.shape[1], adapter.hidden_size)
    weight = block.linear("self_attn.q_proj").weight
    other, original = weight * 1.5, weight.clone()
    attended = block.attend(normed, {"q_proj.weight": other})
    assert torch.equal(weight, original)
    weight.copy_(other)
    assert torch.equal(attended, block.attend(normed, {}))


def test_another_length_than_prepared_for_is_an_error():
    adapter = tiny("llama")
    adapter.prepare(8)
    with pytest.raises(ValueError, match=r"sequences of 24 tokens, but the model was prepared for 8"):
        adapter.blocks[1].forward(adapter.embed(TOKENS))


def test_prepare_leaves_no_trace_even_if_it_fails():
    adapter = tiny("llama")
    layer = adapter.blocks[0].module
    expected = theirs(adapter)
    own = layer.forward
    vars(layer)["forward"] = own  # as placement hooks do
    adapter.prepare(8)
    assert vars(layer)["forward"] is own
    del vars(layer)["forward"]
    adapter.base.rotary_emb.register_forward_pre_hook(_refuse)
    with pytest.raises(RuntimeError, match="refused"):
        adapter.prepare(8)
    adapter.base.rotary_emb._forward_pre_hooks.clear()
    assert torch.equal(theirs(adapter), expected)


def test_prepare_needs_nothing_behind_the_blocks():
    """Evaluation may have left the final norm on another device than the embeddings."""
    adapter = tiny("llama")
    adapter.final_norm.to("meta")
    adapter.prepare(8)


def _refuse(module, arguments):
    raise RuntimeError("refused")


def test_an_unknown_architecture_is_named_with_the_known_ones():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "ffn_dim": 16, "num_attention_heads": 2}
    model = OPTForCausalLM(OPTConfig(vocab_size=20, word_embed_proj_dim=16, **sizes))
    with pytest.raises(ModelError, match="'opt'; known: llama, mistral, qwen2, qwen3"):
        adapt(model)
    with pytest.raises(ModelError, match="None"):
        adapt(nn.Linear(2, 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_micro_batches_on_disk_are_those_in_memory(dtype):
    outputs = []
    for kind in ("memory", "disk"):
        adapter = tiny("llama", dtype)
        with activation_store(kind) as store:
            batches = [store.keep(adapter.embed(part)) for part in TOKENS.split(2)]
            seen = list(batches)
            for block in adapter.blocks:
                forwards = start(block, batches, store.keep)
                for _ in block.groups:
                    seen += [next(forward)[1].clone() for forward in forwards]
                batches = [store.keep(forward.finish()) for forward in forwards]
            outputs.append([tensor.clone() for tensor in (*seen, *batches)])
    assert len(outputs[0]) == 2 + 2 * 2 * 4 + 2
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "yarn"])
def test_rotation_depends_on_the_input_alone(kind, tmp_path):
    """After any other lengths, a pass is what a model fresh from Hugging Face computes of that length."""
    folder = model_folder(tmp_path, **KINDS[kind])
    adapter = HubModel(path=str(folder)).load(torch.float32).adapter
    for length in (20, 100, 48, 64, 49, 20):  # 48: what the dynamic one was trained on
        tokens = torch.randint(3, 259, (2, length), generator=torch.Generator().manual_seed(length))
        fresh = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention.NAME).eval()
        assert torch.equal(logits(adapter, tokens), theirs(adapter, tokens))
        assert torch.equal(theirs(adapter, tokens), fresh(tokens, use_cache=False).logits)
