"""GPTQ as IST-DASLab published it, written from its description.

One block after the other: the second moment of every layer's inputs from a forward a sequence, columns in
blocks of 128, then a second forward for the next block's inputs.
"""

import contextlib
from collections.abc import Callable

import measure
import torch
from measure import JOB
from torch import Tensor, nn

BLOCK = 128
PERCDAMP = 0.01


class Layer:
    """Second moment ``H = (2/n) sum x x^T`` of one linear layer's inputs, updated sequence by sequence."""

    def __init__(self, linear: nn.Linear) -> None:
        self.linear = linear
        self.moment = torch.zeros(linear.in_features, linear.in_features)
        self.count = 0

    def add(self, inputs: Tensor) -> None:
        added = inputs.shape[0]
        rows = inputs.reshape(-1, inputs.shape[-1]).T
        self.moment *= self.count / (self.count + added)
        self.count += added
        rows = (2 / self.count) ** 0.5 * rows.float()
        self.moment += rows @ rows.T

    def quantize(self) -> None:
        weight, moment = self.linear.weight.data.float().clone(), self.moment
        dead = moment.diagonal() == 0
        moment[dead, dead] = 1
        weight[:, dead] = 0
        moment.diagonal().add_(PERCDAMP * moment.diagonal().mean())
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment))
        factor = torch.linalg.cholesky(inverse, upper=True)
        self.linear.weight.data = solve(weight, factor).to(self.linear.weight.dtype)


def solve(weight: Tensor, factor: Tensor) -> Tensor:
    """Columns rounded from left to right, each error pushed onto the columns still to come."""
    columns, quantized = weight.shape[1], torch.zeros_like(weight)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        block, inner = weight[:, start:end].clone(), factor[start:end, start:end]
        errors = torch.zeros_like(block)
        for column in range(end - start):
            if (start + column) % JOB["group_size"] == 0:
                scale, zero = parameters(
                    weight[:, start + column : start + column + JOB["group_size"]], JOB["bits"]
                )
            value = block[:, column]
            rounded = scale * (torch.clamp(torch.round(value / scale) + zero, 0, 2 ** JOB["bits"] - 1) - zero)
            quantized[:, start + column] = rounded
            error = (value - rounded) / inner[column, column]
            block[:, column:] -= error[:, None] * inner[column, column:]
            errors[:, column] = error
        weight[:, end:] -= errors @ factor[start:end, end:]
    return quantized


def parameters(group: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each row from its minimum and maximum."""
    low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
    empty = (low == 0) & (high == 0)
    low[empty], high[empty] = -1, 1
    scale = (high - low) / (2**bits - 1)
    return scale, torch.round(-low / scale)


class StopForwardError(Exception):
    """Nothing behind the first block is needed."""


def first_inputs(model: nn.Module, tokens: Tensor) -> tuple[list[Tensor], dict]:
    """What enters the first block, and what else the model passes to its blocks."""
    inputs, keywords = [], {}

    def catch(_: nn.Module, arguments: tuple, others: dict) -> None:
        inputs.append(arguments[0])
        keywords.update(others)
        raise StopForwardError

    handle = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for row in tokens:
        with contextlib.suppress(StopForwardError):
            model(row[None], use_cache=False)
    handle.remove()
    return inputs, keywords


def watch_inputs(layer: Layer) -> Callable:
    return lambda _, arguments: layer.add(arguments[0])


def quantize(model: nn.Module, tokens: Tensor) -> list[str]:
    hidden, keywords = first_inputs(model, tokens)
    done = []
    for index, block in enumerate(model.model.layers):
        layers = {name: Layer(part) for name, part in block.named_modules() if isinstance(part, nn.Linear)}
        handles = [layer.linear.register_forward_pre_hook(watch_inputs(layer)) for layer in layers.values()]
        for inputs in hidden:
            block(inputs, **keywords)
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            layer.quantize()
            done.append(f"model.layers.{index}.{name}.weight")
        hidden = [output_of(block(inputs, **keywords)) for inputs in hidden]
    return done


def output_of(result: Tensor | tuple) -> Tensor:
    return result[0] if isinstance(result, tuple) else result


def main() -> None:
    tokens = measure.calibration()
    model = measure.load()
    with torch.no_grad(), measure.Stopwatch() as watch:
        names = quantize(model, tokens)
    measure.finish(
        watch,
        "asymmetric, layers of a block at once, bfloat16 forward",
        f"torch {torch.__version__}",
        lambda: {name: model.get_parameter(name) for name in names},
    )


main()
