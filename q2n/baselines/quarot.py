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
    """Rotates the residual stream, which removes outliers, and quantizes weights and activations.

    The finished model rounds activations per token, keys and values per token and head.

    Attributes:
        bits: bits per code of the weights.
        group_size: columns per scale, or -1 for whole rows.
        sym: grid centred on zero.
        clip: range of the grid: ``minmax``, or ``mse``, a search of a smaller range.
        weight_solver: solver of the weights.
        act_order: with ``gptq``, round columns by falling Hessian diagonal.
        percdamp: with ``gptq``, damping in units of the mean Hessian diagonal.
        percdamp_schedule: with ``gptq``, dampings tried if the Hessian does not factorise.
        seed: seed of the rotation.
        rotation: rotation of the residual stream: Hadamard matrix with random signs, or random orthogonal.
        head_rotation: ``full`` rotates across heads, online; ``per_head`` within each head only; ``auto`` is
            ``full`` if a Hadamard matrix of the number of heads exists.
        center_embeddings: subtract the mean of each embedding, as the official code does; this changes a
            model with RMS norms.
        a_bits: bits of activations; 16 for no quantization.
        a_group_size: channels per scale of a token, or -1 for whole tokens.
        a_sym: activation grid centred on zero.
        a_clip_ratio: fraction of the range of activations that is kept.
        k_bits: bits of keys; 16 for no quantization.
        v_bits: bits of values; 16 for no quantization.
        kv_sym: grid of keys and values centred on zero.
        kv_clip_ratio: fraction of the range of keys and values that is kept.
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

    # The official code's test for skipped layers never matches a wrapped layer's name: none is skipped.
    released: ClassVar[ReleasedRecipe | None] = ReleasedRecipe(aligned=False, skip=())

    rewrite_fields: ClassVar[tuple[str, ...]] = ("seed", "rotation", "head_rotation", "center_embeddings")

    @property
    def requires(self) -> frozenset[Statistic]:
        """Gram matrix for GPTQ; nothing for round-to-nearest."""
        return frozenset({Statistic.GRAM} if self.weight_solver == "gptq" else ())

    def released_step(self) -> ReleasedRecipe | None:
        """Return the recipe, or None for round-to-nearest: the official code corrects GPTQ weights only."""
        return self.released if self.weight_solver == "gptq" else None

    def check(self, adapter: ModelAdapter) -> None:
        """Check that the rotations exist for the model and that the group sizes fit.

        Raises:
            UnsupportedError: a width has no known Hadamard matrix, or a group size does not fit.
        """
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
        """Return True if ``head_rotation`` rotates across heads in a model with ``num_heads`` heads."""
        from q2n.quantization.transforms.hadamard_orders import hadamard_order

        exists = num_heads > 1 and hadamard_order(num_heads) is not None
        return self.head_rotation != "per_head" and exists

    def rewrite(self, adapter: ModelAdapter) -> None:
        """Rotate the residual stream and the heads."""
        from q2n.quantization.transforms.rotation import random_rotation, rotate_model

        rotate_model(
            adapter,
            random_rotation(adapter.hidden_size, self.rotation, self.seed),
            across_heads=self.rotates_across_heads(adapter.num_heads),
            center_embeddings=self.center_embeddings,
        )

    def quantize(self, problem: LinearProblem) -> QuantizedLinear:
        """Quantize the rotated weight with GPTQ or round-to-nearest.

        Raises:
            NumericalError: a weight or the Gram matrix is not finite, or no damping makes it factorise.
        """
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
        """Switch on the quantization of activations, keys and values."""
        from q2n.quantization.transforms.online import QuantizedCache, quantize_cache, quantize_inputs

        inputs = _quantizer(self.a_bits, self.a_sym, self.a_clip_ratio, self.a_group_size)
        if inputs is not None:
            quantize_inputs(adapter, inputs)
        keys = _quantizer(self.k_bits, self.kv_sym, self.kv_clip_ratio)
        # As in the official code, values are quantized as groups of a token's channels, keys as tokens of a
        # head. The difference: only the range of a key is extended to contain zero.
        values = _quantizer(self.v_bits, self.kv_sym, self.kv_clip_ratio, adapter.head_dim)
        if keys is not None or values is not None:
            quantize_cache(adapter, QuantizedCache(keys, values))


def _quantizer(bits: int, symmetric: bool, ratio: float, group_size: int = -1) -> ActivationQuantizer | None:
    """Return the quantizer, or None for 16 bits."""
    from q2n.quantization.formats.activation import ActivationQuantizer

    return None if bits == 16 else ActivationQuantizer(bits, symmetric, ratio, group_size)
