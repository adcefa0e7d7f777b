"""The examples of docs/adding_a_*.md: taken from their page, put into two folders, and run."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from helpers.commands import ROOT, SMALL, environment

SMALL_CALIBRATION = [item for item in SMALL if not item.startswith("evaluation.")]
"""For an evaluation with other keys than perplexity's."""

# The folder stands for files added to the package.
PROGRAM = """
import sys
import q2n.baselines, q2n.corrections, q2n.evaluation
folder = sys.argv.pop(1)
for package in (q2n.baselines, q2n.corrections, q2n.evaluation):
    package.__path__.append(folder)
from q2n.cli import main
main()
"""


def blocks(page: str) -> dict[str, str]:
    """The fenced blocks of a page that name their file, by that name."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def added(page: str, folder: Path) -> tuple[Path, Path]:
    """The classes of a page in one new folder, their settings in another."""
    code, conf = folder / "code", folder / "conf"
    for name, text in blocks(page).items():
        room, *rest = Path(name).parts
        file = conf.joinpath(*rest) if room == "conf" else code / rest[-1]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return code, conf


def run(
    folder: Path, places: tuple[Path, Path], *arguments: str, small: Iterable[str] = SMALL
) -> subprocess.CompletedProcess[str]:
    """The command line with the added classes on a tiny model, and ``small`` where nothing else is given."""
    code, conf = places
    given = {item.partition("=")[0].removeprefix("baseline.") for item in arguments}
    rest = ["model=tiny_llama", *(item for item in small if item.partition("=")[0] not in given)]
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(code), "--config-dir", str(conf), *arguments, *rest],
        cwd=folder,
        env={**environment(folder / "cache"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
