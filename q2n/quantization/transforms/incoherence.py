"""Incoherence processing (QuIP, arXiv 2307.13304): rescale columns, then rotate rows and columns."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from q2n.exceptions import UnsupportedError
from q2n.linalg.dense import require_finite, within_range
from q2n.quantization.transforms.kronecker import KroneckerOrthogonal, random_kronecker
from q2n.types import Format, LinearProblem, Statistics

VECTOR_BITS = 16
"""Bits of a stored column scale or row factor."""

SEED_BITS = 64
"""Bits of the stored seed, from which the rotations are drawn again."""

FLOOR = 1e-8
"""Lower bound of both diagonals and of the column scale, which divides weights and must not be zero."""


@dataclass(frozen=True)
class Incoherence:
    """Transform ``W' = U W D V^T`` and ``x' = V D^{-1} x``, so that ``W' x' = U W x``.

    ``output`` is ``U`` ``(R, R)``, ``inputs`` is ``V`` ``(C, C)``, ``scale`` the diagonal of ``D`` ``(C,)``.
    """

    output: KroneckerOrthogonal
    inputs: KroneckerOrthogonal
    scale: Tensor

    def weight(self, weight: Tensor) -> Tensor:
        """Transform ``W`` to ``W'``, both ``(R, C)``."""
        return self.output.apply(self.inputs.apply((weight * self.scale.to(weight)).T).T)

    def undo_weight(self, weight: Tensor) -> Tensor:
        """Transform ``W'`` back to ``W``, both ``(R, C)``."""
        return self.inputs.undo(self.output.undo(weight).T).T / self.scale.to(weight)

    def statistics(self, stats: Statistics) -> Statistics:
        """Return the statistics of ``x'``."""
        return stats.scaled(1 / self.scale).mapped_by(lambda rows: self.inputs.apply(rows.T).T)

    def problem(self, problem: LinearProblem) -> LinearProblem:
        """Return the layer in the rotated basis: both weight and statistics are transformed."""
        return replace(problem, weight=self.weight(problem.weight), stats=self.statistics(problem.stats))


def rescaling(weight: Tensor, gram: Tensor) -> Tensor:
    """Compute the column scale ``D = (diag H / diag W^T W)^{1/4}``; ``(C,)``, positive.

    ``H`` is divided by its largest magnitude first. ``D`` minimises ``tr H tr W^T W`` over diagonal
    rescalings, the quantity QuIP's bound depends on.

    Raises:
        NumericalError: an entry of either matrix is not finite.
    """
    require_finite(weight, "weight to be rotated")
    require_finite(gram, "Hessian")
    gram = within_range(gram)
    energy = (gram.diagonal() / gram.abs().max()).clamp(min=FLOOR)
    norms = weight.square().sum(dim=0).clamp(min=FLOOR)
    return (energy / norms).sqrt().sqrt().clamp(min=FLOOR)


def draw_incoherence(problem: LinearProblem, seed: int) -> Incoherence:
    """Draw the rotations of one layer, which depend only on ``seed``, the layer's names and its shape.

    The column scale is the :func:`rescaling` of the layer.

    Raises:
        NumericalError: an entry of the weight or of the Gram matrix is not finite.
    """
    rows, columns = problem.weight.shape
    # A 32-bit number: the generator ignores higher bits.
    label = f"{seed}:{','.join(problem.names)}:{rows}x{columns}"
    generator = torch.Generator().manual_seed(zlib.crc32(label.encode()))
    output, inputs = random_kronecker(rows, generator), random_kronecker(columns, generator)
    device = problem.weight.device
    return Incoherence(output.to(device), inputs.to(device), rescaling(problem.weight, problem.stats.gram))


@dataclass(frozen=True)
class TransformedFormat:
    """Rotated format ``W = diag(rows) U^T W' V D^{-1}`` with ``W'`` held by ``inner``.

    A row scale of ``W'`` goes into ``inner``; one of ``W`` itself does not commute with ``U`` and becomes the
    vector ``rows`` ``(R,)``. The storage of factors and permutations is that of the seed they are drawn from.
    """

    inner: Format
    transform: Incoherence
    rows: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns ``(R, C)`` of the matrix."""
        return self.inner.shape

    def dequantize(self) -> Tensor:
        """Return the weight ``(R, C)`` in the original basis."""
        weight = self.transform.undo_weight(self.inner.dequantize())
        return weight if self.rows is None else weight * self.rows[:, None]

    def scale_rows(self, alpha: Tensor) -> TransformedFormat:
        """Multiply every row of ``W`` by its ``alpha`` ``(R,)``, which is stored in ``rows``."""
        alpha = alpha.float()
        return replace(self, rows=alpha if self.rows is None else self.rows * alpha)

    def select_rows(self, start: int, stop: int) -> TransformedFormat:
        """Return the format itself, which must be asked for all rows.

        Raises:
            UnsupportedError: only a part of the rows is selected: every row of a rotated matrix needs all
                stored rows.
        """
        if (start, stop) != (0, self.shape[0]):
            raise UnsupportedError("rows of a matrix whose rows were rotated cannot be stored apart")
        return self

    def storage_bits(self) -> float:
        """Return the size in bits: ``inner``, the seed, and 16 per column scale and row factor."""
        vector = 0 if self.rows is None else self.rows.numel()
        return self.inner.storage_bits() + VECTOR_BITS * (self.shape[1] + vector) + SEED_BITS

    def tensors(self) -> Mapping[str, Tensor]:
        """Return all tensors by name, those of ``inner`` and of both rotations included."""
        tensors = {f"inner.{name}": tensor for name, tensor in self.inner.tensors().items()}
        tensors["column_scale"] = self.transform.scale
        for side, rotation in (("output", self.transform.output), ("inputs", self.transform.inputs)):
            for name in ("first", "second", "entry", "leave"):
                tensors[f"{side}.{name}"] = getattr(rotation, name)
        return tensors if self.rows is None else {**tensors, "rows": self.rows}
