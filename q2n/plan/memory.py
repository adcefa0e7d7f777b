"""Peak memory of a cell, from sizes alone: what is there all the time, and the largest of its phases; and the
room it needs on disk.

Every term is a formula with its reason; the constants were fitted to measured peaks (docs/sweeps.md says on
what, and how near the predictions came). All sizes are in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from q2n.config import RunConfig
from q2n.plan.workload import Corpus, Windows, Workload

BASE = 510e6
"""The interpreter with torch, transformers, numba and the model's code, before any weight (440 MB), and
pyarrow with pandas, which are loaded to write or read a record (70 MB)."""
BASE_ON_CUDA = 2.5e9
"""The same with CUDA's own libraries on the host (not measured on this project's machines)."""
PER_CHARACTER = 77.0
PER_TOKEN = 195.0
"""A text while it is cut into tokens: strings, and the tokenizer's notes on each token."""
TEXT_STAYS = 0.5
"""Share of that which the allocator does not give back afterwards."""
WORK_STAYS = 0.35
"""The same of a phase's tensors."""
FILE_ELEMENT = 2
"""Bytes of a number in a checkpoint's file."""
HEAD_ROWS = 1024
"""Rows of logits that exist at once (:mod:`q2n.evaluation.perplexity`)."""
SOLVER_COPIES = 8
"""Float32 copies of a group's stacked weight while it is solved: weight, target, codes, errors, result."""
GRAM_COPIES = 4
"""Float32 matrices of the input's width: the sum, the float64 one that is factorised in place (as two), and
its parts on the way (as one)."""
SPECTRUM_COPIES = 4
"""Float64 matrices of an eigendecomposition: matrix, vectors, workspace of twice that."""
RECORD = 200e3
"""A record and a log on disk, about."""
LOADING = "loading"


@dataclass(frozen=True)
class Memory:
    """``phases`` by name are beside ``base``; ``device`` is None where there is no device but the host."""

    base: Mapping[str, float]
    phases: Mapping[str, float]
    device: float | None = None

    @property
    def host(self) -> int:
        """The peak."""
        return round(sum(self.base.values()) + max(self.phases.values()))

    @property
    def needed(self) -> int:
        """What must be there: the pages of a file that is being copied count in the peak, but can leave."""
        return round(sum(self.base.values()) + self.phases[self.phase])

    @property
    def phase(self) -> str:
        """Where the most is needed."""
        return max((name for name in self.phases if name != LOADING), key=lambda name: self.phases[name])


def predict(work: Workload) -> Memory:
    """Peak memory of a cell."""
    on_host = work.device == "cpu"
    measuring = max((_evaluation(work, windows) for windows in work.windows), default=0.0)
    solving = _calibration(work, on_host) + (_solving(work) if on_host else 0.0)
    on_device = measuring
    if not on_host:
        measuring = max((_states(work, windows) for windows in work.windows), default=0.0)
    encoding = max((_tokenizing(text) for text in work.evaluation_texts), default=0.0)
    base = {
        "libraries": BASE if on_host else BASE + BASE_ON_CUDA,
        "weights": work.element * _resident_weights(work),
        "evaluation text": TEXT_STAYS * sum(_tokenizing(text) for text in work.evaluation_texts),
        "kept for divergence": _kept(work),
    }
    left = WORK_STAYS * measuring
    text = TEXT_STAYS * _tokenizing(work.calibration_text)
    phases = {
        LOADING: _loading(work),
        "unquantized evaluation": TEXT_STAYS * encoding + measuring,
        "tokenizing": left + _tokenizing(work.calibration_text),
        "quantization": left + text + solving,
        "evaluation": left + text + WORK_STAYS * solving + measuring,
    }
    return Memory(base, phases, None if on_host else _device(work, on_device))


def _resident_weights(work: Workload) -> int:
    """All of them; of a streamed model embedding, head and two blocks."""
    shapes = work.shapes
    if not work.streamed:
        return shapes.parameters
    heads = 1 if shapes.tied else 2
    return heads * shapes.embedding_weights + 2 * shapes.block_weights


def _loading(work: Workload) -> float:
    """Beside the weights: the mapped file they are copied from, or the float32 numbers that were drawn."""
    if work.streamed:
        return 0.0
    if work.streamable:
        return work.shapes.parameters * FILE_ELEMENT
    return work.shapes.parameters * 4.0


def _tokenizing(text: Corpus) -> float:
    return PER_CHARACTER * text.characters + PER_TOKEN * text.tokens


def _calibration(work: Workload, on_host: bool) -> float:
    """Activations of all sequences that wait for the next stage (the block's input, the residual stream
    inside it, the widest input of a group), and one micro-batch on its way through the MLP."""
    if not on_host:
        return 0.0 if work.on_disk else work.tokens * work.element * 2.0 * work.shapes.hidden
    flying = _batch(work, work.micro_batch, work.length)
    return flying + (0.0 if work.on_disk else work.waiting)


def _batch(work: Workload, batch: int, length: int) -> float:
    """A micro-batch in a block: gate, up and their product, queries, keys, values and what attention makes of
    them, the residual stream, and the float32 inputs of the statistics."""
    shapes, rows = work.shapes, batch * length
    attention = (2 * shapes.heads + 2 * shapes.kv_heads) * shapes.head_dim
    wide = 3 * shapes.intermediate + 2 * shapes.hidden + attention
    return float(rows * (work.element * wide + 4 * shapes.intermediate))


def _solving(work: Workload) -> float:
    """The largest group of layers while it is solved and corrected."""
    shapes = work.shapes.linears
    stacked = max(
        shapes["mlp.gate_proj"][0] * shapes["mlp.gate_proj"][1] * 2,
        sum(shapes[f"self_attn.{name}_proj"][0] for name in "qkv") * work.shapes.hidden,
    )
    widest = max(columns for _, columns in shapes.values())
    spectrum = 8 * SPECTRUM_COPIES * max((width**2 for width in work.corrected), default=0)
    return 4 * SOLVER_COPIES * stacked + 4 * GRAM_COPIES * widest**2 + spectrum


def _evaluation(work: Workload, windows: Windows) -> float:
    """All windows' hidden states twice (in batches, then as one), or one batch in a block, and logits: in the
    model's dtype, in float32, and their normalised copy."""
    rows = min(HEAD_ROWS, windows.length - 1)
    logits = rows * work.shapes.vocab * (work.element + 8)
    states = _states(work, windows)
    flying = _batch(work, min(windows.batch, windows.count), windows.length)
    return states + max(states + logits, flying)


def _states(work: Workload, windows: Windows) -> float:
    return float(windows.tokens * work.shapes.hidden * work.element)


def _kept(work: Workload) -> float:
    """The unquantized model's last hidden states, and a copy of its head."""
    kept = [windows.tokens for windows in work.windows if windows.keeps]
    head = work.shapes.embedding_weights if kept else 0
    return float(work.element * (sum(kept) * work.shapes.hidden + head))


def _device(work: Workload, evaluation: float) -> float:
    """One block with all activations and its solver, or the head with the evaluation's windows."""
    block = work.element * work.shapes.block_weights
    flying = _batch(work, work.micro_batch, work.length)
    head = work.element * work.shapes.embedding_weights
    return max(block + work.waiting + flying + _solving(work), head + max(evaluation, block))


def disk(work: Workload, config: RunConfig) -> float:
    """Bytes on disk at most at one time: record and log, the checkpoint (finished blocks and the activations
    of the next one), finished blocks of a streamed model, activations that are kept in files."""
    shapes = work.shapes
    saves = config.scalars.checkpoint_every != 0
    total = RECORD
    if saves or work.streamed:
        total += work.element * shapes.num_blocks * shapes.block_weights
    if saves:
        total += work.element * work.tokens * shapes.hidden
    if work.on_disk:
        total += work.waiting
    return total
