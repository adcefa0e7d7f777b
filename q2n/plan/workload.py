"""Sizes that determine the cost of a cell: model, calibration, evaluation and storage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from q2n.config import RunConfig
from q2n.evaluation.base import Evaluation
from q2n.evaluation.composite import Composite
from q2n.evaluation.divergence import Divergence
from q2n.evaluation.windows import WindowedText
from q2n.models.shapes import ModelShapes
from q2n.models.spec import TinyModel
from q2n.runtime.memory import MEMORY_SHARE, available_memory

ELEMENT = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes per number."""

TEXTS = {
    ("wiki", "calibration"): 2_142_818,
    ("wiki", "evaluation"): 527_628,
    ("news", "calibration"): 253_227,
    ("news", "evaluation"): 123_146,
}
"""Characters of the bundled texts, per side."""

CHARACTERS_A_TOKEN = 4.5
"""Characters per token of English text with a common vocabulary (bundled model: 4.5 to 4.8)."""


@dataclass(frozen=True)
class Corpus:
    """A text that is tokenized as a whole, with its number of characters and (estimated) tokens."""

    name: str
    characters: int
    tokens: int


@dataclass(frozen=True)
class Windows:
    """Forward passes of an evaluation: ``count`` windows of ``length`` tokens, ``batch`` at a time."""

    count: int
    length: int
    batch: int
    keeps: bool = False
    """True if the unquantized model's states and head stay in memory (divergence)."""

    @property
    def tokens(self) -> int:
        """Tokens of all windows."""
        return self.count * self.length


@dataclass(frozen=True)
class Workload:
    """Input of :mod:`q2n.plan.memory` and :mod:`q2n.plan.time`.

    Attributes:
        shapes: sizes of the model.
        element: bytes per number of the model.
        device: device of the forward passes.
        sequences: calibration sequences, held-out ones included.
        length: tokens per calibration sequence.
        micro_batch: sequences per forward pass.
        forwards: forward passes of calibration through each block.
        on_disk: True if activations are kept in files.
        streamed: True if blocks are read from disk one at a time.
        streamable: True if the model could be streamed, i.e. is read from a file.
        corrected: input widths whose second moment the correction decomposes.
        calibration_text: text of the calibration sequences.
        evaluation_texts: texts of the evaluations.
        windows: windows of each evaluation and data set.
    """

    shapes: ModelShapes
    element: int
    device: str
    sequences: int
    length: int
    micro_batch: int
    forwards: int
    on_disk: bool
    streamed: bool
    streamable: bool
    corrected: tuple[int, ...]
    calibration_text: Corpus
    evaluation_texts: tuple[Corpus, ...]
    windows: tuple[Windows, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all calibration sequences."""
        return self.sequences * self.length

    @property
    def waiting(self) -> int:
        """Bytes of all activations that wait between two stages of a block.

        These are the block's input, the residual stream inside it, and the input and output of its widest
        group.
        """
        return self.element * self.tokens * (3 * self.shapes.hidden + self.shapes.intermediate)


def workload(config: RunConfig, shapes: ModelShapes, hardware: dict[str, str]) -> Workload:
    """Return the workload of a cell on ``hardware`` (keys ``device`` and ``dtype``)."""
    calibration, streaming = config.calibration, config.scalars.streaming
    sequences = calibration.nsamples + config.heldout
    element = ELEMENT[hardware["dtype"]]
    tiny = isinstance(config.model, TinyModel)  # random weights, not read from a file; a token is a byte
    large = (
        not tiny and streaming == "auto" and element * shapes.parameters > MEMORY_SHARE * available_memory()
    )
    name = getattr(calibration.source(), "name", "")
    measured = [(part, dataset) for part in _parts(config.evaluation) for dataset in part.datasets]
    texts = [_text(dataset, "evaluation", part.windows * part.seqlen, tiny) for part, dataset in measured]
    return Workload(
        shapes=shapes,
        element=element,
        device=hardware["device"],
        sequences=sequences,
        length=calibration.seqlen,
        micro_batch=min(calibration.batch_size or sequences, sequences),
        forwards=2 if calibration.stages != "true_sequential" else 1,
        on_disk=calibration.activations == "disk",
        streamed=streaming == "on" or large,
        streamable=not tiny,
        corrected=_corrected(config, shapes),
        calibration_text=_text(name, "calibration", sequences * calibration.seqlen, tiny),
        evaluation_texts=tuple(dict.fromkeys(texts)),
        windows=tuple(
            Windows(part.windows or 1000, part.seqlen, part.batch_size, isinstance(part, Divergence))
            for part, _ in measured
        ),
    )


def _parts(evaluation: Evaluation) -> Iterator[WindowedText]:
    """Yield the evaluations on windows; tasks are not predicted, since only lm-eval knows their requests."""
    if isinstance(evaluation, Composite):
        for part in evaluation.parts.values():
            yield from _parts(part)
    elif isinstance(evaluation, WindowedText):
        yield evaluation


def _text(name: str, split: str, needed: int, bytes_as_tokens: bool) -> Corpus:
    """Return a text with known size if it is bundled, else just as many tokens as are needed."""
    characters = TEXTS.get((name, split), int(needed * CHARACTERS_A_TOKEN))
    tokens = characters if bytes_as_tokens else int(characters / CHARACTERS_A_TOKEN)
    return Corpus(f"{name} {split}", characters, tokens)


def _corrected(config: RunConfig, shapes: ModelShapes) -> tuple[int, ...]:
    """Return the input widths of all layers that the correction decomposes, those it skips left out."""
    if not config.correction.requires:
        return ()
    skip = getattr(config.correction, "skip", ["*down_proj"])
    widths = {
        columns
        for name, (_, columns) in shapes.linears.items()
        if not any(fnmatchcase(name, pattern) for pattern in skip)
    }
    return tuple(sorted(widths))
