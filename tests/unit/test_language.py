"""Rules of writing that a pattern can hold: per and not a, lines of Markdown, the length of README."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

COUNTED = (
    "scale scales factor factors bit bits line lines row rows number numbers codebook table "
    "tables level levels vector value values character characters panel panels step steps pass "
    "copy digest file one ones two four multiplication process thread task job seconds forward "
    "window token item record folder"
)
UNITS = (
    "row column matrix group weight cell layer token output channel head block tensor window item "
    "pass step method model sweep study command process worker node device line baseline "
    "correction metric sequence round core version protocol comparison combination seed level "
    "difference panel"
)
DISTRIBUTIVE = re.compile(
    rf"\b(?:{COUNTED.replace(' ', '|')}) an? (?:{UNITS.replace(' ', '|')})\b(?! at| of| that| to |')"
)
"""``one scale a row``, which is ``one scale per row``; verbs that are also nouns are not among the first."""

PAGES = [
    ROOT / "README.md",
    *(path for path in sorted((ROOT / "docs").glob("*.md")) if path.name != "LOG.md"),
    *sorted((ROOT / "experiments").rglob("*.md")),
]
TEXTS = [
    *PAGES,
    *sorted((ROOT / "q2n").rglob("*.py")),
    *sorted((ROOT / "conf").rglob("*.yaml")),
    *sorted((ROOT / "experiments").rglob("*.yaml")),
]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_per_and_not_a() -> None:
    assert DISTRIBUTIVE.search("it stores one scale a row, and")
    assert not DISTRIBUTIVE.search("a row has one scale; two processes run a cell; one process at a time")
    found = {}
    for path in TEXTS:
        text = re.sub(r"\s*\n\s*(?:# )?", " ", path.read_text(encoding="utf-8"))
        if hits := [match.group() for match in DISTRIBUTIVE.finditer(text)]:
            found[named(path)] = hits
    assert found == {}


@pytest.mark.parametrize("path", PAGES, ids=named)
def test_lines_of_markdown_end_before_column_110(path: Path) -> None:
    code, wide = False, []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        code ^= line.startswith("```")
        free = code or line.startswith(("|", "![", "<", "#", "$$", "  $$", "     =")) or "](" in line
        if len(line) >= 110 and not free:
            wide.append(number)
    assert wide == []


def test_readme_has_at_most_900_words() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900
