"""gptqmodel's quantize()."""

import measure
import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.version import __version__
from measure import JOB


def dequantized(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, module in model.named_modules():
        if hasattr(module, "qweight"):
            found[f"{name}.weight"] = module.dequantize_weight().T
    return found


def main() -> None:
    tokens = measure.calibration()
    config = QuantizeConfig(
        bits=JOB["bits"],
        group_size=JOB["group_size"],
        sym=False,
        format="gptq_v2",  # zero points as they are, not less one
        desc_act=False,
        act_group_aware=False,
        damp_percent=0.01,
        offload_to_disk=False,
        device="cpu",
    )
    model = GPTQModel.load(JOB["model"], config, backend=BACKEND.TORCH, dtype=torch.bfloat16)
    rows = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in tokens.tolist()]
    with measure.Stopwatch() as watch:
        model.quantize(
            rows, batch_size=JOB["options"].get("batch_size", 8), calibration_sort=None, backend=BACKEND.TORCH
        )
    measure.finish(
        watch,
        "asymmetric, true-sequential, bfloat16 forward, packing of the codes included",
        f"gptqmodel {__version__}",
        lambda: dequantized(model.model),
    )


main()
