"""Tiny models through the whole pipeline, with a record of every problem that was solved."""

from dataclasses import dataclass, field
from typing import Any

import torch

from q2n.corrections.none import NoCorrection
from q2n.diagnostics.base import NoDiagnostics
from q2n.models.spec import TinyModel
from q2n.pipeline.activations import activation_store
from q2n.pipeline.blocks import BlockLoop, Method

FAMILIES = ("llama", "qwen2", "qwen3")
HEAD_DIM = {"qwen3": 32}


def tiny(family="llama", **fields):
    """A model of two blocks, as ``conf/model/tiny_<family>.yaml`` describes it."""
    sizes = {"head_dim": HEAD_DIM.get(family, 16), "tied": family == "llama", **fields}
    return TinyModel(name=f"tiny_{family}", family=family, **sizes).load(torch.float32)


def tokens(sequences=5, length=24):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, 259, (sequences, length), generator=generator)


@dataclass
class Recorder:
    """A baseline that also notes each problem with its solution, in order."""

    inner: Any
    solved: list[Any] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def solve(self, problem, correction):
        solution = self.inner.solve(problem, correction)
        self.solved.append((problem, solution))
        return solution


@dataclass(frozen=True)
class Run:
    """A quantized model, its layer reports, and what was solved."""

    loaded: Any
    reports: list[Any]
    solved: list[Any]

    def state(self):
        return self.loaded.model.state_dict()

    @torch.no_grad()
    def logits(self):
        return self.loaded.model(tokens(2), use_cache=False).logits


def run(
    baseline,
    correction=None,
    family="llama",
    *,
    ids=None,
    batch_size=0,
    true_sequential=True,
    activations="memory",
    spoil=None,
    heldout=None,
    diagnostics=None,
):
    """``BlockLoop`` on a new tiny model; ``spoil(model)`` may change it before."""
    loaded = tiny(family)
    if spoil is not None:
        with torch.no_grad():
            spoil(loaded.model)
    recorder = Recorder(baseline)
    with activation_store(activations) as store:
        reports = BlockLoop(
            Method(recorder, correction or NoCorrection(), diagnostics or NoDiagnostics()),
            tokens() if ids is None else ids,
            batch_size=batch_size,
            true_sequential=true_sequential,
            store=store,
            device=torch.device("cpu"),
            progress=lambda block, stage: None,
            heldout=heldout,
        ).quantize(loaded.adapter)
    return Run(loaded, reports, recorder.solved)


def same_state(first, second):
    """Whether two runs left the same model, bit for bit."""
    one, other = first.state(), second.state()
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
