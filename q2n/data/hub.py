"""WikiText-2, C4 and Penn Treebank with the sampling rules of the official Q2N code.

The forks in the official code disagree (docs/reproduction.md). ``variant`` names a rule: ``gptq``: the
default flags of the GPTQ, LeanQuant, QuIP and QuaRot forks; ``new_eval``: their ``--new-eval``; ``pbllm``:
the PB-LLM (and, for evaluation, OWQ) fork. The official code tokenizes with slow tokenizers; here fast ones
are used.

Files are named one by one, relative to the repository. The same names then work on the hub, in a folder with
a copy of it, and for repositories whose own description of their data no longer works.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from q2n.data.text import Rules, Split, TextSource, TokenSet, encode, encode_corpus, token_set
from q2n.exceptions import DataError
from q2n.runtime.files import sha256_text

Variant = Literal["gptq", "new_eval", "pbllm"]
Boundary = Literal["exclusive", "inclusive"]
"""Minimum length of a C4 document: ``exclusive``: longer than the crop; ``inclusive``: at least as long.

The official forks with ``>=`` crash on equality (``randint(0, -1)``); here the only possible crop is taken,
without a draw."""

C4_WINDOWS = 256
"""Evaluation windows of C4, as in GPTQ's ``datautils.py`` (``get_c4`` and ``get_c4_new``)."""
C4_NEW_EVAL_DOCUMENTS = 1100
"""Documents that ``new_eval`` joins, as in GPTQ's ``get_c4_new``."""
MAX_DRAWS = 20_000
"""Draws per document before an error: the official code draws forever if no document is long enough."""


@dataclass(frozen=True)
class HubText(TextSource):
    """Base of the three data sets: ``path`` is a repository of the hub or a folder with the same files."""

    path: str
    revision: str | None = None
    variant: Variant = "gptq"
    column: ClassVar[str] = "text"
    """Column that holds the documents."""
    part_files: ClassVar[Mapping[str, str]]
    """File, or pattern of the files, per part of the data set (train, validation, test)."""

    @property
    def folder(self) -> Path | None:
        """Local folder named by ``path``, or None if there is no such folder."""
        local = Path(self.path).expanduser()
        return local if local.is_dir() else None

    @property
    def title(self) -> str:
        """Name and path, for messages."""
        return f"{self.name!r} ({self.path})"

    def identity(self) -> dict[str, str]:
        """Return rule and revision, or, for a local folder, a digest of its listing; nothing is downloaded.

        Raises:
            DataError: the local folder holds none of the files.
        """
        rule = {"text": self.name, "variant": self.variant}
        if self.folder is None:
            return {**rule, "hub": self.path, "revision": self.revision or "main"}
        return {**rule, "folder": _listing(self.folder, self.part_files.values())}

    def part(self, split: Split) -> str:
        """Return the part of the data set that serves a side."""
        raise NotImplementedError

    def documents(self, split: Split) -> list[str]:
        """Return all documents of the part for a side, in the order of the file.

        Raises:
            DataError: the data set cannot be loaded, or its text column is missing or has gaps.
        """
        return list(self._load(split)[self.column])

    def _load(self, split: Split) -> Any:
        """Return a ``datasets.Dataset`` with documents as strings.

        Raises:
            DataError: see :meth:`documents`; every failure of the library ends in one message.
        """
        import datasets

        part = self.part(split)
        bars = datasets.is_progress_bar_enabled()
        datasets.disable_progress_bars()
        try:
            data = datasets.load_dataset(
                str(self.folder or self.path),
                data_files={part: self.part_files[part]},
                split=part,
                revision=self.revision,
                verification_mode="no_checks",  # checks fail unless all files of the data set are read
            )
        except Exception as error:  # the library raises whatever its transports raise
            reason = next(iter(str(error).strip().splitlines()), "")
            raise DataError(
                f"text {self.name!r}: cannot load {self.part_files[part]} of {self.path!r} from the hub or "
                f"its local cache: {type(error).__name__}: {reason}\n"
                "Without the hub: the bundled texts `wiki` and `news`, your own files with `text`, or `path` "
                "set to a folder with a copy of the data set."
            ) from error
        finally:
            if bars:
                datasets.enable_progress_bars()
        kind = data.features.get(self.column)
        if not len(data) or getattr(kind, "dtype", None) not in ("string", "large_string"):
            columns = ", ".join(f"{name} ({value.dtype})" for name, value in data.features.items())
            raise DataError(
                f"text {self.title}: {self.part_files[part]} has {len(data)} rows with columns {columns}; "
                f"needed are documents, as strings in the column {self.column!r}"
            )
        if data.data.column(self.column).null_count:
            raise DataError(f"text {self.title}: {self.part_files[part]} has rows without text (null)")
        return data


def _listing(folder: Path, patterns: Iterable[str]) -> str:
    """Return a digest of names, sizes and modification times: shards are too large to read each time.

    Raises:
        DataError: the folder holds none of the files.
    """
    files = sorted(path for pattern in patterns for path in folder.glob(pattern))
    if not files:
        raise DataError(f"{folder}: holds none of {', '.join(patterns)}")
    status = [(path.relative_to(folder).as_posix(), path.stat()) for path in files]
    return sha256_text("\n".join(f"{name} {item.st_size} {item.st_mtime_ns}" for name, item in status))


@dataclass(frozen=True)
class WikiText2(HubText):
    """WikiText-2 raw: train for calibration, test for evaluation."""

    name = "wikitext2"
    part_files = {part: f"wikitext-2-raw-v1/{part}-*.parquet" for part in ("train", "test")}  # noqa: RUF012

    def part(self, split: Split) -> str:
        """Return ``train`` or ``test``."""
        return "train" if split == "calibration" else "test"

    def separator(self, split: Split) -> str:
        """Return a space for calibration by ``pbllm``, else a blank line."""
        return " " if split == "calibration" and self.variant == "pbllm" else "\n\n"


@dataclass(frozen=True)
class Ptb(HubText):
    """Penn Treebank: train for calibration; validation (``gptq``) or test for evaluation."""

    name = "ptb"
    column = "sentence"
    part_files = {part: f"penn_treebank/{part}/*.parquet" for part in ("train", "validation", "test")}  # noqa: RUF012

    def part(self, split: Split) -> str:
        """Return ``train``, ``validation`` (evaluation by ``gptq``) or ``test``."""
        if split == "calibration":
            return "train"
        return "validation" if self.variant == "gptq" else "test"

    def separator(self, split: Split) -> str:
        """Return a blank line for ``gptq``, else a space."""
        return "\n\n" if self.variant == "gptq" else " "


@dataclass(frozen=True)
class C4(HubText):
    """One shard of C4's train split for calibration and one of its validation split for evaluation."""

    boundary: Boundary = "exclusive"
    name = "c4"
    part_files = {  # noqa: RUF012
        "train": "en/c4-train.00000-of-01024.json.gz",
        "validation": "en/c4-validation.00000-of-00008.json.gz",
    }

    def identity(self) -> dict[str, str]:
        """Return the identity of :class:`HubText` and ``boundary``."""
        return {**super().identity(), "boundary": self.boundary}

    def part(self, split: Split) -> str:
        """Return ``train`` or ``validation``."""
        return "train" if split == "calibration" else "validation"

    def calibration_tokens(
        self, tokenizer: Any, nsamples: int, seqlen: int, seed: int, heldout: int = 0
    ) -> TokenSet:
        """Draw long documents with replacement and crop each at random; held-out ones are others.

        Raises:
            DataError: no long document was found in :data:`MAX_DRAWS` draws.
        """
        rows, texts, available = self.draw(tokenizer, "calibration", nsamples, seqlen, seed, True, heldout)
        kept, others = rows[:nsamples], rows[nsamples:]
        return token_set(kept, "\n\n".join(texts[:nsamples]), self.title, available, others)

    def evaluation_ids(self, tokenizer: Any, length: int, special: bool) -> tuple[Sequence[int], str]:
        """Return :data:`C4_WINDOWS` crops of ``length`` (``gptq``), or the start of the joined documents."""
        if self.variant == "gptq":
            files = tuple(self.identity().items())
            return _crops(self, files, Rules.of(tokenizer), length, special)
        text = " ".join(self._load("evaluation")[:C4_NEW_EVAL_DOCUMENTS][self.column])
        return encode_corpus(tokenizer, text, special)[: C4_WINDOWS * length], text

    def draw(
        self, tokenizer: Any, split: Split, count: int, length: int, seed: int, special: bool, heldout: int
    ) -> tuple[list[list[int]], list[str], int]:
        """Draw crops of random documents.

        Args:
            tokenizer: the model's tokenizer.
            split: side of the text.
            count: number of crops; a document may be drawn several times.
            length: tokens per crop.
            seed: of documents and places.
            special: add the tokenizer's special tokens to each document.
            heldout: number of further crops, from documents that none of the first ``count`` is from.

        Returns:
            ``count + heldout`` crops, their documents, and the tokens of the first ``count`` documents.

        Raises:
            DataError: no document of enough tokens was found in :data:`MAX_DRAWS` draws.
        """
        data = self._load(split)
        generator = random.Random(seed)
        shortest = length + (self.boundary == "exclusive")

        def long_document(taken: Set[str]) -> tuple[str, list[int]]:
            longest = 0
            for _ in range(MAX_DRAWS):
                text: str = data[generator.randint(0, len(data) - 1)]["text"]
                if text in taken:
                    continue
                ids = encode(tokenizer, text, special)
                if len(ids) >= shortest:
                    return text, ids
                longest = max(longest, len(ids))
            raise DataError(
                f"text 'c4': none of {MAX_DRAWS} documents drawn has the {shortest} tokens needed (the "
                f"longest {'besides those taken ' if taken else ''}has {longest}); choose a smaller seqlen"
            )

        rows: list[list[int]] = []
        texts: list[str] = []
        available = 0
        for number in range(count + heldout):
            text, ids = long_document(frozenset(texts[:count] if number >= count else ()))
            start = 0 if len(ids) == length else generator.randint(0, len(ids) - length - 1)
            rows.append(ids[start : start + length])
            texts.append(text)
            available += len(ids) if number < count else 0
        return rows, texts, available


@lru_cache(maxsize=2)
def _crops(
    source: C4, files: tuple[tuple[str, str], ...], rules: Rules, length: int, special: bool
) -> tuple[Sequence[int], str]:
    """Return token ids of all crops and their documents; drawn once, since several stages ask for them."""
    del files  # part of the cache key: a folder whose files change is read again
    rows, texts, _ = source.draw(rules.tokenizer, "evaluation", C4_WINDOWS, length, 0, special, 0)
    return array("q", (token for row in rows for token in row)), "\n\n".join(texts)
