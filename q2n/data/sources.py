"""Options of the config group ``calibration``, and text sources by name for evaluation.

torch, gensim and datasets are imported only when tokens are asked for, so that this module loads fast.
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
    # The repository is a loading script, which the library datasets no longer runs; the hub keeps a copy of
    # the data in Parquet under this revision.
    "ptb": ("ptb-text-only/ptb_text_only", "refs/convert/parquet"),
}
"""Repository and revision (None: the default branch) per data set of the hub."""
SOURCES = ("wiki", "news", "wikitext2", "c4", "ptb", "text")
"""Names of all text sources."""


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
    """Return the source called ``name``; sources ignore arguments that do not concern them.

    Args:
        name: one of :data:`SOURCES`.
        cache_dir: cache folder, for ``wiki`` and ``news``.
        variant: sampling rule, for data sets of the hub (:mod:`q2n.data.hub`).
        boundary: minimum length of a document, for ``c4``.
        paths: files, for ``text``.
        path: repository or folder in place of the default one, for data sets of the hub.
        revision: revision of the repository, or None for the default one.

    Raises:
        DataError: there is no source of that name.
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
    """Base of every calibration option; subclasses define the source of the text."""

    nsamples: int = Field(default=32, ge=1)
    """Number of calibration sequences."""
    seqlen: int = Field(default=512, ge=8)
    """Tokens per sequence."""
    seed: int = Field(default=0, ge=0)
    """Seed of the random crops."""
    batch_size: int = Field(default=8, ge=0)
    """Sequences per forward pass, or 0 for all at once."""
    stages: Literal["true_sequential", "whole_block", "static"] = "true_sequential"
    """Model that a group of linear layers takes its statistics from.

    ``true_sequential``: earlier blocks and earlier groups of the block are quantized; ``whole_block``:
    earlier blocks only; ``static``: nothing, the unquantized model."""
    activations: Literal["memory", "disk"] = "memory"
    """Storage of activations between two stages."""
    heldout: int | None = Field(default=None, ge=0)
    """Further sequences that neither solver nor correction sees, for layer errors on held-out text; None: as
    many as the correction needs."""

    def source(self, cache_dir: str | None = None) -> TextSource:
        """Return the source of the text."""
        raise NotImplementedError

    def identity(self) -> dict[str, str]:
        """Return what identifies the tokens beside the fields of this option, for fingerprints; cheap.

        Raises:
            DataError: the text is missing.
        """
        return {**self.source().identity(), "sampling": RULE}

    def tokens(self, tokenizer: Any, cache_dir: str | None = None, heldout: int = 0) -> TokenSet:
        """Return token ids ``(nsamples, seqlen)``, and ``(heldout, seqlen)`` that share no text with them.

        Raises:
            DataError: the text is missing or too short.
        """
        source = self.source(cache_dir)
        return source.calibration_tokens(tokenizer, self.nsamples, self.seqlen, self.seed, heldout)


@option
class WikiCalibration(CalibrationOption):
    """Wikipedia articles from the package gensim."""

    def source(self, cache_dir: str | None = None) -> TextSource:
        """Return the bundled Wikipedia articles."""
        return text_source("wiki", cache_dir=cache_dir)


@option
class NewsCalibration(CalibrationOption):
    """News reports from the package gensim."""

    def source(self, cache_dir: str | None = None) -> TextSource:
        """Return the bundled news reports."""
        return text_source("news", cache_dir=cache_dir)


@option
class HubCalibration(CalibrationOption):
    """A data set of the hub, sampled by the rule of one fork of the official code (``variant``)."""

    text: Literal["wikitext2", "c4", "ptb"]
    variant: Variant = "gptq"
    path: str | None = None
    """Repository or folder in place of the default one."""
    revision: str | None = None
    """Revision of the repository, or None for the default one."""

    def source(self, cache_dir: str | None = None) -> TextSource:
        """Return the data set with this option's rule, repository and revision."""
        return text_source(self.text, variant=self.variant, path=self.path, revision=self.revision)


@option
class C4Calibration(HubCalibration):
    """C4, where the forks of the official code also disagree on documents as long as a sequence."""

    text: Literal["c4"] = "c4"
    boundary: Boundary = "exclusive"

    def source(self, cache_dir: str | None = None) -> TextSource:
        """Return C4 with this option's rule, boundary, repository and revision."""
        return text_source(
            "c4", variant=self.variant, boundary=self.boundary, path=self.path, revision=self.revision
        )


@option
class TextCalibration(CalibrationOption):
    """The user's own files (:class:`q2n.data.user.UserText`)."""

    paths: list[str] = Field(min_length=1)
    """Paths of the files."""

    def source(self, cache_dir: str | None = None) -> TextSource:
        """Return the files."""
        return text_source("text", paths=self.paths)
