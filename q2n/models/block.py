"""Decoder block of the supported families, and the stages of its forward pass.

The families differ in biases, head norms and masks, which all stay inside Hugging Face's attention code:
nothing here re-implements attention.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from q2n.exceptions import ModelError
from q2n.models.shapes import DOWN, GATE_UP, GROUPS, O_PROJ, QKV, LinearGroup

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.models.block_files import FinishedBlocks

_WRAPPED = re.compile(r"\.linear(?=\.[^.]+$)")
"""Part that a wrapper adds to the names of a linear's own tensors."""


def _identity(tensor: Tensor) -> Tensor:
    return tensor


class Residency:
    """Place of a block's weights while the block is not used: here the host's memory.

    One block at a time is copied to the device. In :class:`q2n.models.streaming.Streamed` the place is a
    file.
    """

    in_memory: ClassVar[bool] = True

    def enter(self, block: DecoderBlock, device: torch.device) -> None:
        """Put the weights on ``device``."""
        block.module.to(device)

    def leave(self, block: DecoderBlock, device: torch.device) -> None:
        """Remove the weights from ``device`` until they are needed again."""
        if device.type != "cpu":
            block.module.to("cpu")

    def during_calls(self, block: DecoderBlock, device: torch.device) -> AbstractContextManager[None]:
        """Make the block's module callable with inputs on ``device``, inside the block of code."""
        return block.on(device)

    def rewrite(self, block: DecoderBlock, change: Callable[[DecoderBlock], None]) -> None:
        """Apply ``change`` to the original weights, at the latest when they are next used."""
        change(block)

    def finish(self, block: DecoderBlock, finished: FinishedBlocks) -> None:
        """Note that the block, which is in use, has its final weights."""

    def restore(self, block: DecoderBlock, finished: FinishedBlocks) -> None:
        """Load the block's final weights from ``finished``."""
        block.assign(finished.read(block.index))


class DecoderBlock:
    """Decoder block: ``h + attention(norm(h))``, then ``h + mlp(norm(h))``.

    A linear may be replaced by a wrapper with the original layer in ``.linear`` and a transform of the input
    in ``.prepare_input(x)`` (an online Hadamard transform, say): :meth:`linear` then returns the inner layer,
    and :meth:`staged_forward` yields the transformed input.
    """

    groups: tuple[LinearGroup, ...] = GROUPS

    def __init__(self, index: int, module: nn.Module) -> None:
        self.index = index
        self.module = module
        self.residency = Residency()
        self._seqlen = 0
        self._kwargs: dict[str, Any] = {}

    @property
    def attention(self) -> nn.Module:
        """Hugging Face's attention module of the block."""
        return self.module.get_submodule("self_attn")

    @property
    def mlp(self) -> nn.Module:
        """Hugging Face's feed-forward network of the block."""
        return self.module.get_submodule("mlp")

    def linear(self, name: str) -> nn.Linear:
        """Return the linear layer ``name`` (``self_attn.q_proj``), without its wrapper if it has one."""
        child = self.module.get_submodule(name)
        return cast(nn.Linear, getattr(child, "linear", child))

    def add_bias(self, name: str, bias: Tensor) -> None:
        """Add ``bias`` ``(out,)`` to the output of the linear ``name``, which may have no bias yet."""
        layer = self.linear(name)
        total = bias.float() if layer.bias is None else layer.bias.float() + bias.float()
        layer.bias = nn.Parameter(total.to(layer.weight), requires_grad=False)

    def replace(self, name: str, module: nn.Module) -> None:
        """Replace the submodule ``name`` by ``module`` (a wrapper around the linear, say)."""
        parent, _, leaf = name.rpartition(".")
        setattr(self.module.get_submodule(parent), leaf, module)

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """Keep the weights on ``device``, inside the block of code."""
        self.residency.enter(self, device)
        try:
            yield
        finally:
            self.residency.leave(self, device)

    def rewrite(self, change: Callable[[DecoderBlock], None]) -> None:
        """Apply ``change`` to the original weights, now or, where they are streamed, whenever they are read.

        Rewrites of the whole model must change the weights of blocks by this method.
        """
        self.residency.rewrite(self, change)

    def finish(self, finished: FinishedBlocks) -> None:
        """Declare the weights final: they may move from memory to ``finished`` while they are not in use."""
        self.residency.finish(self, finished)

    def restore(self, finished: FinishedBlocks) -> None:
        """Load the final weights from ``finished``."""
        self.residency.restore(self, finished)

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers by name inside the block; names ignore wrappers of linears."""
        state = self.module.state_dict(keep_vars=True)
        return {_WRAPPED.sub("", name): tensor for name, tensor in state.items()}

    def assign(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace all of :meth:`tensors`; linears may get biases that they lack.

        Raises:
            ModelError: names of ``tensors`` and of the block differ.
        """
        present = self.tensors().keys()
        biases = {f"{name}.bias" for group in self.groups for name in group.linears}
        odd = (present - tensors.keys()) | (tensors.keys() - present - biases)
        if odd:
            raise ModelError(f"block {self.index}: {', '.join(sorted(odd)[:3])}: missing, or not the block's")
        for name, tensor in tensors.items():
            place, _, leaf = name.rpartition(".")
            owner = self.module.get_submodule(place)
            if leaf not in owner._parameters and leaf not in owner._buffers:
                owner = owner.get_submodule("linear")
            if leaf in owner._parameters:
                owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
            else:
                owner.register_buffer(leaf, tensor)

    def norm_before(self, group: LinearGroup) -> nn.Module | None:
        """Return the norm whose output is the group's input, or None if no norm comes just before."""
        names = {QKV.name: "input_layernorm", GATE_UP.name: "post_attention_layernorm"}
        return self.module.get_submodule(names[group.name]) if group.name in names else None

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the output ``(B, T, D)`` of the block for ``hidden`` ``(B, T, D)``.

        Raises:
            ValueError: the adapter was prepared for another sequence length.
        """
        output = self.module(hidden, **self._call_kwargs(hidden))
        return cast("Tensor", output[0] if isinstance(output, tuple) else output)

    def attend(self, normed: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the attention's output ``(B, T, D)`` with other parameters.

        Args:
            normed: input of the attention, ``(B, T, D)``.
            parameters: tensors used instead of the module's own, by name inside it (``q_proj.weight``).
        """
        arguments = {"hidden_states": normed, **self._call_kwargs(normed)}
        return cast("Tensor", functional_call(self.attention, dict(parameters), (), arguments)[0])

    def staged_forward(
        self, hidden: Tensor, store: Callable[[Tensor], Tensor] = _identity
    ) -> Generator[tuple[LinearGroup, Tensor], None, Tensor]:
        """Run :meth:`forward` in stages: yield each group with its input just before the group is applied.

        The caller may change the group's weights before resuming the generator; the forward pass continues
        with the new weights.

        Args:
            hidden: ``(B, T, D)``; the caller keeps it alive.
            store: applied to every tensor that must outlive a yield; returns an equal tensor that may be
                stored elsewhere (in a memory-mapped file, say).

        Returns:
            The block's output ``(B, T, D)``, bit for bit that of :meth:`forward` with the weights that each
            group had when it was applied.
        """
        kwargs = self._call_kwargs(hidden)
        x = store(self.module.get_submodule("input_layernorm")(hidden))
        yield QKV, self._prepared(QKV, x)
        with _replaced(self.attention, "o_proj"):
            a = store(self.attention(hidden_states=x, **kwargs)[0])
        del x
        yield O_PROJ, self._prepared(O_PROJ, a)
        hidden = store(hidden + self.module.get_submodule("self_attn.o_proj")(a))
        del a
        x = store(self.module.get_submodule("post_attention_layernorm")(hidden))
        yield GATE_UP, self._prepared(GATE_UP, x)
        with _replaced(self.mlp, "down_proj"):
            m = store(self.mlp(x))
        del x
        yield DOWN, self._prepared(DOWN, m)
        return cast("Tensor", hidden + self.module.get_submodule("mlp.down_proj")(m))

    def set_kwargs(self, seqlen: int, kwargs: dict[str, Any]) -> None:
        """Keep the model's arguments to this block besides the hidden states, for sequences of ``seqlen``."""
        self._seqlen, self._kwargs = seqlen, kwargs

    def _prepared(self, group: LinearGroup, x: Tensor) -> Tensor:
        prepare = getattr(self.module.get_submodule(group.linears[0]), "prepare_input", _identity)
        return cast("Tensor", prepare(x))

    def _call_kwargs(self, hidden: Tensor) -> dict[str, Any]:
        if hidden.shape[1] != self._seqlen:
            raise ValueError(
                f"block {self.index} got sequences of {hidden.shape[1]} tokens, but the model was prepared "
                f"for {self._seqlen}"
            )
        moved: dict[str, Any] = tree_map_only(torch.Tensor, lambda it: it.to(hidden.device), self._kwargs)
        return moved


@contextmanager
def _replaced(module: nn.Module, name: str) -> Iterator[None]:
    """Replace ``module.name`` by the identity, inside the block of code."""
    original = getattr(module, name)
    setattr(module, name, nn.Identity())
    try:
        yield
    finally:
        setattr(module, name, original)
