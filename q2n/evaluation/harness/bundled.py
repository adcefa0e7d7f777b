"""Items of the bundled tasks, made from the evaluation articles of the bundled text.

A passage is a run of whole sentences of one paragraph. Several items may end inside one passage (after its
second sentence, after its third). The model reads their common beginning once, so last-word items inside the
passages of continuation items cost almost nothing.

Nothing is random: passages are ordered by their digests, and the item's digest determines the wrong answers
and the place of the right one, so the same text gives the same items everywhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from q2n.data.bundled import BundledText
from q2n.exceptions import DataError
from q2n.runtime.files import sha256_text

TASK_FILES = Path(__file__).parent / "task_files"
"""Folder of the bundled tasks' YAML files for lm-eval."""
RULE = "items-1"
"""Version of the items: changes whenever the same text would give other items."""
ITEMS = 640
"""Maximum number of items per task: the standard error of a share near 0.5 is ``sqrt(0.25 / 640)``, 1.98
points."""
CHOICES = 4
"""Choices per continuation item."""
CHOICE_WORDS = 4
"""Words per choice, as log-likelihoods are compared per character; six words cost 17 % more tokens
(docs/LOG.md)."""
PASSAGE_WORDS = 128
"""Maximum words of a passage; with 96 there were fewer than :data:`ITEMS` items of news (docs/LOG.md)."""
SENTENCES = 4
"""Passages with fewer sentences come last: the more items per passage, the fewer tokens per item."""
CONTEXT_WORDS = 12
"""Minimum words before the continuation; twice as many before a last word."""
WORD_LETTERS = 5
"""Minimum letters of a last word."""
COMMON_WORDS = 300
"""Number of most frequent words that are never a last word: guessing them needs no context."""
ATTEMPTS = 1000
"""Draws of wrong answers per item before an error, so that a text of few articles does not loop forever."""

Kind = Literal["cloze", "lastword"]
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(A-Z])")
_PUNCTUATION = ".,;:!?\"')"


@dataclass(frozen=True)
class Passage:
    """Consecutive sentences of one paragraph; ``article`` is the number of the article."""

    article: int
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """The sentences, joined by spaces."""
        return " ".join(self.sentences)


@dataclass(frozen=True)
class SentenceBreak:
    """A place between two sentences: the passage before it, and the first words after it."""

    article: int
    context: str
    last_sentence: str
    continuation: str


def dataset(text: str, kind: Kind, cache_dir: str | None = None, **_: Any) -> dict[str, Any]:
    """Return the data set of each split, as lm-eval expects of a ``custom_dataset``.

    ``_`` receives the task's metadata, which lm-eval also passes.
    """
    from datasets import Dataset

    return {"test": Dataset.from_list(list(items(text, kind, cache_dir)))}


@cache
def items(text: str, kind: Kind, cache_dir: str | None = None) -> tuple[dict[str, Any], ...]:
    """Return the first :data:`ITEMS` items, or all if there are fewer, of one of the bundled texts.

    Raises:
        DataError: the text is not installed.
    """
    documents = BundledText(text, cache_dir).documents("evaluation")
    build = cloze_items if kind == "cloze" else last_word_items
    return tuple(islice(build(documents), ITEMS))


def passages(documents: Sequence[str]) -> list[Passage]:
    """Cut every paragraph into passages of whole sentences, of at most :data:`PASSAGE_WORDS` words.

    A longer sentence is a passage of its own. Passages of :data:`SENTENCES` or more come first; within both
    parts the order is that of the digests.
    """
    found = [
        Passage(article, sentences)
        for article, document in enumerate(documents)
        for paragraph in document.split("\n")
        for sentences in _runs(_SENTENCE_END.split(paragraph))
    ]
    return sorted(found, key=lambda item: (len(item.sentences) < SENTENCES, sha256_text(item.text)))


def cloze_items(documents: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield continuation items: a passage, and four beginnings of a next sentence, one of them the true one.

    The wrong choices are true continuations in other articles, so the choices alone do not tell which is
    right.
    """
    breaks = [place for passage in passages(documents) for place in _breaks(passage)]
    for place in breaks:
        seed = sha256_text(f"{place.context}\n{place.continuation}")
        choices = _wrong(place, breaks, documents, seed)
        answer = int(seed, 16) % CHOICES
        choices.insert(answer, place.continuation)
        yield {"article": place.article, "passage": place.context, "choices": choices, "answer": answer}


def last_word_items(documents: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield last-word items: a passage up to a word that is long, not common and occurs earlier in it.

    After LAMBADA (arXiv 1606.06031), which kept words that people could guess only from the passage.
    """
    counts = Counter(_bare(word) for document in documents for word in document.split())
    common = {word for word, _ in counts.most_common(COMMON_WORDS)}
    for passage in passages(documents):
        words = passage.text.split()
        asked: set[str] = set()
        for place in range(2 * CONTEXT_WORDS, len(words)):
            word, bare = words[place].rstrip(_PUNCTUATION), _bare(words[place])
            before = {_bare(earlier) for earlier in words[:place]}
            if word.isalpha() and len(word) >= WORD_LETTERS and bare in before - asked - common:
                asked.add(bare)
                yield {"article": passage.article, "passage": " ".join(words[:place]), "word": word}


def _runs(sentences: list[str]) -> Iterator[tuple[str, ...]]:
    """Yield runs of consecutive sentences, each as long as :data:`PASSAGE_WORDS` allows."""
    run: list[str] = []
    for sentence in sentences:
        if run and sum(len(item.split()) for item in (*run, sentence)) > PASSAGE_WORDS:
            yield tuple(run)
            run = []
        run.append(sentence)
    yield tuple(run)


def _breaks(passage: Passage) -> Iterator[SentenceBreak]:
    """Yield the places between sentences with enough words before and after."""
    for index in range(1, len(passage.sentences)):
        context = " ".join(passage.sentences[:index])
        following = passage.sentences[index].split()
        if len(context.split()) >= CONTEXT_WORDS and len(following) >= CHOICE_WORDS:
            continuation = " ".join(following[:CHOICE_WORDS])
            yield SentenceBreak(passage.article, context, passage.sentences[index - 1], continuation)


def _wrong(
    place: SentenceBreak, breaks: Sequence[SentenceBreak], documents: Sequence[str], seed: str
) -> list[str]:
    """Return three different continuations that fit other articles and do not occur in this one.

    Raises:
        DataError: too few were found in :data:`ATTEMPTS` draws.
    """
    wrong: list[str] = []
    for attempt in range(ATTEMPTS):
        other = breaks[int(sha256_text(f"{seed} {attempt}"), 16) % len(breaks)]
        if (
            other.article != place.article
            and other.continuation not in wrong
            and other.continuation not in documents[place.article]
            and place.last_sentence not in documents[other.article]
        ):
            wrong.append(other.continuation)
        if len(wrong) == CHOICES - 1:
            return wrong
    raise DataError(f"too few different articles ({len(documents)}) for the wrong answers of the items")


def _bare(word: str) -> str:
    """Return a word without case and punctuation."""
    return word.strip(_PUNCTUATION + "(").casefold()
