"""Small synthetic layers."""

import torch

from q2n.types import LinearProblem, Statistic, Statistics


def layer(rows=24, columns=40, seed=0, tokens=300, name="self_attn.q_proj", dead=()):
    """Correlated inputs of uneven size in four sequences, a Gaussian weight."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    spread = torch.arange(1, columns + 1).pow(-0.5)
    inputs = torch.randn(4, tokens, columns, generator=generator) * spread @ mixing + 0.1
    inputs[..., list(dead)] = 0
    flat = inputs.reshape(-1, columns)
    gram = flat.T @ flat  # its two triangles differ by round-off on some processors
    values = {
        Statistic.GRAM: (gram + gram.T) / 4,
        Statistic.POSITION_MEAN: inputs.mean(dim=0),
        Statistic.SQRT_POSITION_MEAN: inputs.mean(dim=0),
    }
    weight = torch.randn(rows, columns, generator=generator) * 0.05
    return LinearProblem((name,), (rows,), weight, Statistics(values, 4, 4 * tokens))


def split(problem):
    """One problem a layer, statistics shared."""
    parts = problem.weight.split(list(problem.rows))
    return tuple(
        LinearProblem((name,), (count,), part, problem.stats, (problem.has_bias(index),))
        for index, (name, count, part) in enumerate(zip(problem.names, problem.rows, parts, strict=True))
    )
