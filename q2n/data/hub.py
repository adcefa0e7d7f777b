"""WikiText-2, C4 and Penn Treebank with the sampling rules of the Q2N release.

The release's forks disagree (docs/reproduction.md). ``variant`` names a rule: ``gptq``: the default flags of
the GPTQ, LeanQuant, QuIP and QuaRot forks; ``new_eval``: their ``--new-eval``; ``pbllm``: the PB-LLM (and,
for evaluation, OWQ) fork. The release tokenizes with slow tokenizers; here the fast ones are used.

Files are named one by one, relative to the repository: that way one rule serves the hub, a folder with a
copy of it, and repositories whose own description of their data no longer works.
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
"""How long a C4 document must be: ``exclusive``: longer than the crop; ``inclusive``: at least as long. The
release's ``>=`` forks crash on equality (``randint(0, -1)``); here the only crop there is is taken, without
a draw."""

C4_WINDOWS = 256
C4_NEW_EVAL_DOCUMENTS = 1100
MAX_DRAWS = 20_000


@dataclass(frozen=True)
class HubText(TextSource):
    """Base of the three: ``path`` is a repository of the hub or a folder with the same files."""

    path: str
    revision: str | None = None
    variant: Variant = "gptq"
    column: ClassVar[str] = "text"
    part_files: ClassVar[Mapping[str, str]]
    """The file, or a pattern for the files, of each part (train, validation, test) that is read."""

    @property
    def folder(self) -> Path | None:
        """The local folder ``path`` names, or None."""
        local = Path(self.path).expanduser()
        return local if local.is_dir() else None

    @property
    def title(self) -> str:
        return f"{self.name!r} ({self.path})"

    def identity(self) -> dict[str, str]:
        rule = {"text": self.name, "variant": self.variant}
        if self.folder is None:
            return {**rule, "hub": self.path, "revision": self.revision or "main"}
        return {**rule, "folder": _listing(self.folder, self.part_files.values())}

    def part(self, split: Split) -> str:
        """The part of the data set that serves a side."""
        raise NotImplementedError

    def documents(self, split: Split) -> list[str]:
        return list(self._load(split)[self.column])

    def _load(self, split: Split) -> Any:
        """A ``datasets.Dataset`` with documents as strings; every way in which loading fails ends in one
        message."""
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
                verification_mode="no_checks",  # they expect the files that are not asked for, too
            )
        except Exception as error:  # the library raises whatever its transports raise
            reason = next(iter(str(error).strip().splitlines()), "")
            raise DataError(
                f"text {self.name!r}: cannot load {self.part_files[part]} of {self.path!r} from the hub or "
                f"its local cache: {type(error).__name__}: {reason}\n"
                "Without the hub: the bundled texts `wiki` and `news`, your own files with `text`, or `path` "
                "set to a folder that holds a copy of the data set."
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
            raise DataError(f"text {self.title}: {self.part_files[part]} has empty places (null) for text")
        return data


def _listing(folder: Path, patterns: Iterable[str]) -> str:
    """Digest of names, sizes and modification times: shards are too large to be read for a fingerprint.

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
        return "train" if split == "calibration" else "test"

    def separator(self, split: Split) -> str:
        return " " if split == "calibration" and self.variant == "pbllm" else "\n\n"


@dataclass(frozen=True)
class Ptb(HubText):
    """Penn Treebank: train for calibration; validation (``gptq``) or test for evaluation."""

    name = "ptb"
    column = "sentence"
    part_files = {part: f"penn_treebank/{part}/*.parquet" for part in ("train", "validation", "test")}  # noqa: RUF012

    def part(self, split: Split) -> str:
        if split == "calibration":
            return "train"
        return "validation" if self.variant == "gptq" else "test"

    def separator(self, split: Split) -> str:
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
        return {**super().identity(), "boundary": self.boundary}

    def part(self, split: Split) -> str:
        return "train" if split == "calibration" else "validation"

    def calibration_tokens(
        self, tokenizer: Any, nsamples: int, seqlen: int, seed: int, heldout: int = 0
    ) -> TokenSet:
        """One random crop of each of ``nsamples`` documents drawn with replacement among the long ones, and
        of ``heldout`` documents that are none of these."""
        rows, texts, available = self.draw(tokenizer, "calibration", nsamples, seqlen, seed, True, heldout)
        kept, others = rows[:nsamples], rows[nsamples:]
        return token_set(kept, "\n\n".join(texts[:nsamples]), self.title, available, others)

    def evaluation_ids(self, tokenizer: Any, length: int, special: bool) -> tuple[Sequence[int], str]:
        if self.variant == "gptq":
            files = tuple(self.identity().items())
            return _crops(self, files, Rules.of(tokenizer), length, special)
        text = " ".join(self._load("evaluation")[:C4_NEW_EVAL_DOCUMENTS][self.column])
        return encode_corpus(tokenizer, text, special)[: C4_WINDOWS * length], text

    def draw(
        self, tokenizer: Any, split: Split, count: int, length: int, seed: int, special: bool, heldout: int
    ) -> tuple[list[list[int]], list[str], int]:
        """``count + heldout`` crops, the documents they are from, and how many tokens the first ``count``
        of those have; the last ``heldout`` are from other documents than the first."""
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
    """Token ids of all crops, and the documents they are from: drawn once for the looks of several stages."""
    del files  # part of the key: a folder whose files change is read again
    rows, texts, _ = source.draw(rules.tokenizer, "evaluation", C4_WINDOWS, length, 0, special, 0)
    return array("q", (token for row in rows for token in row)), "\n\n".join(texts)
