"""Modules and rooms can be read one after the other: none needs one that needs it, not even to annotate."""

from __future__ import annotations

import ast
import graphlib

import pytest

from q2n.records.source_code import PACKAGE

FILES = {
    ".".join(("q2n", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(name: str) -> set[str]:
    """The package's modules that a module imports anywhere, for type checkers too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (members & FILES.keys()) or {str(node.module)}
    return (found & FILES.keys()) - {name}


def room(name: str) -> str:
    return ".".join(name.split(".")[:2])


MODULES = {name: imported(name) for name in FILES}
ROOMS: dict[str, set[str]] = {}
for name, others in MODULES.items():
    ROOMS.setdefault(room(name), set()).update({room(other) for other in others} - {room(name)})


def test_no_module_is_in_a_circle() -> None:
    assert len(MODULES) > 100
    graphlib.TopologicalSorter(MODULES).prepare()  # or a CycleError that names the modules


@pytest.mark.parametrize("name", ["q2n.models", "q2n.data"])
def test_no_room_that_a_room_needs_needs_it(name: str) -> None:
    needed: set[str] = set()
    waiting = [name]
    while waiting:
        new = ROOMS[waiting.pop()] - needed
        needed |= new
        waiting += new
    assert name not in needed
