"""Readers for the files written by hand beside the experiments: YAML, read strictly, and READMEs.

A report takes four sections from a README. A section begins with a bold label: ``**Question.**`` (or
``**Claim.**``), ``**Command.**``, ``**What came out.**``, ``**Verdict.**``. Only the first is required.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from q2n.exceptions import ConfigurationError

_SECTION = re.compile(r"^\*\*(Question|Claim|Command|What came out|Verdict)\.\*\*[ \t]*", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6} ", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```[^\n]*$", re.MULTILINE | re.DOTALL)


def read_texts(readme: str) -> dict[str, Any]:
    """Markdown texts of a README by field of :class:`q2n.report.studies.study.Study`.

    The text of a missing section is empty.

    Raises:
        ConfigurationError: the README has no title, no question or claim, both, or a section twice.
    """
    head = re.search(r"^# (.+)$", readme, re.MULTILINE)
    if head is None:
        raise ConfigurationError("has no '# title'")
    sections = _sections(readme)
    asked = [label for label in ("Question", "Claim") if label in sections]
    if len(asked) != 1:
        raise ConfigurationError("must have one section that begins with **Question.** or **Claim.**")
    fields = {"command": "Command", "outcome": "What came out", "verdict": "Verdict", "question": asked[0]}
    texts = {field: sections.get(label, "") for field, label in fields.items()}
    return {"heading": head.group(1).strip(), "claims": asked == ["Claim"], **texts}


def _sections(readme: str) -> dict[str, str]:
    """Text by label; a section ends at the next section or heading."""
    # a '#' in a command is no heading: blocks of code are blanked before the search
    blank = _FENCE.sub(lambda block: re.sub(r"[^\n]", " ", block.group()), readme)
    starts = list(_SECTION.finditer(blank))
    ends = [*(start.start() for start in starts[1:]), len(readme)]
    found: dict[str, str] = {}
    for begin, end in zip(starts, ends, strict=False):
        label = begin.group(1)
        if label in found:
            raise ConfigurationError(f"has two sections **{label}.**")
        heading = _HEADING.search(blank, begin.end(), end)
        found[label] = readme[begin.end() : heading.start() if heading else end].strip()
    return found


def read_mapping(path: Path) -> dict[str, Any]:
    """Keys and values of a YAML file; interpolations are not resolved.

    Raises:
        ConfigurationError: the file cannot be read, is not YAML, or has no mapping; the message names it.
    """
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.load(path)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise ConfigurationError(f"{path}: is not YAML: {error}") from None
    if not isinstance(config, DictConfig):
        raise ConfigurationError(f"{path}: must hold keys with values, not a list")
    return {str(key): value for key, value in (OmegaConf.to_container(config) or {}).items()}  # type: ignore[union-attr]


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Prefix each line of a ConfigurationError raised in the block with the file's path."""
    try:
        yield
    except ConfigurationError as error:
        lines = [f"{path}: {line}" for line in str(error).splitlines()]
        raise ConfigurationError("\n".join(lines)) from None
