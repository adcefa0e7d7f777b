"""Jobs in processes of their own, and the times of q2n's command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
WORKERS = {
    "q2n": "q2n_worker.py",
    "ist": "ist_worker.py",
    "llmcompressor": "llmcompressor_worker.py",
    "gptqmodel": "gptqmodel_worker.py",
    "neural-compressor": "neural_compressor_worker.py",
}


def environment(threads: int) -> dict[str, str]:
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GPTQMODEL_CPU_WORKERS"), str(threads))
    offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, **counts, **offline, "PYTHONPATH": path}


def run_job(peer: str, python: str, job: dict[str, Any], timeout: float) -> dict[str, Any]:
    """A worker's figures.

    Raises:
        RuntimeError: it failed; the message ends with what it said last.
    """
    folder = Path(job["output"])
    (folder / "logs").mkdir(parents=True, exist_ok=True)  # gptqmodel writes there
    figures = folder / "figures.json"
    figures.unlink(missing_ok=True)
    (folder / "job.json").write_text(json.dumps(job))
    surroundings = environment(job["threads"])
    if peer not in ("q2n", "ist"):
        surroundings.pop("PYTHONPATH")  # a peer must not see this project's packages
    with (folder / "log.txt").open("w") as log:
        command = [python, str(FOLDER / WORKERS[peer]), str(folder / "job.json")]
        try:
            done = subprocess.run(
                command, cwd=folder, env=surroundings, stdout=log, stderr=log, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{peer}: no end after {timeout:.0f} s") from None
    if done.returncode or not figures.exists():
        said = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-3:]
        raise RuntimeError(f"{peer}: exit code {done.returncode}: {' / '.join(said)[-400:]}")
    return json.loads(figures.read_text())


def start_up(threads: int) -> dict[str, float]:
    """Seconds until ``run.py --help`` and ``plan=true`` end and until the first progress bar of a cell."""
    run = [sys.executable, str(ROOT / "run.py")]
    found = {"help": _seconds([*run, "--help"], threads)}
    with tempfile.TemporaryDirectory() as results:
        found["plan"] = _seconds([*run, "plan=true", f"results_dir={results}"], threads)
        began = time.perf_counter()
        process = subprocess.Popen(
            [*run, f"results_dir={results}", "force=true"],
            cwd=results,
            env=environment(threads),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        assert process.stderr is not None
        process.stderr.readline()
        found["first bar"] = time.perf_counter() - began
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
    return found


def sweep(threads: int, cache: Path) -> dict[str, float]:
    """Seconds of ``run.py -m bits=2,3 q2n=on,off`` with nothing measured before but the model converted."""
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "cache"
        own.mkdir()
        for name in ("models", "text"):
            if (cache / name).exists():
                (own / name).symlink_to(cache / name)
        command = [sys.executable, str(ROOT / "run.py"), "-m", "bits=2,3", "q2n=on,off"]
        places = [f"results_dir={folder}/results", f"cache_dir={own}", f"hydra.sweep.dir={folder}/multirun"]
        return {"sweep": _seconds([*command, *places], threads)}


def _seconds(command: list[str], threads: int) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, env=environment(threads), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr[-400:]}")
    return time.perf_counter() - began
