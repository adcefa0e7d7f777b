"""Predicted peak memory and disk space of a cell, in bytes, from sizes alone.

The peak is the sum of what is always in memory and the largest phase. The constants were fitted to measured
peaks (docs/sweeps.md; docs/LOG.md has the errors of the predictions).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from q2n.config import RunConfig
from q2n.plan.workload import Corpus, Windows, Workload

BASE = 510e6
"""Interpreter with torch, transformers, numba and the model's code, without weights (440 MB), and pyarrow
with pandas, which read and write records (70 MB)."""
BASE_ON_CUDA = 2.5e9
"""Host memory of CUDA's libraries, in addition to :data:`BASE` (not measured on this project's machines)."""
PER_CHARACTER = 77.0
"""Bytes per character while a text is tokenized: strings."""
PER_TOKEN = 195.0
"""Bytes per token while a text is tokenized: the tokenizer's data on each token."""
TEXT_STAYS = 0.5
"""Share of the tokenizer's memory that the allocator keeps afterwards (measured: 0.37 to 0.8,
docs/LOG.md)."""
WORK_STAYS = 0.35
"""Share of a phase's tensors that the allocator keeps afterwards."""
FILE_ELEMENT = 2
"""Bytes per weight in a model file (16-bit formats)."""
HEAD_ROWS = 1024
"""Rows of logits at once: an upper bound, since the evaluations compute 128 or 256 at once."""
SOLVER_COPIES = 8
"""Float32 copies of a group's stacked weight in the solver: weight, target, codes, errors, result."""
GRAM_COPIES = 4
"""Float32 matrices of the input's width: the Gram matrix (1), the float64 copy that is factorised in place
(2), and intermediate results (1)."""
SPECTRUM_COPIES = 4
"""Float64 matrices of an eigendecomposition: matrix (1), eigenvectors (1), workspace (2)."""
RECORD = 200e3
"""Approximate bytes of a record and its log on disk."""
LOADING = "loading"
"""Name of the phase that :attr:`Memory.needed` leaves out."""


@dataclass(frozen=True)
class Memory:
    """Predicted memory in bytes.

    Attributes:
        base: memory in use during the whole cell, by cause.
        phases: further memory of each phase, by name.
        device: peak memory of the device, or None if the cell runs on the CPU.
    """

    base: Mapping[str, float]
    phases: Mapping[str, float]
    device: float | None = None

    @property
    def host(self) -> int:
        """Peak memory of the host."""
        return round(sum(self.base.values()) + max(self.phases.values()))

    @property
    def needed(self) -> int:
        """Memory that the host must have: the peak without loading, whose mapped pages can be evicted."""
        return round(sum(self.base.values()) + self.phases[self.phase])

    @property
    def phase(self) -> str:
        """Phase with the largest memory, loading aside."""
        return max((name for name in self.phases if name != LOADING), key=lambda name: self.phases[name])


def predict(work: Workload) -> Memory:
    """Return the predicted memory of a cell."""
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
    """Return the number of weights in memory: all, or for a streamed model embedding, head and two blocks."""
    shapes = work.shapes
    if not work.streamed:
        return shapes.parameters
    heads = 1 if shapes.tied else 2
    return heads * shapes.embedding_weights + 2 * shapes.block_weights


def _loading(work: Workload) -> float:
    """Return the bytes beside the weights: the mapped model file, or float32 numbers of a random model."""
    if work.streamed:
        return 0.0
    if work.streamable:
        return work.shapes.parameters * FILE_ELEMENT
    return work.shapes.parameters * 4.0


def _tokenizing(text: Corpus) -> float:
    """Return the peak bytes of tokenizing a text."""
    return PER_CHARACTER * text.characters + PER_TOKEN * text.tokens


def _calibration(work: Workload, on_host: bool) -> float:
    """Return the bytes of activations: those that wait for the next stage, and one micro-batch in a block."""
    if not on_host:
        return 0.0 if work.on_disk else work.tokens * work.element * 2.0 * work.shapes.hidden
    flying = _batch(work, work.micro_batch, work.length)
    return flying + (0.0 if work.on_disk else work.waiting)


def _batch(work: Workload, batch: int, length: int) -> float:
    """Return the bytes of a micro-batch in a block.

    Counted are gate, up and their product, queries, keys, values and the output of attention, the residual
    stream, and the float32 inputs of the statistics.
    """
    shapes, rows = work.shapes, batch * length
    attention = (2 * shapes.heads + 2 * shapes.kv_heads) * shapes.head_dim
    wide = 3 * shapes.intermediate + 2 * shapes.hidden + attention
    return float(rows * (work.element * wide + 4 * shapes.intermediate))


def _solving(work: Workload) -> float:
    """Return the bytes to solve and correct the largest group of layers."""
    shapes = work.shapes.linears
    stacked = max(
        shapes["mlp.gate_proj"][0] * shapes["mlp.gate_proj"][1] * 2,
        sum(shapes[f"self_attn.{name}_proj"][0] for name in "qkv") * work.shapes.hidden,
    )
    widest = max(columns for _, columns in shapes.values())
    spectrum = 8 * SPECTRUM_COPIES * max((width**2 for width in work.corrected), default=0)
    return 4 * SOLVER_COPIES * stacked + 4 * GRAM_COPIES * widest**2 + spectrum


def _evaluation(work: Workload, windows: Windows) -> float:
    """Return the bytes of an evaluation on windows.

    The hidden states of all windows, and the larger of one batch in a block and a second copy of the states
    with logits (in the model's dtype, in float32, and log-softmax).
    """
    rows = min(HEAD_ROWS, windows.length - 1)
    logits = rows * work.shapes.vocab * (work.element + 8)
    states = _states(work, windows)
    flying = _batch(work, min(windows.batch, windows.count), windows.length)
    return states + max(states + logits, flying)


def _states(work: Workload, windows: Windows) -> float:
    """Return the bytes of the last hidden states of all windows."""
    return float(windows.tokens * work.shapes.hidden * work.element)


def _kept(work: Workload) -> float:
    """Return the bytes kept for divergence: the unquantized model's last hidden states and its head."""
    kept = [windows.tokens for windows in work.windows if windows.keeps]
    head = work.shapes.embedding_weights if kept else 0
    return float(work.element * (sum(kept) * work.shapes.hidden + head))


def _device(work: Workload, evaluation: float) -> float:
    """Return the device's peak: one block with activations and solver, or the head with an evaluation."""
    block = work.element * work.shapes.block_weights
    flying = _batch(work, work.micro_batch, work.length)
    head = work.element * work.shapes.embedding_weights
    return max(block + work.waiting + flying + _solving(work), head + max(evaluation, block))


def disk(work: Workload, config: RunConfig) -> float:
    """Return the maximum bytes on disk.

    Counted are record and log, the checkpoint (finished blocks and the activations of the next one), finished
    blocks of a streamed model, and activations in files.
    """
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
