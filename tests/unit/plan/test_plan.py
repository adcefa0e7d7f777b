"""A plan is arithmetic: it is right on sizes, says where its numbers come from, and loads nothing."""

from __future__ import annotations

import dataclasses
import errno
import re
import subprocess
import sys

import pytest
import torch
from helpers.commands import ROOT
from helpers.records import make_record

from q2n.cells import out_of_memory, run
from q2n.cli import CONFIG_DIR
from q2n.command.preflight import preflight
from q2n.exceptions import OutOfMemoryError
from q2n.models.shapes import ModelShapes
from q2n.pipeline import cell
from q2n.plan import fit, table, time
from q2n.plan.memory import disk, predict
from q2n.plan.workload import workload
from q2n.records import failure, lease
from q2n.records import store as record
from q2n.records.identity import identify
from q2n.runtime import device as hardware
from q2n.runtime.memory import available_memory

LLAMA3_8B = ModelShapes("llama", 128256, 4096, 14336, 32, heads=32, kv_heads=8, head_dim=128, tied=False)
HARDWARE = {"device": "cpu", "dtype": "bfloat16"}


def cells(tmp_path, *overrides):
    return preflight(CONFIG_DIR, ["-m", f"results_dir={tmp_path}/r", *overrides]).cells


def large(tmp_path, *overrides, dtype="bfloat16"):
    """The workload of a cell on an 8-billion model, whole in memory."""
    (config,) = cells(tmp_path, "model=path", "model.path=/nowhere", "streaming=off", *overrides)
    return config, workload(config, LLAMA3_8B, {**HARDWARE, "dtype": dtype})


def test_a_label_tells_cells_of_a_sweep_apart(tmp_path):
    sweep = ["model=tiny_llama", "q2n=on", "group_size=16,32", "++q2n.t=0.2", "cache_dir=/x", "tracking=none"]
    labels = [config.label for config in cells(tmp_path, *sweep)]
    assert labels == [f"tiny_llama gptq q2n=on 3 bit group_size={size} q2n.t=0.2" for size in (16, 32)]


def test_a_plan_loads_nothing_heavy(tmp_path):
    program = """
import sys
from q2n.cli import main
try:
    main()
finally:
    print("heavy:", sorted({"torch", "transformers", "pandas", "lm_eval"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "-m", "plan=true", "baseline=gptq,quarot,quip", "q2n=on,released"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "Q2N_CACHE": str(tmp_path), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout
    assert done.stdout.count("to run ") >= 6
    assert not (tmp_path / "results").exists(), "a plan leaves nothing"


def test_the_weights_of_a_large_model_are_what_a_plan_counts(tmp_path):
    _, work = large(tmp_path)
    memory = predict(work)
    assert memory.base["weights"] == 2 * 8_030_261_248
    assert predict(dataclasses.replace(work, element=4)).base["weights"] == 4 * 8_030_261_248
    streamed = predict(dataclasses.replace(work, streamed=True))
    assert streamed.base["weights"] == 2 * (2 * 128256 * 4096 + 2 * LLAMA3_8B.block_weights)
    assert memory.device is None


def test_more_of_anything_takes_no_less(tmp_path):
    _, work = large(tmp_path)
    whole = predict(work).needed
    for name in ("sequences", "length", "micro_batch"):
        assert predict(dataclasses.replace(work, **{name: 4 * getattr(work, name)})).needed > whole
    assert predict(dataclasses.replace(work, on_disk=True)).needed < whole
    assert predict(dataclasses.replace(work, corrected=(14336,))).needed > whole
    assert predict(work).host > predict(work).needed, "the mapped file counts in the peak only"
    on_device = predict(dataclasses.replace(work, device="cuda"))
    assert on_device.device is not None
    assert on_device.device > 2 * LLAMA3_8B.block_weights


def test_remedies_are_settings_that_fit_and_one_is_named_in_the_plan(tmp_path, monkeypatch):
    _, work = large(tmp_path, "calibration.nsamples=128", "calibration.seqlen=2048")
    room = int(0.8 * predict(work).needed)
    assert fit.shortages(predict(work), room, None)
    assert not fit.shortages(predict(work), room * 2, None)
    assert re.match(
        r"settings that would make it fit: (.* or )?streaming=on \(", fit.advice(work, room, None)
    )
    assert "no setting makes it fit" in fit.advice(work, 2**20, None)
    (tiny,) = cells(tmp_path, "model=tiny_llama", "group_size=32", "calibration=news")
    monkeypatch.setattr(table, "host_memory", lambda: 2**20)
    (planned,) = table.plan([tiny])
    assert "of memory (peak in " in planned.too_large
    assert table.show_plan([planned], True) == 1


def test_states_of_cells_are_told_apart(tmp_path, monkeypatch, capsys):
    every = cells(tmp_path, "model=tiny_llama", "bits=2,3,4,5", "q2n=on", "group_size=32", "calibration=news")
    reused, failed, _, fresh = every
    refs = [config.ref(identify(config)) for config in every]
    record.save(make_record(fingerprint=refs[0].fingerprint, config=reused.tree), f"{tmp_path}/r")
    monkeypatch.setattr(cell, "compute", lambda *_: 1 / 0)
    run.run_cell(failed)
    (misfit,) = cells(tmp_path, "model=tiny_llama", "group_size=128")
    (lost,) = cells(tmp_path, "model=path", "model.path=/nowhere/at/all")
    with lease.Observer().take(failure.folder_of(f"{tmp_path}/r", refs[2])):
        planned = table.plan([*every, misfit, lost])
    states = ["reused", "failed before", "busy", "to run", "unsupported", "cannot run"]
    assert [item.state for item in planned] == states
    assert "ZeroDivisionError" in planned[1].why
    assert "group_size=128" in planned[4].why
    assert [item.memory is not None for item in planned] == [False, True, False, True, False, False]
    assert table.show_plan(planned, True) == 1
    assert table.show_plan(planned[:-1], True) == 0
    assert "1 reused, 1 failed before, 1 busy, 1 to run, 1 unsupported" in capsys.readouterr().out
    object.__setattr__(fresh.scalars, "retry", "failed")
    object.__setattr__(failed.scalars, "retry", "none")
    object.__setattr__(reused.scalars, "force", True)
    assert [item.state for item in table.plan([reused, failed, fresh])] == ["forced", "skipped", "skipped"]


def test_time_comes_from_like_records_of_this_processor_else_from_a_count(tmp_path, monkeypatch):
    config, other = cells(tmp_path, "model=tiny_llama", "bits=3", "calibration.nsamples=4,8")
    hardware_ = {"device": "cpu", "dtype": "float32"}
    work = workload(config, config.model.shapes(), hardware_)

    def given(cell_, seconds, **changes):
        where = {"device": "cpu", "dtype": "float32", "cpu": "this one", **changes}
        made = make_record(
            config=cell_.tree, seconds={"quantize": seconds, "load": 1.0}, fingerprint=f"{seconds:016.0f}"
        )
        made = made.model_copy(update={"provenance": made.provenance.model_copy(update=where)})
        record.save(made, f"{tmp_path}/r")
        return time.duration(config, work, hardware_, time.read_past(f"{tmp_path}/r"))

    monkeypatch.setattr(time, "cpu_model", lambda: "this one")
    expected = time.operations(work) / time.rate("cpu")
    assert given(config, 1, cpu="another one") == time.Duration(expected, "estimate")
    scaled = given(other, 23)
    assert scaled.source == "scaled"
    windows = 32 * 512
    assert scaled.seconds == pytest.approx(24 * (4 * 512 + windows) / (8 * 512 + windows))
    assert given(config, 9) == time.Duration(10, "records")


def test_operations_are_those_of_the_layers(tmp_path):
    _, work = large(tmp_path)
    none = dataclasses.replace(work, corrected=(), windows=())
    forward = 2 * (LLAMA3_8B.block_weights - 2 * 4096) * 32
    more = dataclasses.replace(none, sequences=2 * work.sequences)
    gram = 32 * (3 * 4096**2 + 14336**2)
    per_token = (time.operations(more) - time.operations(none)) / work.tokens
    assert per_token == pytest.approx(forward + gram)


def test_disk_holds_a_checkpoint_of_all_blocks(tmp_path):
    config, work = large(tmp_path, "checkpoint_every=1")
    assert disk(work, config) > 2 * 32 * LLAMA3_8B.block_weights
    config, work = large(tmp_path, "checkpoint_every=0")
    assert disk(work, config) < 10**6
    config, work = large(tmp_path, "checkpoint_every=0", "calibration.activations=disk")
    assert disk(work, config) > work.tokens * 14336 * 2


def test_what_auto_means_is_found_without_torch_as_with_it():
    assert hardware.resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert hardware.resolve_dtype("auto", "cpu") == ("bfloat16" if native else "float32")


def test_the_memory_of_the_machine_is_known_and_a_group_may_have_less(monkeypatch):
    whole = fit.host_memory()
    assert whole is not None
    assert 2**28 < whole < 2**50
    monkeypatch.setattr(fit, "_group_limits", lambda: [2**27])
    assert fit.host_memory() == 2**27
    assert available_memory() <= whole
    assert fit.device_memory("cpu") is None


def _allocation():
    torch.empty(2**55)


def _caused():
    try:
        raise MemoryError("deep inside")
    except MemoryError as error:
        raise ValueError("outside") from error


def _system():
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def _device():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.mark.parametrize("provoke", [_allocation, _caused, _system, _device, lambda: bytearray(2**62)])
def test_memory_that_ran_out_is_recognised_and_explained(tmp_path, provoke, monkeypatch):
    (config,) = cells(tmp_path, "model=tiny_llama", "group_size=32", "calibration=news")
    monkeypatch.setattr(cell, "compute", lambda *_: provoke())
    left = run.run_cell(config).failure
    assert left.error_type == "OutOfMemoryError"
    assert not left.unexpected
    for part in ("predicted peak memory of this cell", "this machine has"):
        assert part in left.message
    assert "Traceback" in left.traceback


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), OSError(errno.ENOENT, "gone"), ValueError()]
)
def test_other_errors_are_not(error, tmp_path):
    (config,) = cells(tmp_path, "model=tiny_llama")
    assert not out_of_memory.is_out_of_memory(error)
    assert out_of_memory.explained(error, config, {}) is error


def test_an_explanation_that_fails_does_not_hide_the_error(tmp_path):
    (config,) = cells(tmp_path, "model=path", "model.path=/nowhere/at/all")
    better = out_of_memory.explained(MemoryError(), config, {"hardware": HARDWARE})
    assert isinstance(better, OutOfMemoryError)
    assert "calibration.batch_size=1" in str(better)
