"""Base class of text sources, and token sequences for calibration and evaluation."""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Literal

from q2n.exceptions import DataError
from q2n.runtime.files import sha256_text

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["calibration", "evaluation"]
"""Side of a text."""
Bos = Literal["tokenizer", "each_window", "none"]
"""Placement of BOS. ``tokenizer``: the tokenizer's own special tokens, once before the text, as in the
official code; ``each_window``: BOS at the start of each window, then ``seqlen - 1`` tokens of text; ``none``:
none."""

RULE = "crops-1"
"""Version of the sampling: changes whenever the same text and seed would give other tokens."""
Rows = Sequence[Sequence[int]]
"""Token ids of equally long sequences."""


@dataclass(frozen=True)
class TokenSet:
    """Sequences of token ids and what identifies them.

    Attributes:
        tokens: ``(n, seqlen)`` int64.
        text: the text that the tokens were taken from.
        source: name of the text in messages.
        tokens_available: tokens of the whole text.
        heldout: ``(m, seqlen)`` int64, further sequences that no solver may see, or None if there are none.
    """

    tokens: Tensor
    text: str = field(repr=False)
    source: str
    tokens_available: int
    heldout: Tensor | None = None

    @cached_property
    def text_sha256(self) -> str:
        """SHA-256 of :attr:`text`."""
        return sha256_text(self.text)


class TextSource(ABC):
    """A corpus with a calibration side and an evaluation side that share no document."""

    name: str
    """Name of the text in configurations."""

    @property
    def title(self) -> str:
        """Name of the text in messages."""
        return repr(self.name)

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Return what identifies the text, for fingerprints; cheap.

        Raises:
            DataError: the text is missing.
        """

    @abstractmethod
    def documents(self, split: Split) -> list[str]:
        """Return the texts of one side.

        Raises:
            DataError: the text is missing; the message names an alternative.
        """

    def separator(self, split: Split) -> str:
        """Return the text between two documents."""
        return "\n\n"

    def calibration_tokens(
        self, tokenizer: Any, nsamples: int, seqlen: int, seed: int, heldout: int = 0
    ) -> TokenSet:
        """Return random crops of the joined calibration text (the rule of GPTQ's code for WikiText-2).

        Args:
            tokenizer: the model's tokenizer.
            nsamples: number of crops; they may overlap.
            seqlen: tokens per crop.
            seed: of the places.
            heldout: number of further crops that share no token with the others, which do not depend on it.

        Raises:
            DataError: the text has fewer than ``nsamples * seqlen`` tokens, or no room for held-out crops.
        """
        text = self.separator("calibration").join(self.documents("calibration"))
        ids = encode_corpus(tokenizer, text)
        needed = max(nsamples * seqlen, seqlen + 1)
        if len(ids) < needed:
            raise DataError(
                f"calibration text {self.title} has {len(ids)} tokens; nsamples={nsamples} of "
                f"seqlen={seqlen} need {needed}: lower calibration.nsamples or calibration.seqlen, or "
                "choose a larger text"
            )
        generator = random.Random(seed)
        starts = [generator.randint(0, len(ids) - seqlen - 1) for _ in range(nsamples)]
        free = heldout_starts(generator, starts, heldout, seqlen, len(ids), self.title)
        rows, others = ([ids[start : start + seqlen] for start in part] for part in (starts, free))
        return token_set(rows, text, self.title, len(ids), others)

    def evaluation_ids(self, tokenizer: Any, length: int, special: bool) -> tuple[Sequence[int], str]:
        """Return the token stream that evaluation cuts into windows of ``length``, and its text."""
        del length  # only sources that draw documents by their length use it
        text = self.separator("evaluation").join(self.documents("evaluation"))
        return encode_corpus(tokenizer, text, special), text


def heldout_starts(
    generator: random.Random, taken: Sequence[int], count: int, length: int, available: int, name: str
) -> list[int]:
    """Return starts of random crops, which may overlap, but share no token with the crops at ``taken``.

    Args:
        generator: continued from the draws of ``taken``.
        taken: starts of the calibration crops.
        count: number of starts.
        length: tokens per crop, of both kinds.
        available: tokens of the text.
        name: name of the text in the message.

    Raises:
        DataError: no place is left for such a crop.
    """
    before = [-length, *sorted(taken)]
    after = [*sorted(taken), available - 1]
    gaps = zip(before, after, strict=True)
    free = [range(first + length, last - length + 1) for first, last in gaps if last - first >= 2 * length]
    places = sum(map(len, free))
    if count and not places:
        raise DataError(
            f"calibration text {name}: its {len(taken)} calibration sequences leave no {length} tokens in "
            "a row to hold out; lower calibration.nsamples or calibration.seqlen, choose a larger text, or "
            "set calibration.heldout=0"
        )
    return [_nth(free, generator.randrange(places)) for _ in range(count)]


def _nth(ranges: Sequence[range], index: int) -> int:
    """Return entry ``index`` of the concatenated ranges."""
    for part in ranges:
        if index < len(part):
            return part[index]
        index -= len(part)
    raise IndexError(index)


def evaluation_windows(
    source: TextSource,
    tokenizer: Any,
    seqlen: int,
    max_windows: int | None = None,
    bos: Bos = "tokenizer",
    stride: int | None = None,
) -> TokenSet:
    """Return windows ``(n, seqlen)`` of the evaluation side; an incomplete last window is dropped.

    Args:
        source: the text.
        tokenizer: the model's tokenizer.
        seqlen: tokens per window, BOS included.
        max_windows: maximum number of windows; None or 0 for all.
        bos: placement of BOS.
        stride: tokens of text between the starts of two windows, or None if windows do not overlap.

    Raises:
        DataError: the text is shorter than one window, or ``bos`` asks for a token the tokenizer lacks.
    """
    prefix: Sequence[int] = []
    if bos == "each_window":
        if tokenizer.bos_token_id is None:
            raise DataError("bos=each_window: this tokenizer has no BOS token; use bos=tokenizer or bos=none")
        prefix = [tokenizer.bos_token_id]
    length = seqlen - len(prefix)
    step = stride or length
    ids, text = source.evaluation_ids(tokenizer, length, bos == "tokenizer")
    count = 1 + (len(ids) - length) // step
    if count <= 0:
        raise DataError(
            f"evaluation text {source.title} has {len(ids)} tokens; one window needs {length}: lower "
            "the evaluation's seqlen or choose a larger text"
        )
    count = min(count, max_windows or count)
    rows = [[*prefix, *ids[index * step : index * step + length]] for index in range(count)]
    return token_set(rows, text, source.title, len(ids))


def encode(tokenizer: Any, text: str, special: bool = True) -> list[int]:
    """Return the token ids of ``text``, with the special tokens that the tokenizer adds if ``special``."""
    # verbose=False: no warning of a text longer than the model's context; it is cut into windows later.
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def encode_corpus(tokenizer: Any, text: str, special: bool = True) -> Sequence[int]:
    """Return :func:`encode` of a long text; the last few are kept, since many cells read the same text."""
    return _encoded(Rules.of(tokenizer), text, special)


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest of everything that decides the token ids of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    return sha256_text(rules)


@dataclass(frozen=True)
class Rules:
    """Rules of a tokenizer as a cache key.

    Equal if ``digest`` (:func:`tokenizer_digest`) is; ``tokenizer`` is any tokenizer with these rules.
    """

    digest: str
    tokenizer: Any = field(compare=False, repr=False)

    @classmethod
    def of(cls, tokenizer: Any) -> Rules:
        """Return the rules of a tokenizer."""
        return cls(tokenizer_digest(tokenizer), tokenizer)


@lru_cache(maxsize=4)
def _encoded(rules: Rules, text: str, special: bool) -> Sequence[int]:
    # An array of 64-bit integers takes a fraction of the memory of a list of Python integers.
    return array("q", encode(rules.tokenizer, text, special))


def token_set(rows: Rows, text: str, source: str, available: int, heldout: Rows = ()) -> TokenSet:
    """Return the :class:`TokenSet` of the sequences ``rows`` and ``heldout``."""
    import torch

    tokens, others = (
        torch.tensor([list(row) for row in part], dtype=torch.int64) for part in (rows, heldout)
    )
    return TokenSet(tokens, text, source, available, others if len(others) else None)
