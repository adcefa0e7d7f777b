"""QuaRot (Ashkboos et al., NeurIPS 2024, arXiv 2404.00456): a rotated model with low-bit activations."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from q2n.baselines.base import (
    ActivationBits,
    Bits,
    ClipRatio,
    Damping,
    DampingSchedule,
    GroupSize,
    LayerwiseBaseline,
    Seed,
    layer_widths,
)
from q2n.corrections.base import ReleasedRecipe
from q2n.exceptions import UnsupportedError
from q2n.options import ReadIf, ReadUnless, option
from q2n.types import LinearProblem, QuantizedLinear, Statistic

if TYPE_CHECKING:
    from q2n.models.adapter import ModelAdapter
    from q2n.quantization.formats.activation import ActivationQuantizer


@option
class QuaRot(LayerwiseBaseline):
    """The residual stream is rotated; in the finished model activations, now without outliers, are rounded
    token by token.

    ``rotation`` of the residual stream is a Hadamard matrix with random signs or any ``orthogonal`` one.
    ``head_rotation='full'`` rotates heads among each other online, ``per_head`` only each within itself,
    ``auto`` fully where a Hadamard matrix of the number of heads exists. ``a_``, ``k_`` and ``v_`` are for
    activations, keys and values; 16 bits: not quantized. Keys and values are rounded head by head.
    """

    bits: Bits
    group_size: GroupSize = -1
    sym: bool = True
    clip: Literal["minmax", "mse"] = "mse"
    weight_solver: Literal["gptq", "rtn"] = "gptq"
    act_order: Annotated[bool, ReadIf(weight_solver="gptq")] = False
    percdamp: Annotated[Damping, ReadIf(weight_solver="gptq")] = 0.01
    percdamp_schedule: Annotated[DampingSchedule, ReadIf(weight_solver="gptq")] = Field(
        default_factory=lambda: [0.1, 1.0]
    )
    seed: Seed = 0
    rotation: Literal["hadamard", "orthogonal"] = "hadamard"
    head_rotation: Literal["auto", "full", "per_head"] = "auto"
    center_embeddings: bool = False
    a_bits: ActivationBits = 4
    a_group_size: Annotated[GroupSize, ReadUnless(a_bits=16)] = -1
    a_sym: Annotated[bool, ReadUnless(a_bits=16)] = True
    a_clip_ratio: Annotated[ClipRatio, ReadUnless(a_bits=16)] = 1.0
    k_bits: ActivationBits = 16
    v_bits: ActivationBits = 16
    kv_sym: Annotated[bool, ReadUnless(k_bits=16, v_bits=16)] = True
    kv_clip_ratio: Annotated[ClipRatio, ReadUnless(k_bits=16, v_bits=16)] = 1.0

    # The release's test for the layer to skip never matches a wrapped layer's name.
    released: ClassVar[ReleasedRecipe | None] = ReleasedRecipe(aligned=False, skip=())

    rewrite_fields: ClassVar[tuple[str, ...]] = ("seed", "rotation", "head_rotation", "center_embeddings")

    @property
    def requires(self) -> frozenset[Statistic]:
        return frozenset({Statistic.GRAM} if self.weight_solver == "gptq" else ())

    def released_step(self) -> ReleasedRecipe | None:
        """The release corrects GPTQ weights only."""
        return self.released if self.weight_solver == "gptq" else None

    def check(self, adapter: ModelAdapter) -> None:
        from q2n.quantization.transforms.hadamard_orders import require_hadamard

        super().check(adapter)
        if self.rotation == "hadamard":
            require_hadamard(
                adapter.hidden_size,
                "baseline.rotation=hadamard: the model's hidden size",
                "; baseline.rotation=orthogonal fits any",
            )
        require_hadamard(adapter.head_dim, "baseline=quarot: the model's head size")
        require_hadamard(adapter.intermediate_size, "baseline=quarot: the model's MLP width")
        if self.head_rotation == "full":
            require_hadamard(
                adapter.num_heads,
                "baseline.head_rotation=full: the model's number of heads",
                "; baseline.head_rotation=per_head fits any",
            )
        self._check_activation_groups(adapter)

    def _check_activation_groups(self, adapter: ModelAdapter) -> None:
        for name, width in layer_widths(adapter).items():
            if self.a_bits < 16 and self.a_group_size != -1 and width % self.a_group_size:
                divided = math.gcd(*layer_widths(adapter).values())
                raise UnsupportedError(
                    f"baseline.a_group_size={self.a_group_size}: does not divide the {width} inputs of "
                    f"{name}; use a divisor of {divided}, or -1 for whole tokens"
                )

    def rotates_across_heads(self, num_heads: int) -> bool:
        """What ``head_rotation`` comes to for a model."""
        from q2n.quantization.transforms.hadamard_orders import hadamard_order

        exists = num_heads > 1 and hadamard_order(num_heads) is not None
        return self.head_rotation != "per_head" and exists

    def rewrite(self, adapter: ModelAdapter) -> None:
        from q2n.quantization.transforms.rotation import random_rotation, rotate_model

        rotate_model(
            adapter,
            random_rotation(adapter.hidden_size, self.rotation, self.seed),
            across_heads=self.rotates_across_heads(adapter.num_heads),
            center_embeddings=self.center_embeddings,
        )

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        from q2n.quantization.formats.uniform import CentredSpec
        from q2n.quantization.solvers.obs import solve_obs
        from q2n.quantization.solvers.reference import activation_order
        from q2n.quantization.solvers.rtn import solve_rtn

        grid = CentredSpec(self.bits, self.group_size, self.sym, self.clip)
        if self.weight_solver == "rtn":
            return solve_rtn(problem, grid)
        order = activation_order(problem.stats.gram) if self.act_order else None
        return solve_obs(problem, grid, [self.percdamp, *self.percdamp_schedule], order)

    def finish(self, adapter: ModelAdapter) -> None:
        from q2n.quantization.transforms.online import QuantizedCache, quantize_cache, quantize_inputs

        inputs = _quantizer(self.a_bits, self.a_sym, self.a_clip_ratio, self.a_group_size)
        if inputs is not None:
            quantize_inputs(adapter, inputs)
        keys = _quantizer(self.k_bits, self.kv_sym, self.kv_clip_ratio)
        # As in the official code values are groups of a token's channels, keys are tokens of a head: only the
        # range of a key is made to contain zero.
        values = _quantizer(self.v_bits, self.kv_sym, self.kv_clip_ratio, adapter.head_dim)
        if keys is not None or values is not None:
            quantize_cache(adapter, QuantizedCache(keys, values))


def _quantizer(bits: int, symmetric: bool, ratio: float, group_size: int = -1) -> ActivationQuantizer | None:
    from q2n.quantization.formats.activation import ActivationQuantizer

    return None if bits == 16 else ActivationQuantizer(bits, symmetric, ratio, group_size)
