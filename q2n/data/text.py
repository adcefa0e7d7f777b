"""Sources of text, and the token sequences made of it for calibration and evaluation."""

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
Bos = Literal["tokenizer", "each_window", "none"]
"""``tokenizer``: whatever the tokenizer puts before a text, once, as the release does; ``each_window``: every
window starts with BOS and holds ``seqlen - 1`` tokens of text; ``none``: no special tokens."""

RULE = "crops-1"
"""Changes whenever the same text and seed would give other tokens."""
Rows = Sequence[Sequence[int]]
"""Token ids of equally long sequences."""


@dataclass(frozen=True)
class TokenSet:
    """Sequences of token ids and what identifies them.

    ``tokens``: ``(n, seqlen)`` int64. ``text``: what they were taken from. ``source``: what it is called in
    messages. ``tokens_available``: how many tokens that text has. ``heldout``: ``(m, seqlen)``, more
    sequences of a calibration text, which no solver may learn from.
    """

    tokens: Tensor
    text: str = field(repr=False)
    source: str
    tokens_available: int
    heldout: Tensor | None = None

    @cached_property
    def text_sha256(self) -> str:
        """Digest of :attr:`text`."""
        return sha256_text(self.text)


class TextSource(ABC):
    """A corpus with a calibration side and an evaluation side that share no document."""

    name: str

    @property
    def title(self) -> str:
        """Name of the text in messages."""
        return repr(self.name)

    @abstractmethod
    def identity(self) -> dict[str, str]:
        """Identity of the text, for fingerprints; cheap.

        Raises:
            DataError: the text is not there.
        """

    @abstractmethod
    def documents(self, split: Split) -> list[str]:
        """The texts of one side.

        Raises:
            DataError: the text is not there; says what to use instead.
        """

    def separator(self, split: Split) -> str:
        """Text between two documents."""
        return "\n\n"

    def calibration_tokens(
        self, tokenizer: Any, nsamples: int, seqlen: int, seed: int, heldout: int = 0
    ) -> TokenSet:
        """``nsamples`` random crops of the joined text (the rule of GPTQ's release for WikiText-2), and
        ``heldout`` crops of what none of them reads. How many are held out does not change the others.

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
        """The token stream that evaluation cuts into windows of ``length``, and its text."""
        del length  # sources that draw documents by their length need it
        text = self.separator("evaluation").join(self.documents("evaluation"))
        return encode_corpus(tokenizer, text, special), text


def heldout_starts(
    generator: random.Random, taken: Sequence[int], count: int, length: int, available: int, name: str
) -> list[int]:
    """Starts of ``count`` random crops of ``length`` tokens that share no token with the crops at ``taken``.

    They may overlap each other, as calibration's own crops may.

    Args:
        available: tokens of the text.
        name: what the text is called in the complaint.

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
    """Entry ``index`` of all ranges, one after the other."""
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
    """Windows ``(n, seqlen)`` of the evaluation side; the incomplete last one is dropped.

    Args:
        max_windows: largest number of windows; None or 0 for all there are.
        stride: tokens of text between the starts of two windows, or None if they do not overlap.

    Raises:
        DataError: there is not one whole window, or ``bos`` asks for a token the tokenizer lacks.
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
    """Token ids of ``text``; ``special``: with what the tokenizer puts around a text."""
    # verbose=False: a text longer than the model's context is what is wanted here.
    ids: list[int] = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return ids


def encode_corpus(tokenizer: Any, text: str, special: bool = True) -> Sequence[int]:
    """:func:`encode` of a long text that many cells read with equal tokenizers: the last few are kept."""
    return _encoded(Rules.of(tokenizer), text, special)


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of everything that decides which ids a text becomes."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.dumps(tokenizer.get_vocab(), sort_keys=True) if backend is None else backend.to_str()
    return sha256_text(rules)


@dataclass(frozen=True)
class Rules:
    """The rules by which text becomes ids, as a key of a cache: ``digest`` is :func:`tokenizer_digest`,
    ``tokenizer`` any one with these rules."""

    digest: str
    tokenizer: Any = field(compare=False, repr=False)

    @classmethod
    def of(cls, tokenizer: Any) -> Rules:
        return cls(tokenizer_digest(tokenizer), tokenizer)


@lru_cache(maxsize=4)
def _encoded(rules: Rules, text: str, special: bool) -> Sequence[int]:
    return array("q", encode(rules.tokenizer, text, special))


def token_set(rows: Rows, text: str, source: str, available: int, heldout: Rows = ()) -> TokenSet:
    """The :class:`TokenSet` of ``rows`` and ``heldout``."""
    import torch

    tokens, others = (
        torch.tensor([list(row) for row in part], dtype=torch.int64) for part in (rows, heldout)
    )
    return TokenSet(tokens, text, source, available, others if len(others) else None)
