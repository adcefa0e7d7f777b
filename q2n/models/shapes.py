"""Sizes of a model by its configuration, and the linear layers of a block grouped by their input.

No weights and no torch are needed: arithmetic tells whether a method fits, and its memory and time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from q2n.exceptions import ModelError


@dataclass(frozen=True)
class LinearGroup:
    """Linear layers of a block that read the same input.

    ``name`` labels the group (``self_attn.qkv``); ``linears`` are names inside the block.
    """

    name: str
    linears: tuple[str, ...]


QKV = LinearGroup("self_attn.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"))
O_PROJ = LinearGroup("self_attn.o", ("self_attn.o_proj",))
GATE_UP = LinearGroup("mlp.gate_up", ("mlp.gate_proj", "mlp.up_proj"))
DOWN = LinearGroup("mlp.down", ("mlp.down_proj",))

GROUPS = (QKV, O_PROJ, GATE_UP, DOWN)
"""Groups in the order of a forward pass."""


@dataclass(frozen=True)
class ModelShapes:
    """Sizes of a decoder of the supported families.

    ``biases`` tells whether queries, keys and values have biases, ``head_norms`` whether every query and key
    head has a norm.
    """

    family: str
    vocab: int
    hidden: int
    intermediate: int
    num_blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    biases: bool = False
    head_norms: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], name: str) -> ModelShapes:
        """Read the sizes from a ``config.json``.

        Raises:
            ModelError: ``config`` lacks a size.
        """
        try:
            heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
            family = str(config["model_type"])
            return cls(
                family=family,
                vocab=int(config["vocab_size"]),
                hidden=hidden,
                intermediate=int(config["intermediate_size"]),
                num_blocks=int(config["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                tied=bool(config.get("tie_word_embeddings", False)),
                biases=bool(config.get("attention_bias", family == "qwen2")),
                head_norms=family == "qwen3",
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"model {name}: its config.json lacks a size, or has a wrong one: {error}"
            ) from None

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Output rows and input columns of every linear layer of a block, by name."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    @property
    def block_weights(self) -> int:
        """Number of weights of one block: linears, biases, norms."""
        linears = sum(rows * columns for rows, columns in self.linears.values())
        biases = (self.heads + 2 * self.kv_heads) * self.head_dim if self.biases else 0
        return linears + biases + 2 * self.hidden + (2 * self.head_dim if self.head_norms else 0)

    @property
    def embedding_weights(self) -> int:
        """Number of weights of the embedding; the head has as many, unless it is ``tied``."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Number of weights of the whole model."""
        heads = 1 if self.tied else 2
        return heads * self.embedding_weights + self.hidden + self.num_blocks * self.block_weights


class Skeleton:
    """Sizes under the names of :class:`q2n.models.adapter.ModelAdapter`, for ``baseline.check``."""

    def __init__(self, shapes: ModelShapes) -> None:
        self.family = shapes.family
        self.tied = shapes.tied
        self.hidden_size = shapes.hidden
        self.intermediate_size = shapes.intermediate
        self.num_heads = shapes.heads
        self.num_kv_heads = shapes.kv_heads
        self.head_dim = shapes.head_dim
        linears = {name: SkeletonLinear(*shape) for name, shape in shapes.linears.items()}
        self.blocks = [SkeletonBlock(index, linears) for index in range(shapes.num_blocks)]


@dataclass(frozen=True)
class SkeletonBlock:
    """Block with the sizes of its linears."""

    groups: ClassVar[tuple[LinearGroup, ...]] = GROUPS
    index: int
    linears: Mapping[str, SkeletonLinear]

    def linear(self, name: str) -> SkeletonLinear:
        """Return the sizes of the linear layer ``name``."""
        return self.linears[name]


@dataclass(frozen=True)
class SkeletonLinear:
    """Linear layer without a weight; ``weight.shape`` exists as in torch's."""

    out_features: int
    in_features: int

    @property
    def weight(self) -> SkeletonLinear:
        """Stand-in for the weight, of which only ``shape`` exists."""
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """Output rows and input columns."""
        return self.out_features, self.in_features
