"""Wikipedia markup to running text: whole sentences, one paragraph per line.

Gensim's ``filter_wiki`` removes most markup. The rest would make up a tenth of the tokens: headings, quotes,
bullets, table cells, captions, lists of links. ``filter_wiki`` also deletes templates that contain words
("falls ``{{convert|16|in}}`` a year") and leaves holes in sentences; these templates are written out before.
"""

from __future__ import annotations

import calendar
import html
import re

APPENDICES = frozenset(
    [
        *("references", "external links", "see also", "further reading", "notes", "footnotes"),
        *("bibliography", "sources", "citations", "works cited", "notes and references", "gallery"),
        *("references and notes", "selected bibliography", "publications", "filmography", "discography"),
    ]
)
"""Sections that contain lists, not sentences."""
UNITS = {"sqmi": "square miles", "mi": "miles", "ft": "feet", "in": "inches", "km2": "km²", "lb": "pounds"}
"""Units of the template ``convert`` in words; other units stay as they are."""
MIN_WORDS = 6
"""Minimum words of a line: shorter lines are captions, table cells or list entries."""

_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_CONVERT = re.compile(r"\{\{\s*(?:convert|cvt)\s*\|([^{}]*)\}\}", re.IGNORECASE)
_LANGUAGE = re.compile(r"\{\{\s*lang(?:\|[\w-]+|-[\w-]+)\|([^{}|]*)[^{}]*\}\}", re.IGNORECASE)
_ARGUMENT = r"((?:\[\[[^\[\]]*\]\]|[^{}|\[\]])*)"  # a piped link is one argument
_WRAPPER = re.compile(
    r"\{\{\s*(?:nowrap|smaller|small|angbr|ipa|nihongo|respell|vr)\s*\|" + _ARGUMENT + r"[^{}]*\}\}",
    re.IGNORECASE,
)
_CHEMICAL = re.compile(r"\{\{\s*chem\s*\|([^{}]*)\}\}", re.IGNORECASE)
_AS_OF = re.compile(r"\{\{\s*as of\s*\|([^{}]*)\}\}", re.IGNORECASE)
_GALLERY = re.compile(r"<gallery\b.*?</gallery\s*>", re.IGNORECASE | re.DOTALL)
_FIGURE = re.compile(r"^(?:File|Image):|\balt=|\d+px")
_HEADING = re.compile(r"^\s*(={2,})\s*(.*?)\s*=+\s*$")
_BULLET = re.compile(r"^[\s*#:;+|!]+")
_TAG = re.compile(r"</?[a-zA-Z][^<>]{0,200}>|\{\{|\}\}|__[A-Z]+__|'{2,}|\blink=\w+(?:,\s*)?")
# Traces of deleted templates: empty brackets, brackets that open with a comma, repeated commas.
_EMPTY_BRACKETS = re.compile(r"\([\s,;:]*\)")
_OPENING_COMMA = re.compile(r"\([\s,;]+(?=\S)")
_COMMAS = re.compile(r",(?:\s*,)+")
_END = re.compile(r"[.!?:;][\"\u201d\u2019')]*$")


def before_filter(raw: str) -> str:
    """Return wiki source without tables and with the templates that contain words written out."""
    text = _BREAK.sub(" ", _GALLERY.sub("", _without_tables(raw)))
    text = _CHEMICAL.sub(lambda hit: hit[1].replace("|", ""), _CONVERT.sub(_written_out, text))
    text = _WRAPPER.sub(r"\1", _AS_OF.sub(_date, text))
    return _LANGUAGE.sub(r"\1", text)


def paragraphs(filtered: str) -> str:
    """Return the running text in the output of ``filter_wiki``, one paragraph per line."""
    kept = []
    for line in _without_appendices(filtered.splitlines()):
        sentence = _line(line)
        if len(sentence.split()) >= MIN_WORDS and _END.search(sentence) and not _FIGURE.search(sentence):
            kept.append(sentence)
    return "\n".join(kept)


def without_tags(text: str) -> str:
    """Return ``text`` without HTML tags, on one line."""
    return squeeze(_TAG.sub("", html.unescape(text)))


def squeeze(text: str) -> str:
    """Return ``text`` with each run of white space as one space, and none before punctuation."""
    return re.sub(r" +([,.;:!?)])(?=\s|$)", r"\1", " ".join(text.split()))


def _line(line: str) -> str:
    """Return a line without bullets, tags and traces of deleted templates."""
    bare = _TAG.sub("", _BULLET.sub("", html.unescape(line)))
    bare = _OPENING_COMMA.sub("(", _EMPTY_BRACKETS.sub("", bare))
    return squeeze(_COMMAS.sub(",", re.sub(r"\(\s+", "(", bare)).lstrip(" ,;"))


def _without_tables(raw: str) -> str:
    """Drop tables, which nest: ``{|`` at the start of a line opens one and ``|}`` closes it."""
    depth, kept = 0, []
    for line in raw.splitlines():
        start = line.lstrip(" :*")
        if start.startswith("{|"):
            depth += 1
        elif depth and start.startswith("|}") and not start.startswith("|}}"):  # |}} ends a template
            depth -= 1
            kept.append(start[2:])
        elif not depth:
            kept.append(line)
    return "\n".join(kept)


def _written_out(hit: re.Match[str]) -> str:
    """Write out a ``convert``: ``16|in|cm`` as "16 inches", ``3|to|5|km`` as "3 to 5 km"."""
    parts = [part.strip() for part in hit[1].split("|") if "=" not in part]
    span = 4 if len(parts) > 3 and parts[1] in ("-", "\u2013", "to", "and", "or", "by", "x") else 2
    return " ".join([*parts[: span - 1], *(UNITS.get(unit, unit) for unit in parts[span - 1 : span])])


def _date(hit: re.Match[str]) -> str:
    """Write out an ``as of``: ``2014|5|lc=y`` as "as of May 2014"."""
    parts = [part.strip() for part in hit[1].split("|") if "=" not in part]
    if len(parts) > 1 and parts[1].isdecimal() and 1 <= int(parts[1]) <= 12:
        parts[1] = calendar.month_name[int(parts[1])]
    words = "as of" if re.search(r"lc\s*=", hit[1]) else "As of"
    return f"{words} {' '.join(reversed(parts))}"


def _without_appendices(lines: list[str]) -> list[str]:
    """Drop headings and appendix sections, each up to the next heading of its level or above."""
    kept, dropped_level = [], 0
    for line in lines:
        heading = _HEADING.match(line)
        if heading:
            level = len(heading[1])
            if not dropped_level or level <= dropped_level:
                dropped_level = level if heading[2].strip(" '").lower() in APPENDICES else 0
        elif not dropped_level:
            kept.append(line)
    return kept
