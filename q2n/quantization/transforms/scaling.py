"""Moving a scale of channels from activations into weights, without changing what a block computes.

``x -> x / s`` is done by whatever produces ``x`` (a norm's gain, the rows of a linear layer) and undone by
the columns of the layers that read it. Factors are float32 or wider, so that the product is, too, before it
is rounded to the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def scale_output(module: nn.Module, factor: Tensor) -> None:
    """Output channels of a norm (gain) or of a linear layer (rows and bias) times ``factor`` ``(C,)``."""
    for parameter in module.parameters(recurse=False):
        shape = (-1, *[1] * (parameter.ndim - 1))
        parameter.data.copy_(parameter * factor.view(shape))


def scale_input(linears: Iterable[nn.Linear], factor: Tensor) -> None:
    """Columns of the layers times ``factor`` ``(C,)``."""
    for linear in linears:
        linear.weight.data.copy_(linear.weight * factor)


def migrate(previous: nn.Module, linears: Iterable[nn.Linear], scale: Tensor) -> None:
    """Divide the activations between ``previous`` and ``linears`` by ``scale`` ``(C,)``, all positive."""
    scale_output(previous, 1 / scale)
    scale_input(linears, scale)
