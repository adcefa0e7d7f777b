"""Norms and gated feed-forward networks that pass over memory once on a CPU.

Speed only, see :mod:`q2n.linalg`.

They replace Hugging Face's modules, with the same formulas and the same parameters under the same names.
Where a kernel does not apply (another device or dtype, gradients, numba missing) they use torch's operations.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from q2n.linalg.kernels import usable_halves
from q2n.linalg.kernels.threads import over_rows

if TYPE_CHECKING:
    from torch import Tensor

    from q2n.linalg.kernels import Floats

NORMS = frozenset({"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"})
NETWORKS = frozenset({"LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP"})
SILU = frozenset({"SiLU", "SiLUActivation"})


def fuse(model: nn.Module) -> None:
    """Replace every norm and feed-forward network of a known class in ``model``, in place."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            kind = type(child).__name__
            if kind in NORMS:
                setattr(parent, name, RMSNorm(child))
            elif kind in NETWORKS:
                setattr(parent, name, GatedMLP(child))


class RMSNorm(nn.Module):
    """RMS norm ``weight * x / sqrt(mean(x^2) + epsilon)`` over the last dimension; weight of ``norm``."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight: nn.Parameter = norm.weight
        self.variance_epsilon: float = norm.variance_epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the normalised states, with shape and dtype of ``hidden_states`` ``(..., D)``."""
        weight = self.weight
        if not (_fusable(hidden_states, weight) and hidden_states.is_contiguous()):
            wide = hidden_states.float()
            scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
            return weight * (wide * scale).to(hidden_states.dtype)
        from q2n.linalg.kernels.forward import norm_rows

        normed = torch.empty_like(hidden_states)
        rows = _rows(hidden_states)
        over_rows(norm_rows, len(rows), rows, _bits(weight), self.variance_epsilon, _rows(normed))
        return normed


class GatedMLP(nn.Module):
    """Feed-forward network ``down(activation(gate(x)) * up(x))`` with the layers of ``network``."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = network.gate_proj, network.up_proj
        self.down_proj, self.act_fn = network.down_proj, network.act_fn

    def forward(self, x: Tensor) -> Tensor:
        """Return the output ``(..., D)`` for ``x`` ``(..., D)``."""
        return cast("Tensor", self.down_proj(self._product(self.gate_proj(x), self.up_proj(x))))

    def _product(self, gates: Tensor, inputs: Tensor) -> Tensor:
        """Return ``activation(gates) * inputs``; both may be overwritten."""
        fusable = type(self.act_fn).__name__ in SILU and _fusable(gates, inputs)
        if not (fusable and gates.is_contiguous() and inputs.is_contiguous()):
            return cast("Tensor", self.act_fn(gates) * inputs)
        from q2n.linalg.kernels.forward import multiply_activated

        rows = _rows(gates)
        over_rows(multiply_activated, len(rows), rows, _silu_table(), _rows(inputs), rows)
        return gates


def _fusable(*tensors: Tensor) -> bool:
    return not torch.is_grad_enabled() and all(usable_halves(tensor) for tensor in tensors)


@cache
def _silu_table() -> Floats:
    """Tabulate ``x / (1 + exp(-x))`` of every bfloat16 number, ``(65536,)`` in the order of their bits."""
    numbers = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    return cast("Floats", nn.functional.silu(numbers).float().numpy())


def _rows(tensor: Tensor) -> Any:
    return _bits(tensor.view(-1, tensor.shape[-1]))


def _bits(tensor: Tensor) -> Any:
    return tensor.detach().view(torch.uint16).numpy()
