"""Models from the hub or a folder, read quietly and with errors that say what to do."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from q2n.data.text import tokenizer_digest
from q2n.exceptions import ModelError
from q2n.models.adapter import ModelAdapter, adapt, require_family

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase


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
) -> LoadedModel:
    """Read model and tokenizer from a folder or from the hub.

    The configuration comes first, so that a model that cannot be served is refused before its weights are
    downloaded. Weights are read from safetensors only: pickled ones can run code.

    Raises:
        ModelError: not found, not reachable, not permitted, damaged, incomplete, quantized already, or of an
            architecture without adapter.
    """
    common: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    name = str(provenance.get("name", path))
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(path, **common)
            _require_plain(config, name)
            tokenizer = AutoTokenizer.from_pretrained(path, **common)
            model, info = cast(Any, AutoModelForCausalLM).from_pretrained(
                path,
                config=config,
                dtype=dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                output_loading_info=True,
                **common,
            )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"model {name}: cannot load {path!r}: {_first_line(error)}\n"
            "If it is on the hub: check the network, accept the model's licence there and log in with "
            "`hf auth login`, or download it and use model=path model.path=<folder>. Only safetensors are "
            "read; code that comes with a model runs with model.trust_remote_code=true only. "
            "model=smollm2_135m needs no hub."
        ) from error
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ModelError(f"model {name}: {path!r} lacks {len(info['missing_keys'])} weights: {missing}, ...")
    commit = getattr(config, "_commit_hash", None)  # which one `main` was, for a model of the hub
    return ready(model, tokenizer, {**provenance, **({"commit": commit} if commit else {})})


def _require_plain(config: Any, name: str) -> None:
    require_family(config)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(f"model {name}: is quantized already; choose the checkpoint it was made from")


def ready(model: nn.Module, tokenizer: PreTrainedTokenizerBase, provenance: Mapping[str, Any]) -> LoadedModel:
    """``model`` frozen, with its adapter."""
    model.eval().requires_grad_(False)
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
