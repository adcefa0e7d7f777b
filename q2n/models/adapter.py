"""Adapter from Hugging Face models to embedding, blocks, norms, linears and head.

Only this module and :mod:`q2n.models.block` know an architecture. Supported families: Llama, Mistral,
Qwen2/2.5 and dense Qwen3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from q2n.exceptions import ModelError, UnsupportedError
from q2n.models.block import DecoderBlock
from q2n.models.shapes import LinearGroup

__all__ = ["FAMILIES", "DecoderBlock", "LinearGroup", "ModelAdapter", "adapt", "require_family"]

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""``config.model_type`` of every supported family."""

BY_LENGTH = ("dynamic", "longrope")
"""Kinds of rotary embeddings whose frequencies depend on the length of the sequence."""


class ModelAdapter:
    """Causal language model as embedding, blocks and head."""

    def __init__(self, model: nn.Module) -> None:
        config = cast(Any, model).config
        self.model = model
        self.family: str = config.model_type
        self.base = model.get_submodule("model")
        self.embeddings = cast(nn.Embedding, self.base.get_submodule("embed_tokens"))
        self.final_norm = self.base.get_submodule("norm")
        self.lm_head = cast(nn.Linear, model.get_submodule("lm_head"))
        self.rotary = cast(Any, self.base.get_submodule("rotary_emb"))
        self.rotary.register_forward_pre_hook(_forget_lengths)
        layers = cast(nn.ModuleList, self.base.get_submodule("layers"))
        self.blocks = [DecoderBlock(index, layer) for index, layer in enumerate(layers)]
        self.hidden_size: int = config.hidden_size
        self.intermediate_size: int = config.intermediate_size
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = config.num_key_value_heads
        self.head_dim: int = getattr(config, "head_dim", None) or self.hidden_size // self.num_heads

    @property
    def tied(self) -> bool:
        """True if the head's weight and the embedding are the same tensor."""
        return self.lm_head.weight is self.embeddings.weight

    @property
    def rotates_by_length(self) -> bool:
        """True if the longest sequence of a batch decides the rotation of all its sequences."""
        return getattr(self.rotary, "rope_type", "default") in BY_LENGTH

    @property
    def in_memory(self) -> bool:
        """True if all weights are loaded; otherwise the weights of a block are read when it is used."""
        return all(block.residency.in_memory for block in self.blocks)

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Make the whole model callable with inputs on ``device``; afterwards it is on the CPU again."""
        with ExitStack() as stack:
            for block in self.blocks:
                stack.enter_context(block.residency.during_calls(block, device))
            try:
                self._around_blocks_to(device)
                yield
            finally:
                self._around_blocks_to(torch.device("cpu"))

    def _around_blocks_to(self, device: torch.device) -> None:
        for name, child in (*self.model.named_children(), *self.base.named_children()):
            if name not in ("model", "layers"):
                child.to(device)

    def rewriting(self) -> AbstractContextManager[object]:
        """Let a method rewrite the whole model, inside (blocks by :meth:`DecoderBlock.rewrite`).

        Raises:
            UnsupportedError: the method tries to change weights that are not in memory.
        """
        return nullcontext() if self.in_memory else cast(Any, OnlyInMemory)()

    def embed(self, ids: Tensor) -> Tensor:
        """Return the hidden states ``(B, T, D)`` that enter the first block, for token ids ``(B, T)``."""
        return cast(Tensor, self.embeddings(ids.to(self.embeddings.weight.device)))

    @torch.no_grad()
    def prepare(self, seqlen: int) -> None:
        """Prepare every block for sequences of ``seqlen`` tokens, in batches of any size.

        Rotary tables and masks are taken from the model itself: it runs once on a dummy sequence while its
        blocks only record their arguments.

        Raises:
            ModelError: the model calls another number of blocks than the adapter knows.
        """
        ids = torch.zeros(1, seqlen, dtype=torch.long, device=self.embeddings.weight.device)
        captured: list[dict[str, Any]] = []

        def record(hidden_states: Tensor, **kwargs: Any) -> Tensor:
            captured.append(kwargs)
            return hidden_states

        with ExitStack() as stack:
            for block in self.blocks:
                stack.enter_context(_forwarding(block.module, record))
            # The norm is skipped, because it may be on another device than the embeddings.
            stack.enter_context(_forwarding(self.final_norm, lambda hidden_states: hidden_states))
            self.base(input_ids=ids, use_cache=False)
        if len(captured) != len(self.blocks):
            raise ModelError(f"the model called {len(captured)} blocks; the adapter knows {len(self.blocks)}")
        for block, kwargs in zip(self.blocks, captured, strict=True):
            block.set_kwargs(seqlen, kwargs)


class OnlyInMemory(TorchDispatchMode):
    """Mode that refuses computations with weights that are not in memory: they would have no effect."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(item, Tensor) and item.is_meta for item in tree_leaves((args, kwargs))):
            raise UnsupportedError(
                "streaming: this method changes the weights of a block that is not in memory; use "
                "streaming=off (in the code of the method: block.rewrite(change))"
            )
        return func(*args, **(kwargs or {}))


def adapt(model: nn.Module) -> ModelAdapter:
    """Return the adapter of ``model``.

    Raises:
        ModelError: its architecture is not supported.
    """
    require_family(getattr(model, "config", None))
    return ModelAdapter(model)


def require_family(config: Any) -> None:
    """Check that a model of this configuration can be adapted.

    Raises:
        ModelError: its architecture is not supported.
    """
    family = getattr(config, "model_type", None)
    if family not in FAMILIES:
        raise ModelError(
            f"no adapter for the architecture {family!r}; known: {', '.join(FAMILIES)} "
            "(see 'Adding a model' in the README)"
        )


def _forget_lengths(rotary: Any, _: object) -> None:
    """Reset a dynamic rotary embedding to its initial state.

    Hugging Face's module keeps the frequencies of the longest sequence so far for all later, shorter ones:
    the output of a model would depend on all earlier inputs.
    """
    if getattr(rotary, "rope_type", "default") == "dynamic":
        rotary.inv_freq = rotary.original_inv_freq
        rotary.max_seq_len_cached = rotary.original_max_seq_len


@contextmanager
def _forwarding(module: nn.Module, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Replace the ``forward`` of ``module``, inside the block of code."""
    # Only `forward` is replaced, so that the model finds all other attributes of its layers; a layer that
    # already has a `forward` of its own (device placement hooks) gets it back.
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own
