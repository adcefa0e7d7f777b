"""Models from the hub or a folder, read quietly and with errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from q2n.exceptions import ModelError
from q2n.models import attention
from q2n.models.adapter import adapt, require_family
from q2n.models.fused import fuse
from q2n.models.loaded import LoadedModel, Outline, Streaming
from q2n.models.quiet import quiet_transformers
from q2n.models.streaming import WeightFiles, stream_blocks, streamed_model
from q2n.runtime.memory import MEMORY_SHARE, available_memory

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
"""Any of these holds the vocabulary of a tokenizer of the served families."""


def load_pretrained(
    path: str,
    *,
    dtype: torch.dtype,
    provenance: Mapping[str, Any],
    revision: str | None = None,
    trust_remote_code: bool = False,
    streaming: Streaming = "off",
) -> LoadedModel:
    """Read model and tokenizer from a folder or from the hub.

    :func:`read_outline` comes first, so that a model that cannot be served is refused before its weights are
    downloaded. Weights are read from safetensors only: pickled ones can run code.

    Args:
        streaming: whether blocks stay in files until they are used; ``auto``: if the model would take more
            than :data:`MEMORY_SHARE` of the memory that is free.

    Raises:
        ModelError: not found, not reachable, not permitted, damaged, incomplete, quantized already, or of an
            architecture without adapter.
    """
    revision = revision or "main"
    name = str(provenance.get("name", path))
    outline = read_outline(path, name, revision, trust_remote_code)
    with _reading(path, name), quiet_transformers():
        files = _files_to_stream(path, revision, dtype, streaming)
        if files is None:
            model = _whole(path, outline, dtype, revision, trust_remote_code)
        else:
            model = streamed_model(path, outline.config, files, dtype, revision)
    commit = _commit(outline.config)
    loaded = ready(model, outline.tokenizer, {**provenance, **({"commit": commit} if commit else {})})
    if files is not None:
        stream_blocks(loaded.adapter.blocks, files, dtype)
    return loaded


def read_outline(
    path: str, name: str, revision: str | None = None, trust_remote_code: bool = False
) -> Outline:
    """Configuration and tokenizer from a folder or from the hub, checked; no weights.

    Raises:
        ModelError: not found, not reachable, not permitted, damaged, quantized already, of an architecture
            without adapter, or with a tokenizer that is missing or not this model's.
    """
    revision, folder = revision or "main", Path(path)
    with _reading(path, name), quiet_transformers():
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        require_family(config)
        if getattr(config, "quantization_config", None) is not None:
            raise ModelError(f"model {name}: is quantized already; choose the checkpoint it was made from")
        if (
            not trust_remote_code  # code of its own may read any file
            and folder.is_dir()
            and not any((folder / file).is_file() for file in TOKENIZER_FILES)
        ):
            raise ModelError(
                f"{folder}: holds no tokenizer (none of {', '.join(TOKENIZER_FILES)}); copy it from the "
                "model it was made from, or save it with tokenizer.save_pretrained()"
            )
        tokenizer = _tokenizer(path, revision, trust_remote_code, _commit(config) or _versions(folder))
    outline = Outline(name, config, tokenizer)
    outline.check()
    return outline


def _commit(config: Any) -> str | None:
    """The one ``main`` was, for a model of the hub."""
    return getattr(config, "_commit_hash", None)


@contextmanager
def _reading(path: str, name: str) -> Iterator[None]:
    """Inside, every way in which reading a model fails ends in one message."""
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"model {name}: cannot load {path!r}: {reason}\n"
            "If it is on the hub: check the network, accept the model's licence there and log in with "
            "`hf auth login`, or download it and use model=path model.path=<folder>. Only safetensors are "
            "read; code that comes with a model runs with model.trust_remote_code=true only. "
            "model=smollm2_135m needs no hub."
        ) from error


def _files_to_stream(
    path: str, revision: str, dtype: torch.dtype, streaming: Streaming
) -> WeightFiles | None:
    """The files blocks will be read from, or None if the model is read whole."""
    if streaming == "off":
        return None
    files = WeightFiles.find(path, revision)
    fits = files.bytes(dtype) <= MEMORY_SHARE * available_memory()
    return None if streaming == "auto" and fits else files


@lru_cache(maxsize=2)
def _tokenizer(
    path: str, revision: str, trust_remote_code: bool, _version: object
) -> PreTrainedTokenizerBase:
    """Read once for all cells of a process; who wants to change it takes a copy."""
    options: Any = {"revision": revision, "trust_remote_code": trust_remote_code}
    return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(path, **options))


def _versions(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """The files of a folder, and which versions of them; none if it is no folder."""
    found = [(file, file.stat()) for file in sorted(folder.iterdir())] if folder.is_dir() else []
    return tuple((file.name, about.st_size, about.st_mtime_ns) for file, about in found)


def _whole(path: str, outline: Outline, dtype: torch.dtype, revision: str, trust: bool) -> nn.Module:
    model, info = cast(Any, AutoModelForCausalLM).from_pretrained(
        path,
        config=outline.config,
        dtype=dtype,
        attn_implementation=attention.NAME,
        use_safetensors=True,
        output_loading_info=True,
        revision=revision,
        trust_remote_code=trust,
    )
    if info["missing_keys"]:
        count, first = len(info["missing_keys"]), ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(f"model {outline.name}: {path!r} lacks {count} weights: {first}, ...")
    for parameter in model.parameters():  # mapped from the file; see read_tensors
        parameter.data = parameter.data.clone()
    return cast("nn.Module", model)


def ready(model: nn.Module, tokenizer: PreTrainedTokenizerBase, provenance: Mapping[str, Any]) -> LoadedModel:
    """``model`` frozen, faster where it can be, with its adapter."""
    fuse(model.eval().requires_grad_(False))
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    return LoadedModel(model, tokenizer, adapt(model), {**provenance, **facts})
