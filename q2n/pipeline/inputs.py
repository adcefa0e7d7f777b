"""Inputs of a cell besides weights: configuration, tokenizer and text, checked before weights are read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from q2n.data.overlap import overlap
from q2n.exceptions import ConfigurationError, DataError, ModelError
from q2n.records.schema import EvaluationProtocol, Metric

if TYPE_CHECKING:
    from q2n.config import RunConfig
    from q2n.data.text import TokenSet
    from q2n.models.loaded import Outline

SAME_TEXT = 0.05
"""Share of the shorter text from which two texts count as the same text.

It lies well above the overlap of separate splits of one corpus by common phrases (bundled texts: none of the
articles, below 0.1 % of the news), and well below the overlap with a shuffled or shortened copy."""


@dataclass(frozen=True)
class CellInputs:
    """Calibration sequences, and exceptions that make numbers hard to compare.

    Attributes:
        calibration: calibration sequences.
        calibrated: digests of the evaluated texts that are calibration text.
        notes: sentences for record and tables.
    """

    calibration: TokenSet
    calibrated: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def marked(self, metric: Metric) -> Metric:
        """Return the metric; its protocol is marked if the evaluated text is calibration text."""
        protocol = metric.protocol
        if not isinstance(protocol, EvaluationProtocol) or protocol.text_sha256 not in self.calibrated:
            return metric
        return metric.model_copy(update={"protocol": protocol.model_copy(update={"calibrated": True})})


def read_inputs(config: RunConfig) -> CellInputs:
    """Read configuration, tokenizer and all text of a cell, without the model's weights.

    Raises:
        ConfigurationError: sequences are longer than the model's context length.
        DataError: text is missing, too short, not as its file declares, or evaluation text is calibration
            text.
        ModelError: configuration or tokenizer cannot be read, or do not fit each other.
    """
    scalars = config.scalars
    outline = config.model.outline(scalars.cache_dir)
    calibration = config.calibration.tokens(outline.tokenizer, scalars.cache_dir, config.heldout)
    measured = config.evaluation.examine(outline, scalars.cache_dir)
    for text in (calibration, *measured):
        _require_rows(text, outline)
    beyond = [
        *_beyond_context("calibration", [calibration], outline, scalars.allow_beyond_context),
        *_beyond_context("evaluation", measured, outline, scalars.allow_beyond_context),
    ]
    shares = _calibrated(calibration, measured, outline) if _learns(config) else {}
    seen = [f"text evaluated on is calibration text: {what}" for what in shares.values()]
    if seen and not scalars.allow_calibration_text:
        raise DataError(
            "\n".join(seen) + "\nName other files or another data set for one of them, or measure all the "
            "same with allow_calibration_text=true: record and tables then contain a note"
        )
    return CellInputs(calibration, frozenset(shares), (*beyond, *seen))


def _require_rows(text: TokenSet, outline: Outline) -> None:
    """Check that the embedding has a row per id; a tokenizer's template may add ids beyond its vocabulary.

    Raises:
        ModelError: an id has no row.
    """
    largest, rows = int(text.tokens.max()), outline.config.vocab_size
    if largest >= rows:
        raise ModelError(
            f"model {outline.name}: its tokenizer makes id {largest} of {text.source}, its embedding has "
            f"{rows} rows (vocab_size)"
        )


def _beyond_context(group: str, texts: Sequence[TokenSet], outline: Outline, allowed: bool) -> Iterator[str]:
    """Yield a note if sequences are longer than the model's context length.

    Raises:
        ConfigurationError: they are longer, and this is not allowed.
    """
    seqlen, positions = max((text.tokens.shape[1] for text in texts), default=0), outline.positions
    if positions is None or seqlen <= positions:
        return
    if not allowed:
        raise ConfigurationError(
            f"{group}: seqlen={seqlen} is beyond the {positions} positions of {outline.name} "
            "(max_position_embeddings, times the factor of its rotary scaling if that extends them); choose "
            f"{positions} at most, or set allow_beyond_context=true: record and tables then contain a note"
        )
    yield f"{group} sequences of {seqlen} tokens are beyond the model's {positions} positions"


def _learns(config: RunConfig) -> bool:
    """Return True if the quantized model depends on calibration text.

    With plain rounding it does not: only output errors are measured on calibration text.
    """
    baseline, correction = config.baseline, config.correction.bind(config.baseline)
    return baseline.prepares_blocks or bool(baseline.requires | correction.requires)


def _calibrated(calibration: TokenSet, measured: Sequence[TokenSet], outline: Outline) -> dict[str, str]:
    """Return a sentence on the overlap for each evaluated text that is calibration text, by digest.

    All calibration text counts, since the seed decides which part is read; of evaluation text only the
    windows count.
    """
    found = {}
    for text in measured:
        ids = text.tokens.flatten().tolist()
        windows = cast(str, outline.tokenizer.decode(ids, skip_special_tokens=True))
        share = overlap(calibration.text, windows)
        if share >= SAME_TEXT:
            found[text.text_sha256] = (
                f"{text.source} ({len(text.tokens)} windows) and {calibration.source} have "
                f"{100 * share:.0f} % of the shorter one in common"
            )
    return found
