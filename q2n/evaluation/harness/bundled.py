"""The items of the bundled tasks, built from the bundled text's evaluation articles alone.

Passages are runs of whole sentences of one paragraph. Several items may end inside one passage (after its
second sentence, after its third): a model then reads their common beginning once, and so the last-word items
inside the passages of the continuation items cost next to nothing.

Nothing is drawn at random: passages come in the order of their digests, wrong answers and the place of the
right one follow from the item's digest, so the same text gives the same items everywhere.
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
"""What lm-eval is told of the bundled tasks."""
RULE = "items-1"
"""Changes whenever the same text would give other items."""
ITEMS = 640
"""Standard error of a share near one half: ``sqrt(0.25 / 640)``, 1.98 points."""
CHOICES = 4
CHOICE_WORDS = 4
"""Every choice has as many words; the score compares log-likelihoods per character."""
PASSAGE_WORDS = 128
SENTENCES = 4
"""Passages with fewer come last: the more items in a passage, the fewer tokens an item costs."""
CONTEXT_WORDS = 12
"""Words at least that come before what is asked for; twice as many before a last word."""
WORD_LETTERS = 5
COMMON_WORDS = 300
"""The most frequent words of the text are never asked for: they need no context."""
ATTEMPTS = 1000

Kind = Literal["cloze", "lastword"]
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[\"'(A-Z])")
_PUNCTUATION = ".,;:!?\"')"


@dataclass(frozen=True)
class Passage:
    """Consecutive sentences of article number ``article``."""

    article: int
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


@dataclass(frozen=True)
class SentenceBreak:
    """A place between two sentences: what comes before it, and the next words."""

    article: int
    context: str
    last_sentence: str
    continuation: str


def dataset(text: str, kind: Kind, cache_dir: str | None = None, **_: Any) -> dict[str, Any]:
    """What lm-eval asks of a ``custom_dataset``: a data set a split; it also passes the task's metadata."""
    from datasets import Dataset

    return {"test": Dataset.from_list(list(items(text, kind, cache_dir)))}


@cache
def items(text: str, kind: Kind, cache_dir: str | None = None) -> tuple[dict[str, Any], ...]:
    """At most :data:`ITEMS` items of one of the bundled texts (fewer if it has not more).

    Raises:
        DataError: the text is not installed.
    """
    documents = BundledText(text, cache_dir).documents("evaluation")
    build = cloze_items if kind == "cloze" else last_word_items
    return tuple(islice(build(documents), ITEMS))


def passages(documents: Sequence[str]) -> list[Passage]:
    """Every paragraph cut into passages of whole sentences, at most :data:`PASSAGE_WORDS` words if a sentence
    is not longer: those of :data:`SENTENCES` and more first, then in the order of their digests."""
    found = [
        Passage(article, sentences)
        for article, document in enumerate(documents)
        for paragraph in document.split("\n")
        for sentences in _runs(_SENTENCE_END.split(paragraph))
    ]
    return sorted(found, key=lambda item: (len(item.sentences) < SENTENCES, sha256_text(item.text)))


def cloze_items(documents: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Which of four beginnings of a sentence goes on with the passage? The wrong ones are right elsewhere:
    true continuations at breaks in other articles, so that without the passage all four are alike."""
    breaks = [place for passage in passages(documents) for place in _breaks(passage)]
    for place in breaks:
        seed = sha256_text(f"{place.context}\n{place.continuation}")
        choices = _wrong(place, breaks, documents, seed)
        answer = int(seed, 16) % CHOICES
        choices.insert(answer, place.continuation)
        yield {"article": place.article, "passage": place.context, "choices": choices, "answer": answer}


def last_word_items(documents: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Which word comes next? It has been in the passage before, is long and not one of the common ones
    (LAMBADA, arXiv 1606.06031, kept words that people could only guess from the passage)."""
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
    run: list[str] = []
    for sentence in sentences:
        if run and sum(len(item.split()) for item in (*run, sentence)) > PASSAGE_WORDS:
            yield tuple(run)
            run = []
        run.append(sentence)
    yield tuple(run)


def _breaks(passage: Passage) -> Iterator[SentenceBreak]:
    for index in range(1, len(passage.sentences)):
        context = " ".join(passage.sentences[:index])
        following = passage.sentences[index].split()
        if len(context.split()) >= CONTEXT_WORDS and len(following) >= CHOICE_WORDS:
            continuation = " ".join(following[:CHOICE_WORDS])
            yield SentenceBreak(passage.article, context, passage.sentences[index - 1], continuation)


def _wrong(
    place: SentenceBreak, breaks: Sequence[SentenceBreak], documents: Sequence[str], seed: str
) -> list[str]:
    """Three different continuations from articles that share neither the last sentence nor the wording.

    Raises:
        DataError: there are none.
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
    raise DataError(f"too few different articles ({len(documents)}) to find wrong answers in")


def _bare(word: str) -> str:
    return word.strip(_PUNCTUATION + "(").casefold()
