"""Tokens of the requests of tasks, and the check that requests fit a model's window.

The rule for special tokens: a request begins with the special tokens that the tokenizer puts before any text
(a BOS, or none), without a second BOS if a chat template has written one. Special tokens that the tokenizer
appends (an EOS) are left out: nothing stands between a context and its continuation, or after a prompt.

The other rules are lm-eval's. Spaces at the end of a context belong to the continuation. The tokens of the
continuation are those of the whole text after the first ``len(context tokens)``. An empty context is replaced
by the BOS, or by the EOS if the tokenizer has no BOS. Requests longer than the window are truncated on the
left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from q2n.data.text import encode, tokenizer_digest
from q2n.exceptions import ConfigurationError, UnsupportedError
from q2n.models.loaded import PROBE, context_length

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

SPARE = 16
"""Tokens that a text of ``n`` bytes may have beyond ``n``: special tokens, and a prepended space."""


@dataclass(frozen=True)
class Length:
    """Length of a request in tokens.

    Attributes:
        task: name of the task.
        item: number of the item.
        tokens: tokens that the request needs in the model's window.
        kept: tokens among them that cannot be truncated (continuation, room for generated tokens).
    """

    task: str
    item: int
    tokens: int
    kept: int

    @classmethod
    def of_pair(cls, request: Instance, before: list[int], after: list[int]) -> Length:
        """Return the length for a log-likelihood: the last token is predicted, but not read."""
        tokens = len(before) + len(after) - 1
        return cls(str(request.task_name), int(request.doc_id or 0), tokens, len(after))

    @classmethod
    def of_prompt(cls, request: Instance, prompt: int, room: int) -> Length:
        """Return the length for generation after ``prompt`` tokens, at least one of which must stay."""
        return cls(str(request.task_name), int(request.doc_id or 0), prompt + room, room + 1)


@dataclass(frozen=True)
class Reader:
    """Tokenizes requests for one model by this module's rule; equal for equal rules and windows."""

    tokenizer: Any = field(compare=False, repr=False)
    digest: str
    window: int

    @classmethod
    def of(cls, config: Any, tokenizer: Any) -> Reader:
        """Return the reader of a model; lm-eval's 2048 tokens are the window if the model sets none."""
        from lm_eval.models.utils import resolve_max_length

        window = context_length(config) or resolve_max_length(config, tokenizer)
        return cls(tokenizer, tokenizer_digest(tokenizer), window)

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """Special tokens that the tokenizer puts before and after a text."""
        bare, whole = (encode(self.tokenizer, PROBE, special) for special in (False, True))
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return whole[:start], whole[start + len(bare) :]
        raise UnsupportedError(
            "this model's tokenizer splits a text into other tokens when it adds special ones; tasks cannot "
            "be scored, since context and continuation cannot be separated"
        )

    @property
    def before(self) -> str:
        """Special tokens before every text, as text."""
        return str(self.tokenizer.decode(self._around[0]))

    @property
    def left_out(self) -> str:
        """Special tokens that the tokenizer would append, as text."""
        return str(self.tokenizer.decode(self._around[1]))

    @property
    def stand_in(self) -> int | None:
        """Token in place of an empty context, or None for a tokenizer without BOS and EOS."""
        bos: int | None = self.tokenizer.bos_token_id
        eos: int | None = self.tokenizer.eos_token_id
        return eos if bos is None else bos

    @cached_property
    def _beginning(self) -> str | None:
        """Text of :attr:`stand_in`, or None if there is none."""
        return None if self.stand_in is None else str(self.tokenizer.decode(self.stand_in))

    def ids(self, text: str) -> list[int]:
        """Return the tokens of a text after the special tokens that the tokenizer puts before it."""
        # A chat template has written the BOS already.
        if self._beginning is not None and text.startswith(self._beginning):
            return encode(self.tokenizer, text, special=False)
        ids = encode(self.tokenizer, text)
        return ids[: len(ids) - len(self._around[1])]

    def prompt(self, task: str, text: str) -> list[int]:
        """Return :meth:`ids`, or :attr:`stand_in` if there are none.

        Raises:
            UnsupportedError: the tokenizer has no stand-in; the message names the task.
        """
        return self.ids(text) or [self._require_stand_in(task)]

    def pair(self, task: str, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Return the tokens of a context and those of its continuation.

        Raises:
            UnsupportedError: there is neither context nor stand-in, or no token is the continuation's own;
                the message names the task.
        """
        bare = context.rstrip()
        before = self.ids(bare) if bare else []
        whole = context + continuation
        if before:
            after = self.ids(whole)[len(before) :]
        else:
            first, after = self._require_stand_in(task), encode(self.tokenizer, whole, special=False)
            before, after = (after[:1], after[1:]) if after[:1] == [first] else ([first], after)
        if not after:
            raise UnsupportedError(
                f"task {task}: with this model's tokenizer the continuation has no token of its own in "
                f"{context[-40:]!r} + {continuation[:40]!r}, so it has no log-likelihood; choose other tasks"
            )
        return before, after

    def _require_stand_in(self, task: str) -> int:
        """Return :attr:`stand_in`, or raise :class:`UnsupportedError` if there is none."""
        if self.stand_in is None:
            raise UnsupportedError(
                f"task {task}: has requests without a context, and this model's tokenizer has neither a BOS "
                "nor an EOS token to take its place; choose other tasks, or give the tokenizer a bos_token"
            )
        return self.stand_in

    def length(self, request: Instance) -> Length | None:
        """Return the length of a request, or None if it certainly fits the window.

        A rolling log-likelihood is computed window by window, and no text has more tokens than bytes (and
        :data:`SPARE`), so most requests need not be tokenized.

        Raises:
            UnsupportedError: see :meth:`pair` and :meth:`prompt`.
        """
        task, (text, *rest) = str(request.task_name), request.args
        if request.request_type == "loglikelihood_rolling":
            self._require_stand_in(task)
            return None
        generates = request.request_type == "generate_until"
        room = generated(rest[0]) if generates else 0
        parts = [text] if generates else [text, *rest]
        if text.strip() and all(parts) and len("".join(parts).encode()) + SPARE + room <= self.window:
            return None
        if generates:
            return Length.of_prompt(request, len(self.prompt(task, text)), room)
        return Length.of_pair(request, *self.pair(task, text, rest[0]))


def generated(settings: Mapping[str, Any]) -> int:
    """Return the maximum number of tokens generated for a request with these settings."""
    from lm_eval.models.utils import normalize_gen_kwargs

    return int(normalize_gen_kwargs(dict(settings), 256)["max_gen_toks"])  # HFLM.max_gen_toks is 256


def require_fit(lengths: Iterable[Length], window: int, truncation: bool) -> None:
    """Check that requests fit the model's window.

    Args:
        lengths: lengths of the requests.
        window: tokens of the model's window.
        truncation: True if prompts may be truncated on the left.

    Raises:
        ConfigurationError: a request does not fit, and may not or cannot be truncated; one line per task.
    """
    long: dict[str, list[Length]] = defaultdict(list)
    for length in lengths:
        if length.tokens > window and not (truncation and length.kept <= window):
            long[length.task].append(length)
    if not long:
        return
    lines, most = [], max(length.kept for found in long.values() for length in found)
    for task, found in long.items():
        items, tokens = len({length.item for length in found}), max(length.tokens for length in found)
        kept = max(length.kept for length in found)
        fixed = f", and {kept} of them cannot be cut off (an answer, room for generated tokens)"
        lines.append(
            f"task {task}: {items} items need up to {tokens} tokens, the model's window has {window}"
            + (fixed if kept > window else "")
        )
    cut = (
        ", or cut off the beginnings of such prompts with evaluation.truncation=true: record and tables "
        "then count them"
    )
    lines.append(
        "Lower evaluation.num_fewshot or evaluation.max_new_tokens, choose other tasks or a model with a "
        f"longer window{cut if most <= window else ''}"
    )
    raise ConfigurationError("\n".join(lines))
