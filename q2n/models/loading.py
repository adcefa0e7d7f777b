"""Models from the hub or a folder, read quietly and with errors that say what to do."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from q2n.data.text import tokenizer_digest
from q2n.exceptions import ModelError
from q2n.models import attention
from q2n.models.adapter import ModelAdapter, adapt, require_family
from q2n.models.fused import fuse
from q2n.models.outline import Outline, require_tokenizer_files
from q2n.models.streaming import WeightFiles, stream_blocks, streamed_model
from q2n.runtime.device import MEMORY_SHARE, available_memory

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from q2n.models.spec import Streaming


DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for calibration: evaluation mode, no gradients. ``provenance`` goes into the record."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    adapter: ModelAdapter
    provenance: Mapping[str, Any]

    @property
    def weights_sentence(self) -> str:
        """Where the weights come from, for the notes under tables; digests are cut to 12 characters."""
        facts = dict(self.provenance)
        note = [str(facts.pop("note"))] if "note" in facts else []
        shown = (f"{key} {value}" for key, value in facts.items() if key not in ("name", "dtype", "rule"))
        return "; ".join([*note, ", ".join(DIGEST.sub(r"\1", text) for text in shown)])

    @property
    def tokenizer_sha256(self) -> str:
        """Digest of everything that decides which ids a text becomes."""
        return tokenizer_digest(self.tokenizer)


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
    common: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    name = str(provenance.get("name", path))
    outline = read_outline(path, name, revision, trust_remote_code)
    with _reading(path, name), quiet_transformers():
        files = _files_to_stream(path, common["revision"], dtype, streaming)
        if files is None:
            model = _whole(path, outline.config, dtype, name, common)
        else:
            model = streamed_model(path, outline.config, files, dtype, common["revision"])
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
    common: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    with _reading(path, name), quiet_transformers():
        config = AutoConfig.from_pretrained(path, **common)
        _require_plain(config, name)
        if not trust_remote_code:  # code of its own may read any file
            require_tokenizer_files(Path(path))
        tokenizer = _tokenizer(path, tuple(common.items()), _commit(config) or _versions(path))
    outline = Outline(name, config, tokenizer)
    outline.check()
    return outline


def _commit(config: Any) -> str | None:
    """Which one ``main`` was, for a model of the hub."""
    return getattr(config, "_commit_hash", None)


@contextmanager
def _reading(path: str, name: str) -> Iterator[None]:
    """Inside, every way in which reading a model fails ends in one message."""
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"model {name}: cannot load {path!r}: {_first_line(error)}\n"
            "If it is on the hub: check the network, accept the model's licence there and log in with "
            "`hf auth login`, or download it and use model=path model.path=<folder>. Only safetensors are "
            "read; code that comes with a model runs with model.trust_remote_code=true only. "
            "model=smollm2_135m needs no hub."
        ) from error


def _files_to_stream(
    path: str, revision: str, dtype: torch.dtype, streaming: Streaming
) -> WeightFiles | None:
    """The files blocks will be read from; None: the model is read whole."""
    if streaming == "off":
        return None
    files = WeightFiles.find(path, revision)
    fits = files.bytes(dtype) <= MEMORY_SHARE * available_memory()
    return None if streaming == "auto" and fits else files


@lru_cache(maxsize=2)
def _tokenizer(path: str, common: tuple[tuple[str, Any], ...], _version: object) -> PreTrainedTokenizerBase:
    """Read once for all cells of a process; who wants to change it takes a copy."""
    return cast("PreTrainedTokenizerBase", AutoTokenizer.from_pretrained(path, **dict(common)))


def _versions(path: str) -> tuple[tuple[str, int, int], ...]:
    """The files of a folder, and which versions of them; none if it is no folder."""
    folder = Path(path)
    found = [(file, file.stat()) for file in sorted(folder.iterdir())] if folder.is_dir() else []
    return tuple((file.name, about.st_size, about.st_mtime_ns) for file, about in found)


def _whole(path: str, config: Any, dtype: torch.dtype, name: str, common: Mapping[str, Any]) -> nn.Module:
    model, info = cast(Any, AutoModelForCausalLM).from_pretrained(
        path,
        config=config,
        dtype=dtype,
        attn_implementation=attention.NAME,
        use_safetensors=True,
        output_loading_info=True,
        **common,
    )
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(f"model {name}: {path!r} lacks {len(info['missing_keys'])} weights: {missing}, ...")
    for parameter in model.parameters():  # mapped from the file; see read_tensors
        parameter.data = parameter.data.clone()
    return cast("nn.Module", model)


def _require_plain(config: Any, name: str) -> None:
    require_family(config)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"model {name}: is quantized already; choose the checkpoint it was made from")


def ready(model: nn.Module, tokenizer: PreTrainedTokenizerBase, provenance: Mapping[str, Any]) -> LoadedModel:
    """``model`` frozen, faster where it can be, with its adapter."""
    fuse(model.eval().requires_grad_(False))
    facts = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }
    return LoadedModel(model, tokenizer, adapt(model), {**provenance, **facts})


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and nothing below errors from transformers while the block runs."""
    hf_logging = cast(Any, transformers_logging)
    verbosity = hf_logging.get_verbosity()
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        hub.setLevel(level)
        if bars:
            hf_logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
