"""What the unquantized model's kept metrics are keyed by."""

from __future__ import annotations

import ast
from pathlib import Path

from q2n import fingerprint
from q2n.evaluation.reference import reference_identity

ROOT = Path(fingerprint.__file__).parents[1]
NO_ARITHMETIC = {"q2n/hardware.py", "q2n/options.py", "q2n/stages/ledger.py"}


def imported(path):
    """Modules of the package that a file imports when it runs."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("q2n"):
            module = node.module.replace(".", "/")
            names = (f"{module}.py", *(f"{module}/{alias.name}.py" for alias in node.names))
            yield from (name for name in names if (ROOT / name).is_file())


def test_its_key_changes_with_every_source_that_computes_it():
    sources = fingerprint.source_digest()
    parts = {
        "config": {"model": {}, "evaluation": {}},
        "weights": {},
        "data": {"evaluation": {}},
        "hardware": {},
        "versions": {},
        "sources": sources,
    }
    keyed = reference_identity(parts)["sources"]
    found, todo = set(), [path for path in sources if path.startswith(("q2n/models/", "q2n/evaluation/"))]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += imported(path)
    assert {path for path in found & sources.keys() if path not in keyed} <= NO_ARITHMETIC
