"""What every worker does: read its job, time the quantization alone, write what came out.

Runs in the peers' own environments, so it needs torch and safetensors only.
"""

import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

JOB = json.loads(Path(sys.argv[1]).read_text())
"""``model`` (folder), ``tokens`` (file), ``bits``, ``group_size``, ``threads``, ``output`` (folder),
``weights`` (whether they are wanted), ``options`` (of this worker)."""

torch.set_num_threads(JOB["threads"])


def resident(key: str = "VmRSS") -> int:
    """Bytes of this process in memory now, or at most since :func:`reset_peak` (``VmHWM``)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def calibration() -> torch.Tensor:
    """``(n, T)`` token ids, the same for everyone."""
    return load_file(JOB["tokens"])["input_ids"]


def load(dtype: torch.dtype = torch.bfloat16) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(JOB["model"], dtype=dtype, attn_implementation="sdpa")
    return model.eval()


class Stopwatch:
    """Wall and processor seconds of the ``with`` block, and the memory it took."""

    def __enter__(self) -> "Stopwatch":
        self.before = resident()
        reset_peak()
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = time.process_time() - self._cpu
        self.peak = resident("VmHWM")


def finish(watch: Stopwatch, settings: str, versions: str, weights=None, **more: object) -> None:
    """Write the figures, and where they are wanted the dequantized weights ``weights()`` by their names.

    Args:
        settings: what the table says of this peer beside its name.
    """
    folder = Path(JOB["output"])
    folder.mkdir(parents=True, exist_ok=True)
    if weights is not None and JOB["weights"]:
        tensors = {name: tensor.detach().contiguous() for name, tensor in weights().items()}
        save_file(tensors, folder / "weights.safetensors")
    figures = {
        "wall": watch.wall,
        "cpu": watch.cpu,
        "resident_before": watch.before,
        "peak": watch.peak,
        "settings": settings,
        "versions": versions,
        **more,
    }
    (folder / "figures.json").write_text(json.dumps(figures, indent=1))
