"""The peers' virtual environments, one each, made in a cache folder when they are first needed."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "llmcompressor": ("llmcompressor==0.14.0.1",),
    "gptqmodel": ("gptqmodel==7.6.0",),
    "neural-compressor": ("neural-compressor-pt==3.10", "transformers", "accelerate"),
}
OURS = ("q2n", "ist")
"""What runs in this project's own environment."""


def python_of(peer: str, root: Path) -> str:
    """The interpreter a peer runs with; its environment is made if it is not there.

    Raises:
        RuntimeError: it cannot be made; the message ends with what pip said.
    """
    if peer in OURS:
        return sys.executable
    torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
    wanted = "\n".join([torch, *PACKAGES[peer], "safetensors"])
    folder = root / peer
    python, mark = folder / "bin" / "python", folder / "q2n-ready"
    if not (mark.exists() and mark.read_text() == wanted):
        print(f"making the environment of {peer} in {folder}", flush=True)
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(python), "-m", "pip", "install", "--quiet", torch)  # first, so that nothing else chooses it
        _run(str(python), "-m", "pip", "install", "--quiet", *wanted.splitlines())
        mark.write_text(wanted)
    return str(python)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
