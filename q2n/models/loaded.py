"""A model before its weights are read (configuration and tokenizer, and whether they fit), and after."""

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
"""Whether the blocks' weights are in memory only while they are used."""
DIGEST = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
PROBE = "The river runs past the old mill."


@dataclass(frozen=True)
class Outline:
    """A model without its weights; ``config`` is transformers' own."""

    name: str
    config: Any
    tokenizer: PreTrainedTokenizerBase

    @property
    def positions(self) -> int | None:
        return context_length(self.config)

    def check(self) -> None:
        """Compare the tokenizer with the embedding.

        Raises:
            ModelError: it turns text into nothing, or can return ids that the embedding has no row for.
        """
        unknown = self.tokenizer.unk_token_id
        if set(encode(self.tokenizer, PROBE, special=False)) <= {unknown}:
            raise ModelError(
                f"model {self.name}: its tokenizer turns text into no tokens, so files of it are missing or "
                "damaged; copy the tokenizer of the model it was made from into its folder"
            )
        # transformers gives byte-level tokenizers that have none an unknown token, which they never return.
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
    """A model ready for calibration: evaluation mode, no gradients. ``provenance`` goes into the record."""

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
        """Digest of everything that decides which ids a text becomes."""
        return tokenizer_digest(self.tokenizer)


def context_length(config: Any) -> int | None:
    """Tokens a sequence may have by a model's configuration, or None if it sets no limit.

    ``max_position_embeddings``; where rotary embeddings are scaled beyond it by a factor (``linear`` and
    ``dynamic``, and ``yarn`` from its original length on), as many as the factor makes of it. The other rules
    (``llama3``, ``longrope``) state the extended length themselves.
    """
    limit: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if limit is None or rope.get("rope_type") not in ("linear", "dynamic", "yarn"):
        return limit
    original = rope.get("original_max_position_embeddings") or limit
    return max(limit, int(original * float(rope.get("factor") or 1)))
