"""Models from the hub or a folder, read quietly and with errors that say what to do."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as hf_logging

from q2n.exceptions import ModelError
from q2n.files import sha256_text
from q2n.models.adapter import ModelAdapter, adapt

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for calibration: evaluation mode, no gradients. ``provenance`` goes into the record."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    adapter: ModelAdapter
    provenance: Mapping[str, Any]

    @property
    def weights_sentence(self) -> str:
        """Where the weights come from, for the notes under tables."""
        facts = {key: value for key, value in self.provenance.items() if key not in ("name", "dtype", "rule")}
        return f"{self.provenance['name']}: " + ", ".join(f"{key} {value}" for key, value in facts.items())

    @property
    def tokenizer_sha256(self) -> str:
        """Digest of everything that decides which ids a text becomes."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        rules = backend.to_str() if backend is not None else json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return sha256_text(rules)


def load_pretrained(
    path: str,
    *,
    dtype: torch.dtype,
    provenance: Mapping[str, Any],
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Read model and tokenizer from a folder or from the hub.

    Raises:
        ModelError: not found, not reachable, not permitted, or of an architecture without adapter.
    """
    common: dict[str, Any] = {"revision": revision or "main", "trust_remote_code": trust_remote_code}
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(path, **common)
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, attn_implementation="sdpa", **common
            )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"model {provenance.get('name', path)}: cannot load {path!r}: {_first_line(error)}\n"
            "If it is on the hub: check the network, accept the model's licence there and log in with "
            "`hf auth login`, or download it and use model=path model.path=<folder>. "
            "model=smollm2_135m needs no hub."
        ) from error
    return ready(cast("nn.Module", model), tokenizer, provenance)


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
