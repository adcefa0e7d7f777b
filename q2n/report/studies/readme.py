"""What a report takes from a study's README: the question, the verdict, what lies between.

Sections are paragraphs that begin with a bold label: ``**Question.**`` (or ``**Claim.**``), ``**Command.**``,
``**What came out.**``, ``**Verdict.**``. Each is optional but the first.
"""

from __future__ import annotations

import itertools
import re
from typing import NamedTuple

from q2n.exceptions import ConfigurationError

_SECTION = re.compile(r"^\*\*(Question|Claim|Command|What came out|Verdict)\.\*\*[ \t]*", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} ", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```[^\n]*$", re.MULTILINE | re.DOTALL)


class Texts(NamedTuple):
    """Markdown by section, empty where there is none. ``claims``: ``question`` is a claim to be tested."""

    heading: str
    question: str
    claims: bool
    command: str
    outcome: str
    verdict: str


def read_texts(readme: str) -> Texts:
    """The texts of a README.

    Raises:
        ConfigurationError: it has no title or asks nothing, or a section twice.
    """
    head = re.search(r"^# (.+)$", readme, re.MULTILINE)
    if head is None:
        raise ConfigurationError("has no '# title'")
    sections = _sections(readme)
    asked = [label for label in ("Question", "Claim") if label in sections]
    if len(asked) != 1:
        raise ConfigurationError("must have one section that begins with **Question.** or **Claim.**")
    rest = (sections.get(label, "") for label in ("Command", "What came out", "Verdict"))
    return Texts(head.group(1).strip(), sections[asked[0]], asked == ["Claim"], *rest)


def _sections(readme: str) -> dict[str, str]:
    """Text by label; a section ends where the next begins, or at a heading."""
    # a '#' in a command is no heading: blocks of code are looked through as if they were blank
    blank = _FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block.group()), readme)
    starts = [*_SECTION.finditer(blank), None]
    found: dict[str, str] = {}
    for begin, following in itertools.pairwise(starts):
        assert begin is not None  # only the last one is
        label, end = begin.group(1), following.start() if following else len(readme)
        if label in found:
            raise ConfigurationError(f"has two sections **{label}.**")
        heading = _HEADING.search(blank, begin.end(), end)
        found[label] = readme[begin.end() : heading.start() if heading else end].strip()
    return found
