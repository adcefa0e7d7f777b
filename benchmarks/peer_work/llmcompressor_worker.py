"""llm-compressor's GPTQModifier, one decoder layer after the other."""

import measure
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import __version__, oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from measure import JOB

DTYPE = JOB["options"].get("dtype", "bfloat16")


def main() -> None:
    tokens = measure.calibration()
    model = measure.load(getattr(torch, DTYPE))
    rows = {"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()}
    weights = QuantizationArgs(
        num_bits=JOB["bits"],
        type="int",
        symmetric=False,
        strategy="group",
        group_size=JOB["group_size"],
        actorder=None,
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    modifier = GPTQModifier(config_groups={"all": scheme}, ignore=["lm_head"], actorder=None)
    with measure.Stopwatch() as watch:
        oneshot(
            model=model,
            dataset=Dataset.from_dict(rows),
            recipe=[modifier],
            pipeline="sequential",
            batch_size=JOB["options"].get("batch_size", 8),
            max_seq_length=tokens.shape[1],
            num_calibration_samples=len(tokens),
            shuffle_calibration_samples=False,
        )
    names = [name for name, module in model.named_modules() if hasattr(module, "weight_scale")]
    measure.finish(
        watch,
        f"asymmetric, layers of a block at once, {DTYPE} forward",
        f"llmcompressor {__version__}",
        lambda: {f"{name}.weight": model.get_submodule(name).weight for name in names},
    )


main()
