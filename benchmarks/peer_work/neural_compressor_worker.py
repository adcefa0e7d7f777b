"""neural-compressor's GPTQ for PyTorch."""

from importlib.metadata import version

import measure
import torch
from measure import JOB
from neural_compressor.torch.quantization import GPTQConfig, convert, prepare


def dequantized(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "qweight"):
            found[f"{name}.weight"] = module.recover()
    return found


def main() -> None:
    tokens = measure.calibration()
    model = measure.load()
    config = GPTQConfig(
        bits=JOB["bits"], group_size=JOB["group_size"], use_sym=False, act_order=False, block_size=128
    )
    with torch.no_grad(), measure.Stopwatch() as watch:
        model = prepare(model, config)
        for row in tokens:
            model(row[None])
        model = convert(model)
    measure.finish(
        watch,
        "asymmetric, layers of a block at once, bfloat16 forward, packing of the codes included",
        f"neural-compressor-pt {version('neural-compressor-pt')}",
        lambda: dequantized(model),
    )


main()
