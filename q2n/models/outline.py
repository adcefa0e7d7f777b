"""What is known of a model before its weights are read: configuration and tokenizer, and whether they fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from q2n.data.text import encode
from q2n.exceptions import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
"""Any of these holds the vocabulary of a tokenizer of the served families."""
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


def require_tokenizer_files(folder: Path) -> None:
    """Look for a tokenizer in a model's folder (a path that is none is of the hub).

    Raises:
        ModelError: the folder holds none.
    """
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            f"{folder}: holds no tokenizer (none of {', '.join(TOKENIZER_FILES)}); copy it from the model it "
            "was made from, or save it with tokenizer.save_pretrained()"
        )
