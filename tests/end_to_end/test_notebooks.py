"""The notebooks run from their first to their last cell, each in a fresh kernel of this environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import ROOT
from helpers.records import make_record

from q2n.records.store import save

pytestmark = pytest.mark.slow

FOLDER = ROOT / "notebooks"
# In a process of its own: an event loop, sockets and a kernel leave more behind than a test may.
PROGRAM = """
import sys
import nbformat
from nbclient import NotebookClient
book = nbformat.read(sys.argv[1], as_version=4)
folder = {"metadata": {"path": sys.argv[2]}}
NotebookClient(book, timeout=300, kernel_name="python3", resources=folder).execute()
nbformat.write(book, sys.argv[3])
"""


def execute(path: Path, to: Path, **variables: str) -> list[dict]:
    """The executed cells; a cell that raises fails the test with its traceback."""
    pytest.importorskip("nbclient")
    import nbformat

    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), str(FOLDER), str(to)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(nbformat.read(to, as_version=4).cells)


def shown(cells: list[dict]) -> str:
    """All text that the cells put out."""
    texts = []
    for cell in cells:
        for output in cell.get("outputs", []):
            texts.append(output.get("text", "") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(texts)


def test_null_space_of_one_layer(tmp_path):
    text = shown(execute(FOLDER / "null_space_of_one_layer.ipynb", tmp_path / "out.ipynb"))
    for line in ("closed form against explicit projector: ", "largest difference to ours: "):
        assert float(text.partition(line)[2].split()[0]) < 1e-5
    assert "'codes': 'unchanged'" in text


def test_your_own_correction(tmp_path):
    text = shown(execute(FOLDER / "your_own_correction.ipynb", tmp_path / "out.ipynb"))
    assert "8 computed" in text
    assert "q2n.strength=1.5: must be less than or equal to 1" in text
    assert "2 reused, 2 computed" in text or "2 computed, 2 reused" in text


def test_reading_the_committed_records(tmp_path):
    records = list((ROOT / "results").glob("*/*/record.json"))
    if not records:
        pytest.skip("no records are committed yet")
    text = shown(execute(FOLDER / "reading_records.ipynb", tmp_path / "out.ipynb"))
    assert f"{len(records)} records, " in text
    assert "spread over windows: " in text


def test_reading_other_records(tmp_path):
    """Records of one's own: few, without layers, nothing to compare."""
    for bits in (2, 3):
        save(make_record(bits=bits, correction="off"), tmp_path / "results")
    cells = execute(
        FOLDER / "reading_records.ipynb", tmp_path / "out.ipynb", RESULTS=str(tmp_path / "results")
    )
    assert "2 records, 2 measured values" in shown(cells)
