"""Adapter from the model in memory to lm-eval's model interface.

Online operations (rotations, rounding of activations, a quantized KV cache) are part of the model's modules
and therefore included in the scores.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, cast

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from q2n.data.text import encode
from q2n.evaluation.base import EvaluationContext
from q2n.evaluation.harness.prefixes import Batch, PrefixTree, Request, batches, collate, grow
from q2n.evaluation.harness.requests import Length, Reader, generated, require_fit

CPU_TOKENS, DEVICE_TOKENS = 2048, 32768
"""Tokens per forward pass with ``batch_size=auto``; halved whenever memory runs out."""
CPU_TEXTS, DEVICE_TEXTS = 8, 32
"""Texts generated at a time with ``batch_size=auto``."""
HEAD_ROWS = 128
"""Tokens per step of the head: bounds the memory of float32 logits (:mod:`q2n.evaluation.perplexity`)."""

Likelihood = tuple[float, bool]
"""Log-likelihood of a continuation, and True if greedy decoding gives this continuation."""


class HarnessModel(HFLM):  # type: ignore[misc]
    """lm-eval's Hugging Face model with a faster log-likelihood of continuations.

    Common prefixes are computed once (:mod:`q2n.evaluation.harness.prefixes`), logits only at the tokens that
    need them, in float32. :class:`q2n.evaluation.harness.requests.Reader` tokenizes the requests.

    Attributes:
        lengths: tokens that were run per request so far, by the strings of the request.
        cut: strings of the requests that were truncated on the left.
        undefined: strings of the requests for which the model's output was not a number.
    """

    def __init__(self, context: EvaluationContext, batch_size: int | str, truncation: bool = True) -> None:
        loaded = context.loaded
        cpu = context.device.type == "cpu"
        self._rows = None if batch_size == "auto" else int(batch_size)
        self._tokens = CPU_TOKENS if cpu else DEVICE_TOKENS
        self.reader = Reader.of(cast(Any, loaded.model).config, loaded.tokenizer)
        super().__init__(
            pretrained=loaded.model,
            tokenizer=copy.deepcopy(loaded.tokenizer),  # a copy, because lm-eval may add a padding token
            batch_size=self._rows or (CPU_TEXTS if cpu else DEVICE_TEXTS),
            softmax_dtype="float32",
            max_length=self.reader.window,
        )
        if self.tokenizer.pad_token_id >= self.config.vocab_size:  # added by lm-eval: no row in the embedding
            self.tokenizer: Any = loaded.tokenizer
            self.batch_size_per_gpu = 1  # without a padding token, one text at a time
        self._adapter = loaded.adapter
        self._progress = context.progress
        self._truncation = truncation
        self.lengths: dict[tuple[str, ...], int] = {}
        self.cut: set[tuple[str, ...]] = set()
        self.undefined: set[tuple[str, ...]] = set()

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the tokens of a text, after the special tokens of a request unless these are refused."""
        if add_special_tokens is False:
            return encode(self.tokenizer, string, special=False)
        return self.reader.ids(string)

    def tok_decode(self, tokens: Any, skip_special_tokens: bool = True) -> Any:
        """Return the text of tokens, or None for None."""
        if tokens is None:  # lm-eval asks for the EOS of a tokenizer that has none
            return None
        return super().tok_decode(tokens, skip_special_tokens)

    def tok_batch_encode(
        self, strings: Sequence[str], left_truncate_len: int | None = None, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Return ids and attention mask ``(B, T)`` of prompts, padded and truncated on the left."""
        prompts = (self.reader.prompt("", text) for text in strings)
        rows = [torch.tensor(prompt[-(left_truncate_len or 0) :]) for prompt in prompts]
        pad = partial(pad_sequence, batch_first=True, padding_side="left")
        ids = pad(rows, padding_value=self.tokenizer.pad_token_id or 0)
        return ids, pad([torch.ones_like(row) for row in rows])

    def loglikelihood(self, requests: list[Instance], **_: Any) -> list[Likelihood]:
        """Return the log-likelihood of each request's continuation after its context."""
        pairs = [self.reader.pair(str(request.task_name), *request.args) for request in requests]
        lengths = [Length.of_pair(request, *pair) for request, pair in zip(requests, pairs, strict=True)]
        self._note(requests, lengths, 1)
        answers = self._loglikelihood_tokens(
            [(request.args, *pair) for request, pair in zip(requests, pairs, strict=True)]
        )
        return [
            (self._defined(request, likelihood), hit)
            for request, (likelihood, hit) in zip(requests, answers, strict=True)
        ]

    def generate_until(self, requests: list[Instance], **_: Any) -> list[str]:
        """Return the generated text of each request."""
        self._progress(0.0, f"{len(requests)} texts to generate")
        rooms = [generated(request.args[1]) for request in requests]
        prompts = [len(self.reader.prompt(str(request.task_name), request.args[0])) for request in requests]
        self._note(requests, list(map(Length.of_prompt, requests, prompts, rooms)))
        texts: list[str] = super().generate_until(requests, disable_tqdm=True)
        for request, text, prompt, room in zip(requests, texts, prompts, rooms, strict=True):
            written = len(self.tok_encode(text, add_special_tokens=False))
            self.lengths[request.args[0],] = min(prompt, self.max_length - room) + written
        return texts

    def loglikelihood_rolling(self, requests: list[Instance], **_: Any) -> list[float]:
        """Return the log-likelihood of each whole text, computed window by window."""
        for request in requests:
            self.reader.length(request)
            self.lengths[request.args] = len(self.tok_encode(request.args[0]))
        sums: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return [self._defined(request, total) for request, total in zip(requests, sums, strict=True)]

    def _defined(self, request: Instance, likelihood: float) -> float:
        """Return the log-likelihood, or ``-inf`` (probability 0) if the model's output is not a number."""
        if not math.isnan(likelihood):
            return likelihood
        self.undefined.add(request.args)
        return -math.inf

    def _note(self, requests: Sequence[Instance], lengths: Sequence[Length], unread: int = 0) -> None:
        """Note the tokens of each request and the requests that are truncated.

        Args:
            requests: the requests.
            lengths: their tokens, in the same order.
            unread: tokens per request that are predicted but not read by the model.

        Raises:
            ConfigurationError: a request exceeds the window and may not or cannot be truncated.
        """
        require_fit(lengths, self.max_length, self._truncation)
        for request, length in zip(requests, lengths, strict=True):
            strings = tuple(part for part in request.args if isinstance(part, str))
            self.lengths[strings] = min(length.tokens, self.max_length) + unread
            if length.tokens > self.max_length:
                self.cut.add(strings)

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[Likelihood]:
        """Return the answers to ``((context, continuation), context ids, continuation ids)``, in order."""
        scored = [
            Request(index, tuple((before + after)[-(self.max_length + 1) :][:-1]), tuple(after))
            for index, (_, before, after) in enumerate(requests)
        ]
        window = getattr(self.config, "sliding_window", None)
        if window and max(len(request.tokens) for request in scored) > window:
            # A tree's mask would show all ancestors, also those outside the model's sliding window.
            return cast(list[Likelihood], super()._loglikelihood_tokens(requests, disable_tqdm=True))
        answers: dict[int, Likelihood] = {}
        for alike in self._rotated_alike(scored):
            for batch in batches(grow(alike), self._tokens, self._rows):
                answers.update(self._within_memory(batch))
                self._progress(len(answers) / len(scored), f"{len(answers)} of {len(scored)} answers")
        return [answers[index] for index in range(len(scored))]

    def _rotated_alike(self, requests: Sequence[Request]) -> Iterator[list[Request]]:
        """Yield groups of requests that may share a batch, longest first.

        All may, unless the rotary embedding depends on the longest sequence of a batch: then those of one
        length.
        """
        by_length: dict[int, list[Request]] = defaultdict(list)
        for request in requests:
            by_length[len(request.tokens) if self._adapter.rotates_by_length else 0].append(request)
        for length in sorted(by_length, reverse=True):  # too large a batch fails at the start
            yield by_length[length]

    def _within_memory(self, trees: Sequence[PrefixTree]) -> list[tuple[int, Likelihood]]:
        """Return the answers to a batch, by halves if memory runs out."""
        try:
            return list(self._score(collate(trees)))
        except torch.OutOfMemoryError:
            if len(trees) == 1:
                raise
        torch.cuda.empty_cache()
        half = len(trees) // 2
        return self._within_memory(trees[:half]) + self._within_memory(trees[half:])

    @torch.no_grad()
    def _score(self, batch: Batch) -> Iterator[tuple[int, Likelihood]]:
        """Yield the index and the answer of each request in a batch, after one forward pass."""
        hidden = self._adapter.base(
            input_ids=batch.ids.to(self.device),
            attention_mask=batch.mask.to(self.device),
            position_ids=batch.positions.to(self.device),
            use_cache=False,
        ).last_hidden_state
        asked = [(row, *place) for row, tree in enumerate(batch.trees) for place in tree.places]
        rows = torch.tensor([row for row, _, nodes in asked for _ in nodes])
        nodes = torch.tensor([node for _, _, nodes in asked for node in nodes])
        targets = torch.tensor([target for _, request, _ in asked for target in request.targets])
        likelihoods, greedy = self._predictions(hidden[rows, nodes], targets.to(self.device))
        counts = [len(request.targets) for _, request, _ in asked]
        parts = zip(asked, likelihoods.split(counts), greedy.split(counts), strict=True)
        for (_, request, _), likelihood, hit in parts:
            yield request.index, (float(likelihood.sum()), bool(hit.all()))

    def _predictions(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return for targets ``(m,)`` after states ``(m, D)`` log-probabilities, and True for each argmax."""
        likelihoods, greedy = [], []
        for states, wanted in zip(hidden.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True):
            logits = self._adapter.lm_head(states).float().log_softmax(dim=-1)
            likelihoods.append(logits.gather(1, wanted[:, None])[:, 0].cpu())
            greedy.append((logits.argmax(dim=-1) == wanted).cpu())
        return torch.cat(likelihoods).double(), torch.cat(greedy)
