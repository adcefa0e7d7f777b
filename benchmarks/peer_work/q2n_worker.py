"""q2n itself: the pipeline as run.py calls it, with the same calibration tokens."""

from pathlib import Path

import measure
import torch
import yaml
from measure import JOB

from q2n import __version__
from q2n.baselines.gptq import GPTQ
from q2n.corrections.none import NoCorrection
from q2n.models.loaded import LoadedModel
from q2n.models.spec import HubModel, TinyModel
from q2n.options import build
from q2n.pipeline.activations import activation_store
from q2n.pipeline.blocks import BlockLoop, Method
from q2n.runtime.clock import WorkClock, clocked
from q2n.runtime.memory import keep_freed_memory

CONF = Path(__file__).resolve().parents[2] / "conf"
OPTIONS = {"q2n": "off", "fields": {}, "stages": "true_sequential", "warm": False}


def run(loaded: LoadedModel, tokens: torch.Tensor, method: Method, stages: str) -> None:
    settings = yaml.safe_load((CONF / "calibration" / "wiki.yaml").read_text())
    with activation_store("memory") as store:
        BlockLoop(
            method,
            tokens,
            batch_size=settings["batch_size"],
            true_sequential=stages == "true_sequential",
            store=store,
            device=torch.device("cpu"),
            progress=lambda *_: None,
        ).quantize(loaded.adapter)


def quantize_small() -> None:
    """Everything that is imported or compiled when it is first used."""
    small = TinyModel(name="small", family="llama", hidden_size=128, intermediate_size=256)
    method = Method(GPTQ(bits=JOB["bits"], group_size=JOB["group_size"]), NoCorrection())
    run(small.load(torch.bfloat16), torch.randint(3, 259, (2, 32)), method, "true_sequential")


def main() -> None:
    options = OPTIONS | JOB["options"]
    section = yaml.safe_load((CONF / "q2n" / f"{options['q2n']}.yaml").read_text())
    correction = build({**section, **options["fields"]}, "q2n")
    tokens = measure.calibration()
    keep_freed_memory()
    if options["warm"]:
        quantize_small()
    bare = measure.resident()
    loaded = HubModel(path=JOB["model"]).load(torch.bfloat16)
    method = Method(GPTQ(bits=JOB["bits"], group_size=JOB["group_size"]), correction)
    clock = WorkClock()
    with measure.Stopwatch() as watch, clocked(clock):
        run(loaded, tokens, method, options["stages"])
    adapter = loaded.adapter
    names = [name for name, _ in loaded.model.named_parameters() if name.endswith("proj.weight")]
    measure.finish(
        watch,
        f"asymmetric, {options['stages'].replace('_', '-')}, bfloat16 forward",
        f"q2n {__version__}",
        lambda: {name: loaded.model.get_parameter(name) for name in names},
        work=clock.seconds,
        resident_bare=bare,
        bytes_weights=sum(parameter.nbytes for parameter in loaded.model.parameters()),
        # residual stream and the widest group's inputs, which wait for that group to be solved
        bytes_activations=2 * tokens.numel() * (adapter.hidden_size + adapter.intermediate_size),
    )


main()
