"""Loading of models from the hub or a folder, with errors that name the remedy."""

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
"""Files of which one has the vocabulary of a tokenizer of the supported families."""


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

    :func:`read_outline` comes first, so that an unsupported model is refused before its weights are
    downloaded. Weights are read from safetensors only, because pickled weights can run code.

    Args:
        path: folder, or id of a repository of the hub.
        dtype: dtype of the weights in memory.
        provenance: facts about the weights for the record, ``name`` among them.
        revision: branch, tag or commit on the hub, or None for ``main``.
        trust_remote_code: run code that comes with the model.
        streaming: keep blocks in files until they are used (``on``, ``off``), or only if the model would take
            more than :data:`MEMORY_SHARE` of the free memory (``auto``).

    Raises:
        ModelError: the model is not found, not reachable, not permitted, damaged, incomplete, already
            quantized, or of an unsupported architecture.
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
    """Read and check configuration and tokenizer from a folder or from the hub, without weights.

    Raises:
        ModelError: the model is not found, not reachable, not permitted, damaged, already quantized, of an
            unsupported architecture, or its tokenizer is missing or another model's.
    """
    revision, folder = revision or "main", Path(path)
    with _reading(path, name), quiet_transformers():
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)
        require_family(config)
        if getattr(config, "quantization_config", None) is not None:
            raise ModelError(f"model {name}: is already quantized; choose the unquantized checkpoint")
        if (
            not trust_remote_code  # code of its own may read any file
            and folder.is_dir()
            and not any((folder / file).is_file() for file in TOKENIZER_FILES)
        ):
            raise ModelError(
                f"{folder}: contains no tokenizer (none of {', '.join(TOKENIZER_FILES)}); copy the tokenizer "
                "of the base model, or save it with tokenizer.save_pretrained()"
            )
        tokenizer = _tokenizer(path, revision, trust_remote_code, _commit(config) or _versions(folder))
    outline = Outline(name, config, tokenizer)
    outline.check()
    return outline


def _commit(config: Any) -> str | None:
    """Return the commit of a model of the hub, to which ``main`` was resolved."""
    return getattr(config, "_commit_hash", None)


@contextmanager
def _reading(path: str, name: str) -> Iterator[None]:
    """Turn every error of reading a model into one :class:`ModelError`, inside the block."""
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
    """Return the files from which blocks will be read, or None if the whole model is read at once."""
    if streaming == "off":
        return None
    files = WeightFiles.find(path, revision)
    fits = files.bytes(dtype) <= MEMORY_SHARE * available_memory()
    return None if streaming == "auto" and fits else files


@lru_cache(maxsize=2)
def _tokenizer(
    path: str, revision: str, trust_remote_code: bool, _version: object
) -> PreTrainedTokenizerBase:
    """Read the tokenizer once for all cells of a process; a caller that changes it must copy it."""
    options: Any = {"revision": revision, "trust_remote_code": trust_remote_code}
    return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(path, **options))


def _versions(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of the files of a folder; empty if it is no folder."""
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
    """Freeze ``model``, fuse its norms and feed-forward networks, and add its adapter."""
    fuse(model.eval().requires_grad_(False))
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    return LoadedModel(model, tokenizer, adapt(model), {**provenance, **facts})
