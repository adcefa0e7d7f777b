"""Conversion of a figure's SVG file into a small part of the page: shapes and text in the page's colours.

Ids get a prefix per figure because all figures share one document. Styles become attributes because the
page's policy forbids style attributes. Elements and attributes that no figure needs are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from markupsafe import Markup

DECIMALS = 2
"""Decimals of a number: a hundredth of a point is less than any screen shows."""
_TENTHS = 10
"""Steps per point in the coordinates of lines: close enough, and a relative step is short to write."""

_TAGS = frozenset(
    {"svg", "g", "defs", "clipPath", "path", "rect", "circle", "line", "text", "tspan", "use", "image"}
)
_GEOMETRY = frozenset(
    {"d", "x", "y", "width", "height", "cx", "cy", "r", "x1", "y1", "x2", "y2", "viewBox", "transform"}
)
_PAINT = (
    *("fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray"),
    *("stroke-dashoffset", "stroke-linejoin", "stroke-linecap", "opacity"),
    *("font-size", "font-weight", "font-style", "text-anchor"),
)
_NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]?\d+)?")
_FUNCTION = re.compile(r"url\(#([^)]+)\)")
_STILL = re.compile(r"\s*rotate\(-?0(\s[^)]*)?\)")
_COLOUR = re.compile(r"#[0-9a-f]{6}")
_LINE = re.compile(r"\s*(?:M\s+\S+\s+\S+(?:\s+L\s+\S+\s+\S+)*(?:\s+z)?\s*)+")
_POINT = re.compile(r"([ML])\s+(\S+)\s+(\S+)|(z)")
_PICTURE = "data:image/png;base64,"


def inline(path: Path, prefix: str, *, themed: bool) -> Markup:
    """The figure as an ``<svg>`` element.

    Args:
        path: the figure's SVG file.
        prefix: prefix of all ids in the element.
        themed: whether the colours follow the page's light or dark theme. Must be false if letters stand on
            coloured ground: their contrast was chosen for exactly that colour.

    Raises:
        OSError: the file cannot be read.
        ElementTree.ParseError: the file is not XML.
    """
    source = ElementTree.parse(path).getroot()
    used = {name for element in source.iter() for name in _references(element)}
    names = {name: f"{prefix}-{place}" for place, name in enumerate(sorted(used))}
    root = ElementTree.Element("svg", {"viewBox": source.get("viewBox", ""), "stroke-linejoin": "round"})
    _copy(source, root, names, themed)
    # HTML parses this XML the same way: only elements of SVG may be empty there, and all are closed
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def tallness(svg: str) -> float:
    """Height over width of an element made by :func:`inline`, 1 if the element has no view box."""
    found = re.search(r'viewBox="[-\d.]+ [-\d.]+ ([\d.]+) ([\d.]+)"', svg)
    return float(found.group(2)) / float(found.group(1)) if found else 1.0


def _references(element: ElementTree.Element) -> Iterator[str]:
    for name, value in element.attrib.items():
        if _local(name) == "href" and value.startswith("#"):
            yield value[1:]
        yield from _FUNCTION.findall(value)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _copy(
    source: ElementTree.Element, target: ElementTree.Element, names: dict[str, str], themed: bool
) -> None:
    """Copy the children of ``source`` to ``target``; groups without attributes are dissolved."""
    for child in source:
        tag = _local(str(child.tag))
        if tag not in _TAGS:
            continue
        attributes = dict(_attributes(child, names, themed))
        if tag == "g" and not attributes:
            _copy(child, target, names, themed)
            continue
        copied = ElementTree.SubElement(target, tag, attributes)
        copied.text = (child.text or "").strip() or None
        _copy(child, copied, names, themed)


def _attributes(
    element: ElementTree.Element, names: dict[str, str], themed: bool
) -> Iterator[tuple[str, str]]:
    paint = dict(_declarations(element.get("style", "")))
    for qualified, value in element.attrib.items():
        name = _local(qualified)
        if name == "id" and value in names:
            yield name, names[value]
        elif name == "href" and (value.removeprefix("#") in names or value.startswith(_PICTURE)):
            yield name, f"#{names[value[1:]]}" if value.startswith("#") else value
        elif name == "clip-path":
            yield name, _FUNCTION.sub(lambda found: f"url(#{names[found.group(1)]})", value)
        elif name == "d":
            yield name, _path(value)
        elif name in _GEOMETRY and not (name == "transform" and _STILL.fullmatch(value)):
            yield name, _shorter(value)
        elif name in _PAINT:
            paint.setdefault(name, value)
    for name, value in paint.items():
        if name in _PAINT:
            yield name, _colour(value, themed) if name in ("fill", "stroke") else _shorter(value)


def _declarations(style: str) -> Iterator[tuple[str, str]]:
    for declaration in style.split(";"):
        name, _, value = declaration.partition(":")
        if value:
            yield name.strip(), value.strip()


def _shorter(value: str) -> str:
    """The text with numbers rounded to :data:`DECIMALS` and single spaces between words."""
    rounded = _NUMBER.sub(lambda found: f"{round(float(found.group()), DECIMALS):g}", value)
    return " ".join(rounded.split())


def _path(value: str) -> str:
    """A path of straight lines as relative steps; any other path with rounded numbers."""
    if not _LINE.fullmatch(value):
        return _shorter(value)
    text, before, x, y = "", "", 0, 0
    for letter, across, down, close in _POINT.findall(value):
        if letter:
            to_x, to_y = round(float(across) * _TENTHS), round(float(down) * _TENTHS)
            step = _tenths(to_x) + _tenths(to_y) if letter == "M" else _tenths(to_x - x) + _tenths(to_y - y)
            command = "M" if letter == "M" else "l"
            text += step if command == before == "l" else command + step.lstrip()
            before, x, y = command, to_x, to_y
        else:
            text, before = text + close, close
    return text


def _tenths(value: int) -> str:
    """A number of tenths that can directly follow another number: `` 12.3``, ``-.4``."""
    whole, tenth = divmod(abs(value), _TENTHS)
    number = f"{whole or ''}.{tenth}" if tenth else f"{whole}"
    return f"{'-' if value < 0 else ' '}{number}"


def _colour(value: str, themed: bool) -> str:
    """The colour as a variable of the style sheet (``--fig-0072b2``), with the colour itself as fallback."""
    value = value.lower()
    return f"var(--fig-{value[1:]}, {value})" if themed and _COLOUR.fullmatch(value) else value
