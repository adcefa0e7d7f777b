"""English text that needs no hub: the test data of the PyPI package gensim.

``wiki``: about a hundred whole Wikipedia articles (the start of a dump of 2015). ``news``: the Lee corpora,
short reports of 2001-2002 (Lee, Pincombe and Welsh, 2005). A digest of each article assigns it to calibration
or evaluation, so the split depends on the text alone.
"""

from __future__ import annotations

import bz2
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from q2n.data.clean import before_filter, paragraphs, without_tags
from q2n.data.local_files import PackagedFile, cache_root, kept, packaged_file
from q2n.data.text import Split, TextSource
from q2n.exceptions import DataError
from q2n.runtime.files import sha256_text, write_json_atomic

RULE = "articles-2"
"""Version of cleaning and split: changes whenever the same files would give other text or sides."""
EVALUATION_SHARE = 0.3
"""Expected share of the articles that serve evaluation."""
MIN_CHARACTERS = 400
"""Minimum length of an article: shorter pages are disambiguation pages."""
SHARED_SENTENCE = 60
"""Length of a sentence, in characters, from which two articles that share it go to the same side."""

WIKI_FILE = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
NEWS_FILES = ("lee_background.cor", "lee.cor")


@dataclass(frozen=True)
class BundledText(TextSource):
    """One of the bundled texts: ``name`` is ``wiki`` or ``news``."""

    name: str
    cache_dir: str | None = None

    def files(self) -> list[PackagedFile]:
        """Return the installed files that contain the text.

        Raises:
            DataError: gensim is not installed, or its test data are missing.
        """
        names = [WIKI_FILE] if self.name == "wiki" else list(NEWS_FILES)
        found = [packaged_file("gensim", f"test_data/{name}") for name in names]
        present = [item for item in found if item is not None]
        if len(present) < len(names):
            raise DataError(
                f"text {self.name!r}: gensim or its test data are missing; run: pip install gensim"
            )
        return present

    def identity(self) -> dict[str, str]:
        """Return package version, digest of the files and :data:`RULE`; cheap.

        Raises:
            DataError: see :meth:`files`.
        """
        files = self.files()
        return {
            "text": self.name,
            "package": f"gensim {files[0].version}",
            "sha256": sha256_text(" ".join(item.sha256 for item in files))[:16],
            "rule": RULE,
        }

    def documents(self, split: Split) -> list[str]:
        """Return the cleaned articles of one side.

        Raises:
            DataError: see :meth:`files`; also a file that differs from the one its package declares.
        """
        return [text for text, side in _articles(self) if side == split]


@cache
def _articles(source: BundledText) -> list[tuple[str, Split]]:
    """Return cleaned articles with their sides; parsed once, then read from the cache folder."""
    key = sha256_text(json.dumps(source.identity(), sort_keys=True))[:12]
    path = cache_root(source.cache_dir) / "text" / f"{source.name}-{key}.json"
    stored = _read_cache(path)
    if stored is None:
        files = [item.undamaged(DataError) for item in source.files()]
        stored = assign_sides(_wiki(files[0]) if source.name == "wiki" else _news(files))
        content = {"digest": _digest(stored), "articles": stored}
        kept(lambda: write_json_atomic(path, content))
    return stored


def _read_cache(path: Path) -> list[tuple[str, Split]] | None:
    """Return the cached articles, or None if the file is missing, unreadable or fails its digest."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        articles: list[tuple[str, Split]] = [(text, side) for text, side in content["articles"]]
        return articles if content["digest"] == _digest(articles) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(articles: list[tuple[str, Split]]) -> str:
    return sha256_text(json.dumps(articles))


def _wiki(path: Path) -> list[str]:
    """Return the cleaned articles of a Wikipedia dump, redirects and short pages left out."""
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki

    with bz2.open(path) as stream:
        pages = [raw for _, raw, _ in extract_pages(stream, ("0",))]
    articles = (raw for raw in pages if not raw.lstrip().lower().startswith("#redirect"))
    texts = (paragraphs(filter_wiki(before_filter(raw))) for raw in articles)
    return [text for text in texts if len(text) >= MIN_CHARACTERS]


def _news(paths: list[Path]) -> list[str]:
    """Return the reports of the Lee corpora, one per line of the files."""
    lines = [line for path in paths for line in path.read_text(encoding="latin-1").split("\n")]
    return [text for text in map(without_tags, lines) if text]


def assign_sides(texts: list[str]) -> list[tuple[str, Split]]:
    """Assign each distinct text to a side, about 30 % to evaluation.

    Articles that share a long sentence (a report and its update) form a cluster (union-find) that is not
    split; the digest of the cluster's first article decides its side.
    """
    texts = list(dict.fromkeys(texts))
    parent = list(range(len(texts)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    first_with: dict[str, int] = {}
    for index, text in enumerate(texts):
        for sentence in re.split(r"(?<=[.!?])\s+", text):
            if len(sentence) >= SHARED_SENTENCE:
                one, other = root(first_with.setdefault(sentence, index)), root(index)
                parent[max(one, other)] = min(one, other)
    return [(text, _side(texts[root(index)])) for index, text in enumerate(texts)]


def _side(text: str) -> Split:
    """Return the side of a text: its SHA-256 as a fraction of 1, below :data:`EVALUATION_SHARE` or not."""
    fraction = int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64
    return "evaluation" if fraction < EVALUATION_SHARE else "calibration"
