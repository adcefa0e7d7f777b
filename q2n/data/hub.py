"""WikiText-2, C4 and Penn Treebank with the sampling rules of the Q2N release.

The release's forks disagree (docs/reproduction.md). ``variant`` names a rule: ``gptq``: the default flags of
the GPTQ, LeanQuant, QuIP and QuaRot forks; ``new_eval``: their ``--new-eval``; ``pbllm``: the PB-LLM (and, for
evaluation, OWQ) fork. The release tokenizes with slow tokenizers; here the fast ones are used.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from q2n.data.text import Split, TextSource, TokenSet, encode, token_set
from q2n.exceptions import DataError

Variant = Literal["gptq", "new_eval", "pbllm"]
Boundary = Literal["exclusive", "inclusive"]
"""How long a C4 document must be: ``exclusive``: longer than the crop; ``inclusive``: at least as long. The
release's ``>=`` forks crash on equality (``randint(0, -1)``); here the only crop there is is taken, without
a draw."""

C4_FILES = {
    "calibration": {"train": "en/c4-train.00000-of-01024.json.gz"},
    "evaluation": {"validation": "en/c4-validation.00000-of-00008.json.gz"},
}
C4_WINDOWS = 256
C4_NEW_EVAL_DOCUMENTS = 1100
MAX_DRAWS = 20_000


@dataclass(frozen=True)
class HubText(TextSource):
    """Common to the three: ``path`` is a repository of the hub or a folder with the same files."""

    path: str
    revision: str | None = None
    variant: Variant = "gptq"

    def identity(self) -> dict[str, str]:
        return {
            "text": self.name,
            "hub": self.path,
            "revision": self.revision or "main",
            "variant": self.variant,
        }

    def _column(self, column: str, split: str, **keywords: Any) -> list[str]:
        return list(self._load(split, **keywords)[column])

    def _load(self, split: str, **keywords: Any) -> Any:
        """A ``datasets.Dataset``; every way in which that fails ends in one message."""
        import datasets

        datasets.disable_progress_bars()
        try:
            return datasets.load_dataset(self.path, split=split, revision=self.revision, **keywords)
        except Exception as error:  # the library raises whatever its transports raise
            what = f"{self.path!r} (split {split}{''.join(f', {key}={value!r}' for key, value in keywords.items())})"
            raise DataError(
                f"text {self.name!r}: cannot load {what} from the hub or its local cache: "
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}\n"
                "Without the hub: the bundled texts `wiki` and `news`, your own files with `text`, or `path` "
                "set to a folder that holds a copy of the data set."
            ) from error


@dataclass(frozen=True)
class WikiText2(HubText):
    """WikiText-2 raw: train for calibration, test for evaluation."""

    name = "wikitext2"

    def documents(self, split: Split) -> list[str]:
        part = "train" if split == "calibration" else "test"
        return self._column("text", part, name="wikitext-2-raw-v1")

    def separator(self, split: Split) -> str:
        return " " if split == "calibration" and self.variant == "pbllm" else "\n\n"


@dataclass(frozen=True)
class Ptb(HubText):
    """Penn Treebank: train for calibration; validation (``gptq``) or test for evaluation."""

    name = "ptb"

    def documents(self, split: Split) -> list[str]:
        evaluation = "validation" if self.variant == "gptq" else "test"
        return self._column(
            "sentence", "train" if split == "calibration" else evaluation, name="penn_treebank"
        )

    def separator(self, split: Split) -> str:  # noqa: ARG002 - the same on both sides
        return "\n\n" if self.variant == "gptq" else " "


@dataclass(frozen=True)
class C4(HubText):
    """One shard of C4's train split for calibration and one of its validation split for evaluation."""

    boundary: Boundary = "exclusive"
    name = "c4"

    def identity(self) -> dict[str, str]:
        return {**super().identity(), "boundary": self.boundary}

    def documents(self, split: Split) -> list[str]:
        return self._column("text", *self._part(split), data_files=C4_FILES[split])

    def calibration_tokens(self, tokenizer: Any, nsamples: int, seqlen: int, seed: int) -> TokenSet:
        """One random crop of each of ``nsamples`` documents drawn with replacement among the long ones."""
        rows, texts, available = self._draw(tokenizer, "calibration", nsamples, seqlen, seed, True)
        return token_set(rows, "\n\n".join(texts), self.name, available)

    def evaluation_ids(self, tokenizer: Any, length: int, special: bool) -> tuple[list[int], str]:
        if self.variant == "gptq":
            rows, texts, _ = self._draw(tokenizer, "evaluation", C4_WINDOWS, length, 0, special)
            return [token for row in rows for token in row], "\n\n".join(texts)
        text = " ".join(self.documents("evaluation")[:C4_NEW_EVAL_DOCUMENTS])
        return encode(tokenizer, text, special)[: C4_WINDOWS * length], text

    @staticmethod
    def _part(split: Split) -> tuple[str]:
        return ("train",) if split == "calibration" else ("validation",)

    def _draw(
        self, tokenizer: Any, split: Split, count: int, length: int, seed: int, special: bool
    ) -> tuple[list[list[int]], list[str], int]:
        """Crops, the documents they are from, and how many tokens those have."""
        data = self._load(*self._part(split), data_files=C4_FILES[split])
        generator = random.Random(seed)
        rows: list[list[int]] = []
        texts: list[str] = []
        available = 0
        for _ in range(count):
            text, ids = self._long_document(tokenizer, data, length, generator, special)
            start = 0 if len(ids) == length else generator.randint(0, len(ids) - length - 1)
            rows.append(ids[start : start + length])
            texts.append(text)
            available += len(ids)
        return rows, texts, available

    def _long_document(
        self, tokenizer: Any, data: Any, length: int, generator: random.Random, special: bool
    ) -> tuple[str, list[int]]:
        shortest = length + (self.boundary == "exclusive")
        longest = 0
        for _ in range(MAX_DRAWS):
            row: Mapping[str, str] = data[generator.randint(0, len(data) - 1)]
            ids = encode(tokenizer, row["text"], special)
            if len(ids) >= shortest:
                return row["text"], ids
            longest = max(longest, len(ids))
        raise DataError(
            f"text 'c4': none of {MAX_DRAWS} documents drawn has the {shortest} tokens needed (the longest has "
            f"{longest}); choose a smaller seqlen"
        )
