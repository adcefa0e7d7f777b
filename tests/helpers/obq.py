"""Optimal brain quantization as its definition says, column by column in float64 with an explicit inverse."""

from dataclasses import dataclass

import torch

CLEAR = 1e-4
"""Steps between a value and the nearest tie from which on float32 and float64 must round alike."""


@dataclass(frozen=True)
class Naive:
    """``codes`` and ``weight`` ``(R, C)`` in the layer's own column order; ``margin`` ``(R,)``: steps between
    a tie and the nearest to it of all numbers that were rounded in that row; ``loss`` ``sum e^2 / 2``."""

    codes: torch.Tensor
    weight: torch.Tensor
    margin: torch.Tensor
    loss: float

    @property
    def clear(self):
        """Rows in which no rounding is a matter of the last digit; most of them."""
        rows = self.margin > CLEAR
        assert rows.float().mean() > 0.7
        return rows


def fit(part, bits, symmetric):
    """Scale, zero point (both ``(R,)``) and the zero's distance from a tie: spec of GPTQ's min-max grid."""
    levels = 2**bits - 1
    low, high = part.amin(dim=1).clamp(max=0), part.amax(dim=1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = torch.where(low < 0, -high, low)
    empty = (low == 0) & (high == 0)
    low, high = torch.where(empty, -1.0, low), torch.where(empty, 1.0, high)
    scale = (high - low) / levels
    if symmetric:
        return scale, torch.full_like(scale, (levels + 1) / 2), torch.ones_like(scale)
    # The zero point of an empty row is a tie by definition, and of no effect.
    return scale, torch.round(-low / scale), from_tie(-low / scale).masked_fill(empty, 1)


def from_tie(values):
    return (values - values.floor() - 0.5).abs()


def naive_obq(
    problem,
    bits,
    group_size=-1,
    *,
    order=None,
    static=False,
    symmetric=False,
    damping=0.01,
    block=128,
    hessian=None,
):
    """Round every column in ``order``; after each one the optimal update of all columns not yet rounded.

    The inverse Hessian of the remaining columns follows from that of all by one step of Gaussian elimination.
    A group of ``group_size`` columns is fitted where it begins, on the weight as it was at the last multiple
    of ``block``; static groups once, on the layer's own columns without dead ones; a single group for the
    whole row on the untouched weight. ``hessian``, if given, is used as it is.
    """
    weight = problem.weight.double()
    fits = {} if group_size != -1 else {0: fit(weight, bits, symmetric)}
    if hessian is None:
        weight, hessian = prepared(weight, problem.stats.gram.double(), damping)
    columns = weight.shape[1]
    size = columns if group_size == -1 else group_size
    if static and group_size != -1:
        fits = {index: fit(part, bits, symmetric) for index, part in enumerate(weight.split(size, dim=1))}
    weight, inverse = weight.clone(), torch.linalg.inv(hessian)
    codes, margin = torch.empty_like(weight), torch.ones(len(weight), dtype=torch.float64)
    order = list(range(columns)) if order is None else order.tolist()
    loss = 0.0
    for place, column in enumerate(order):
        if place % block == 0:
            entered = weight.clone()
        group = column // size if static else place // size
        if group not in fits:
            fits[group] = fit(entered[:, order[place : place + size]], bits, symmetric)
        scale, zero, tie = fits[group]
        ratio = weight[:, column] / scale
        margin = torch.stack([margin, tie, from_tie(ratio)]).amin(dim=0)
        codes[:, column] = (torch.round(ratio) + zero).clamp(0, 2**bits - 1)
        error = weight[:, column] - scale * (codes[:, column] - zero)
        pivot = inverse[column, column].clone()
        loss += float((error**2 / pivot).sum() / 2)
        weight -= torch.outer(error / pivot, inverse[column])
        inverse -= torch.outer(inverse[:, column], inverse[column]) / pivot
    return Naive(codes.to(torch.uint8), weight, margin, loss)


def prepared(weight, gram, damping):
    """Dead columns set to zero with a diagonal of one, and the damped Hessian."""
    dead = gram.diagonal() == 0
    gram = gram + torch.diag(dead.double())
    return weight.masked_fill(dead, 0), gram + damping * gram.diagonal().mean() * torch.eye(len(gram))
