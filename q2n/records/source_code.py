"""Code that a number depends on: its modules, and a digest per function.

A cell depends on the modules that its options import, transitively, imports inside functions included, and on
:mod:`q2n.pipeline.cell`, which drives them. Modules that store, show or schedule a number
(:data:`BOOKKEEPING`) cannot change it: they neither count nor are followed. The digest is taken of the syntax
tree without comments, docstrings and the annotations of functions, so that rewording an explanation keeps
every record. Annotations in the body of a class count, because pydantic validates options by them.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent

DRIVER = "q2n.pipeline.cell"
"""Module that computes every cell."""

BOOKKEEPING = frozenset(
    f"q2n.{name}"
    for name in (
        "cells",
        "cli",
        "command",
        "exceptions",
        "explain",
        "launchers",
        "plan",
        "records",
        "report",
        "runtime",
        "tracking",
    )
)
"""Modules and packages that store, show, schedule or explain a number but cannot change it."""

NEUTRAL_GROUPS = frozenset({"tracking", "hydra"})
"""Groups of the configuration whose options cannot change a number."""

SHORT = 12
"""Hexadecimal digits of a function's digest: enough for a few thousand functions without a collision."""

Parts = Mapping[str, str]
"""Digests by function (``solve``), method (``GPTQ.quantize``) and class body (``GPTQ``); the key ``""`` has
the rest of the module."""


def targets(tree: Any) -> Iterator[str]:
    """Yield the module of every ``_target_`` in a configuration, except in :data:`NEUTRAL_GROUPS`."""
    if isinstance(tree, Mapping):
        if isinstance(target := tree.get("_target_"), str):
            yield target.rpartition(".")[0]
        for key, item in tree.items():
            if key not in NEUTRAL_GROUPS:
                yield from targets(item)
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from targets(item)


@dataclass(frozen=True)
class Module:
    """Digests of a module's parts, and the modules of the package that it imports."""

    parts: Parts
    imports: tuple[str, ...]

    @classmethod
    def parse(cls, source: str, name: str, is_package: bool) -> Module:
        """Parse the source text of the module ``name``; line endings do not matter."""
        body = ast.parse(source).body
        package = name if is_package else name.rpartition(".")[0]
        imports = [found for statement in body for found in _imports(statement, package)]
        return cls(_parts(body), tuple(dict.fromkeys(imports)))

    @cached_property
    def digest(self) -> str:
        """Digest of all parts, :data:`SHORT` hexadecimal digits."""
        return _hash(sorted(self.parts.items()))


class Code(dict[str, Module]):
    """Modules by name, not changed after creation; ``key`` is the digest of all of them."""

    @cached_property
    def key(self) -> str:
        """Digest of all modules, 16 hexadecimal digits."""
        return _hash([(name, self[name].digest) for name in sorted(self)], 16)

    def without(self, packages: Iterable[str]) -> Code:
        """Return the modules that are neither one of ``packages`` nor inside one."""
        return Code({name: module for name, module in self.items() if not _within(name, packages)})

    @property
    def parts(self) -> dict[str, Parts]:
        """Digests of all functions, by module."""
        return {name: self[name].parts for name in sorted(self)}


class Checkout:
    """Modules of a checkout, each read once.

    Args:
        folder: folder of the package ``q2n``.
    """

    def __init__(self, folder: Path = PACKAGE) -> None:
        self._folder = folder
        self._modules: dict[str, Module | None] = {}
        self._codes: dict[frozenset[str], Code] = {}

    def code(self, *entries: str) -> Code:
        """Return the modules ``entries``, their packages, and all modules that they import, transitively."""
        wanted = frozenset(entries)
        if wanted not in self._codes:
            self._codes[wanted] = Code(self._closure(wanted))
        return self._codes[wanted]

    def of_cell(self, tree: Mapping[str, Any]) -> Code:
        """Return the modules that the cell with the resolved configuration ``tree`` depends on."""
        return self.code(DRIVER, *targets(tree))

    def _closure(self, entries: Iterable[str]) -> dict[str, Module]:
        found: dict[str, Module] = {}
        waiting = [*entries]
        while waiting:
            name = waiting.pop()
            module = None if name in found or _within(name, BOOKKEEPING) else self._module(name)
            if module is None:
                continue
            found[name] = module
            parent = name.rpartition(".")[0]  # Python imports a package before its module
            waiting += [*module.imports, parent] if parent else module.imports
        return found

    def _module(self, name: str) -> Module | None:
        if name not in self._modules:
            file = self._file(name)
            self._modules[name] = None
            if file:
                text = file.read_text(encoding="utf-8")
                self._modules[name] = Module.parse(text, name, file.name == "__init__.py")
        return self._modules[name]

    def _file(self, name: str) -> Path | None:
        """Return a module's file, or None if ``name`` is no module (but a function, say)."""
        own = self._folder.joinpath(*name.split(".")[1:])
        places = [own, *_added(name)] if self._folder == PACKAGE else [own]
        files = (file for place in places for file in (place.with_suffix(".py"), place / "__init__.py"))
        return next((file for file in files if file.is_file()), None)


CHECKOUT = Checkout()
"""Code that is running; read at the first use, so that later edits of files do not count."""


def _added(name: str) -> list[Path]:
    """Return the places of a module on paths that were added to one of the package's packages."""
    parent, _, leaf = name.rpartition(".")
    return [Path(folder) / leaf for folder in getattr(sys.modules.get(parent), "__path__", ())]


def _within(name: str, packages: Iterable[str]) -> bool:
    words = name.split(".")
    return not {".".join(words[:count]) for count in range(1, len(words) + 1)}.isdisjoint(packages)


def _imports(node: ast.AST, package: str) -> Iterator[str]:
    """Yield the package's modules that a statement imports or may import (``from q2n import linalg``)."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if _is_own(alias.name))
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        source = ".".join([*above, *([node.module] if node.module else [])])
        if _is_own(source):
            yield source
            yield from (f"{source}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.If) and _is_for_checkers(node):
        for statement in node.orelse:
            yield from _imports(statement, package)
    else:
        for child in ast.iter_child_nodes(node):
            yield from _imports(child, package)


def _is_own(name: str) -> bool:
    return name == "q2n" or name.startswith("q2n.")


def _is_for_checkers(node: ast.If) -> bool:
    return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _parts(body: Iterable[ast.stmt], owner: str = "") -> dict[str, str]:
    """Return the digest of each part of a module, or of the body of its class ``owner``."""
    named: dict[str, list[str]] = {}
    inner: dict[str, str] = {}
    for statement in body:
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name = f"{owner}.{statement.name}" if owner else statement.name
            # of one name: a property and its setter
            named.setdefault(name, []).append(_text(statement))
        elif isinstance(statement, ast.ClassDef) and not owner:
            head = [
                _text(item) for item in (*statement.decorator_list, *statement.bases, *statement.keywords)
            ]
            methods = _parts(statement.body, statement.name)
            named.setdefault(statement.name, []).extend([*head, methods.pop(statement.name, "")])
            inner |= methods
        elif text := _text(statement):
            named.setdefault(owner, []).append(text)
    return {**{name: _hash(texts) for name, texts in named.items()}, **inner}


def _text(node: Any) -> str:
    """Write a syntax tree in one line that is the same in every version of Python.

    (The output of :func:`ast.dump` and :func:`ast.unparse` has changed with the language.)
    """
    if isinstance(node, list):
        return f"[{','.join(text for item in node if (text := _text(item)))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if _is_docstring(node) or (isinstance(node, ast.If) and _is_for_checkers(node) and not node.orelse):
        return ""
    left_out = {"type_comment", "type_params", "kind"}
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        left_out.add("returns")
    if isinstance(node, ast.arg):
        left_out.add("annotation")
    fields = ((name, value) for name, value in ast.iter_fields(node) if name not in left_out)
    texts = (f"{name}={_text(value)}" for name, value in fields if value is not None and value != [])
    return f"{type(node).__name__}({','.join(texts)})"


def _is_docstring(node: ast.AST) -> bool:
    """Tell whether a node is a string by itself, at the head of a definition or below an assignment."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _hash(value: Any, digits: int = SHORT) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:digits]
