"""The options of the config group ``calibration``, and text sources by name for evaluation.

This module imports nothing heavy: torch, gensim and datasets are loaded when tokens are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from q2n.data.bundled import BundledText
from q2n.data.hub import C4, Boundary, Ptb, Variant, WikiText2
from q2n.data.text import RULE, TextSource
from q2n.data.user import UserText
from q2n.exceptions import DataError
from q2n.options import did_you_mean, option

if TYPE_CHECKING:
    from q2n.data.text import TokenSet

HUB_PATHS: dict[str, tuple[str, str | None]] = {
    "wikitext2": ("Salesforce/wikitext", None),
    "c4": ("allenai/c4", None),
    # The repository itself is a loading script, which the library no longer runs; the hub keeps a copy
    # of the data as parquet under this revision.
    "ptb": ("ptb-text-only/ptb_text_only", "refs/convert/parquet"),
}
SOURCES = ("wiki", "news", "wikitext2", "c4", "ptb", "text")


def text_source(
    name: str,
    *,
    cache_dir: str | None = None,
    variant: Variant = "gptq",
    boundary: Boundary = "exclusive",
    paths: Sequence[str] = (),
    path: str | None = None,
    revision: str | None = None,
) -> TextSource:
    """The source called ``name``; the other arguments matter to the sources that have them.

    Args:
        paths: the files of ``text``.
        path: repository or folder in place of the usual one, for the hub's data sets.

    Raises:
        DataError: no source of that name.
    """
    if name in ("wiki", "news"):
        return BundledText(name, cache_dir)
    if name == "text":
        return UserText(tuple(paths))
    if name not in HUB_PATHS:
        raise DataError(f"no text source {name!r}{did_you_mean(name, SOURCES)} (known: {', '.join(SOURCES)})")
    usual, usual_revision = HUB_PATHS[name]
    where, at = (path, revision) if path else (usual, revision or usual_revision)
    if name == "c4":
        return C4(where, at, variant, boundary)
    return (WikiText2 if name == "wikitext2" else Ptb)(where, at, variant)


@option
class CalibrationOption:
    """Base of every calibration option. Subclasses say where the text comes from."""

    nsamples: int = Field(default=32, ge=1)
    seqlen: int = Field(default=512, ge=8)
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=8, ge=0)
    """Sequences a forward pass takes at once; 0: all."""
    stages: Literal["true_sequential", "whole_block", "static"] = "true_sequential"
    """Statistics of a group of linears come from a block whose earlier groups are quantized, from one none of
    which is, or from the unquantized model."""
    activations: Literal["memory", "disk"] = "memory"
    heldout: int | None = Field(default=None, ge=0)
    """Further sequences of the text that no statistic of a solver or correction is made of: layer errors
    are measured on them as well. None stands for as many as the correction needs."""

    def source(self, cache_dir: str | None = None) -> TextSource:
        """The source of the text."""
        raise NotImplementedError

    def identity(self) -> dict[str, str]:
        """Identity of the tokens beside the fields; cheap, for fingerprints.

        Raises:
            DataError: the text is not there.
        """
        return {**self.source().identity(), "sampling": RULE}

    def tokens(self, tokenizer: Any, cache_dir: str | None = None, heldout: int = 0) -> TokenSet:
        """``(nsamples, seqlen)`` token ids, and ``(heldout, seqlen)`` of text they do not touch.

        Raises:
            DataError: the text is not there or too short.
        """
        source = self.source(cache_dir)
        return source.calibration_tokens(tokenizer, self.nsamples, self.seqlen, self.seed, heldout)


@option
class WikiCalibration(CalibrationOption):
    """Wikipedia articles from the package gensim."""

    def source(self, cache_dir: str | None = None) -> TextSource:
        return text_source("wiki", cache_dir=cache_dir)


@option
class NewsCalibration(CalibrationOption):
    """News reports from the package gensim."""

    def source(self, cache_dir: str | None = None) -> TextSource:
        return text_source("news", cache_dir=cache_dir)


@option
class HubCalibration(CalibrationOption):
    """A data set of the hub, sampled as the release's fork ``variant`` does."""

    text: Literal["wikitext2", "c4", "ptb"]
    variant: Variant = "gptq"
    path: str | None = None
    """Repository or folder in place of the usual one."""
    revision: str | None = None

    def source(self, cache_dir: str | None = None) -> TextSource:
        return text_source(self.text, variant=self.variant, path=self.path, revision=self.revision)


@option
class C4Calibration(HubCalibration):
    """C4, where the forks also disagree on documents exactly as long as a sequence."""

    text: Literal["c4"] = "c4"
    boundary: Boundary = "exclusive"

    def source(self, cache_dir: str | None = None) -> TextSource:
        return text_source(
            "c4", variant=self.variant, boundary=self.boundary, path=self.path, revision=self.revision
        )


@option
class TextCalibration(CalibrationOption):
    """The user's own files (:class:`q2n.data.user.UserText`)."""

    paths: list[str] = Field(min_length=1)

    def source(self, cache_dir: str | None = None) -> TextSource:
        return text_source("text", paths=self.paths)
