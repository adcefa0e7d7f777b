"""Model before its weights are read (configuration and tokenizer) and after."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from q2n.data.text import encode, tokenizer_digest
from q2n.exceptions import ModelError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from q2n.models.adapter import ModelAdapter

Streaming = Literal["auto", "on", "off"]
"""Mode in which the blocks' weights are in memory only while they are used."""
DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
"""SHA-256 digest, of which 12 characters are shown."""
PROBE = "The river runs past the old mill."
"""Text for which every tokenizer must return known tokens."""


@dataclass(frozen=True)
class Outline:
    """Model without its weights; ``config`` is transformers' own."""

    name: str
    config: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def positions(self) -> int | None:
        """Context length in tokens, or None if there is no limit (:func:`context_length`)."""
        return context_length(self.config)

    def check(self) -> None:
        """Compare the tokenizer with the embedding.

        Raises:
            ModelError: the tokenizer returns no known tokens, or ids for which the embedding has no row.
        """
        unknown = self.tokenizer.unk_token_id
        if set(encode(self.tokenizer, PROBE, special=False)) <= {unknown}:
            raise ModelError(
                f"model {self.name}: its tokenizer turns text into no tokens, so files of it are missing or "
                "damaged; copy the tokenizer of the model it was made from into its folder"
            )
        # transformers adds an unknown token to byte-level tokenizers without one, but they never return it.
        largest = max(entry for entry in self.tokenizer.get_vocab().values() if entry != unknown)
        rows = self.config.vocab_size
        if largest >= rows:
            raise ModelError(
                f"model {self.name}: its tokenizer has {len(self.tokenizer)} entries (largest id {largest}), "
                f"its embedding {rows} rows (vocab_size); use the tokenizer the model was trained with, or "
                "save the model after resize_token_embeddings()"
            )


@dataclass(frozen=True)
class LoadedModel:
    """Model ready for calibration: evaluation mode, no gradients; ``provenance`` goes into the record."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    adapter: ModelAdapter
    provenance: Mapping[str, Any]

    @property
    def weights_sentence(self) -> str:
        """Origin of the weights, for the notes under tables; digests are cut to 12 characters."""
        facts = dict(self.provenance)
        note = [str(facts.pop("note"))] if "note" in facts else []
        shown = (f"{key} {value}" for key, value in facts.items() if key not in ("name", "dtype", "rule"))
        return "; ".join([*note, ", ".join(DIGEST.sub(r"\1", text) for text in shown)])

    @property
    def tokenizer_sha256(self) -> str:
        """Digest of everything that decides the token ids of a text."""
        return tokenizer_digest(self.tokenizer)


def context_length(config: Any) -> int | None:
    """Return the context length in tokens by a model's configuration, or None if there is no limit.

    The limit is ``max_position_embeddings``, times the factor by which rotary embeddings are scaled beyond it
    (``linear`` and ``dynamic``; ``yarn`` from its original length). Configurations with the other rules
    (``llama3``, ``longrope``) contain the extended length.
    """
    limit: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if limit is None or rope.get("rope_type") not in ("linear", "dynamic", "yarn"):
        return limit
    original = rope.get("original_max_position_embeddings") or limit
    return max(limit, int(original * float(rope.get("factor") or 1)))
