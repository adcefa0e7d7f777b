"""A cell's code is what its options import; its key changes with what the code does and with nothing else."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from q2n.cli import CONFIG_DIR
from q2n.evaluation import reference
from q2n.evaluation.harness import identity as tasks_identity
from q2n.records.source_code import (
    BOOKKEEPING,
    CHECKOUT,
    PACKAGE,
    Checkout,
    Module,
    targets,
)

CELLS = ("gptq", "owq", "quip", "awq", "leanquant")


def composed(*overrides: str) -> dict:
    with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
        tree = OmegaConf.to_container(compose("config", overrides=[*overrides]), resolve=True)
    return {key: value for key, value in tree.items() if key != "hydra"}


TREES = {name: composed(f"baseline={name}") for name in CELLS}
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def keys(checkout: Checkout) -> dict[str, str]:
    return {name: checkout.of_cell(tree).key for name, tree in TREES.items()}


KEYS = keys(CHECKOUT)


def name_of(file: str) -> str:
    parts = ["q2n", *file.removesuffix(".py").split("/")]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = tmp_path_factory.mktemp("checkout") / "q2n"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def stale(package: Path, file: str, text: str) -> set[str]:
    """The cells whose key is another one when ``file`` has this ``text``."""
    before = (package / file).read_bytes()
    (package / file).write_text(text, encoding="utf-8")
    try:
        return {name for name, key in keys(Checkout(package)).items() if key != KEYS[name]}
    finally:
        (package / file).write_bytes(before)


def source(file: str) -> str:
    return (PACKAGE / file).read_text(encoding="utf-8")


def test_a_copy_elsewhere_is_the_same_code(copy: Path) -> None:
    assert keys(Checkout(copy)) == KEYS


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FILES))
def test_what_a_module_does_makes_just_the_cells_stale_that_need_it(copy: Path, file: str) -> None:
    needing = {name for name, tree in TREES.items() if name_of(file) in CHECKOUT.of_cell(tree)}
    assert stale(copy, file, f"{source(file)}\nCHANGED = 1\n") == needing


class Reworded(ast.NodeTransformer):
    """Every docstring says something else, and functions are annotated otherwise."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            node.value.value = "Something else."
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = ast.Name("object")
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            argument.annotation = ast.Name("object")
        return node


def test_rewording_all_of_the_package_keeps_every_record(copy: Path) -> None:
    try:
        for file in FILES:
            tree = ast.fix_missing_locations(Reworded().visit(ast.parse(source(file))))
            (copy / file).write_text(f"# a comment\n{ast.unparse(tree)}\n", encoding="utf-8")
        assert keys(Checkout(copy)) == KEYS
    finally:
        for file in FILES:
            shutil.copyfile(PACKAGE / file, copy / file)


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("baselines/owq.py", "ROW_FACTOR = 12", "ROW_FACTOR = 13", {"owq"}),
        (
            "quantization/solvers/obs.py",
            "def solve_obs(",
            "def solve_obs(unused=None, *, ",
            {"gptq", "owq", "leanquant", "quip"},
        ),
        ("baselines/gptq.py", "sym: bool = False", "sym: int = False", {"gptq"}),  # pydantic checks by it
        ("report/tables/table.py", "def ", "def other_", set()),
        ("records/store.py", "def save(", "def save_otherwise(", set()),
    ],
)
def test_edits_of_real_modules(copy: Path, file: str, old: str, new: str, expected: set[str]) -> None:
    text = source(file)
    assert old in text
    assert stale(copy, file, text.replace(old, new)) == expected


def test_nothing_heavy_is_imported_to_know_the_code() -> None:
    program = (
        "import sys; from q2n.records.source_code import CHECKOUT;"
        "CHECKOUT.code('q2n.pipeline.cell', 'q2n.baselines.gptq');"
        "print([name for name in ('torch', 'numpy', 'hydra') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


COMPUTING = {
    "baselines",
    "corrections",
    "data",
    "diagnostics",
    "evaluation",
    "linalg",
    "models",
    "pipeline",
    "quantization",
    "types",
}
"""Folders that can change a number: wholly in the fingerprint of the cells that import them."""


def test_a_folder_is_wholly_in_the_fingerprint_or_wholly_out_of_it() -> None:
    """One sees from the path whether an edit can change a number (architecture, rule 1)."""
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    outside = {name.removeprefix("q2n.") for name in BOOKKEEPING}
    assert outside - folders == {"cli", "exceptions", "explain"}
    assert modules - outside == {"config", "options"}
    assert not outside & COMPUTING
    assert folders == COMPUTING | (outside & folders)


def test_the_top_of_the_package_is_seen_at_a_glance() -> None:
    top = [path for path in PACKAGE.iterdir() if path.name not in ("__pycache__", "__init__.py", "py.typed")]
    assert sum(path.is_dir() for path in top) <= 19
    assert sum(path.is_file() for path in top) <= 5


def parse(text: str, name: str = "q2n.a.b") -> Module:
    return Module.parse(text, name, is_package=False)


def test_imports_are_found_wherever_they_stand_but_for_type_checkers() -> None:
    found = parse(
        "import os\nimport q2n.one\nfrom q2n import two\nfrom . import three\nfrom ..four import f\n"
        "if TYPE_CHECKING:\n    from q2n import five\nelse:\n    from q2n import six\n"
        "def g():\n    if x:\n        from q2n.seven import h\n"
    ).imports
    names = {"one", "two", "a.three", "four", "six", "seven"}
    assert names <= {name.removeprefix("q2n.") for name in found}
    assert not any("five" in name or "os" in name for name in found)


def test_parts_are_functions_methods_class_bodies_and_the_rest() -> None:
    text = "X = 1\ndef f():\n    return 1\nclass A(B):\n    y: int = 2\n    def g(self):\n        return 3\n"
    before = parse(text).parts
    assert set(before) == {"", "f", "A", "A.g"}
    for old, new, part in (
        ("X = 1", "X = 2", ""),
        ("return 1", "return 4", "f"),
        ("int = 2", "float = 2", "A"),
        ("A(B)", "A(C)", "A"),
        ("return 3", "return 4", "A.g"),
    ):
        after = parse(text.replace(old, new)).parts
        assert {name for name in before if before[name] != after[name]} == {part}
    assert parse(text.replace("\n", "\r\n")).parts == before


def test_targets_are_those_of_options_that_can_change_a_number() -> None:
    tree = {
        "a": {"_target_": "q2n.a.A", "parts": [{"_target_": "q2n.b.B"}]},
        "tracking": {"_target_": "q2n.t.T"},
    }
    assert [*targets(tree)] == ["q2n.a", "q2n.b"]


def test_a_module_of_a_users_own_option_counts_with_what_it_imports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import q2n.baselines

    monkeypatch.setattr(q2n.baselines, "__path__", [*q2n.baselines.__path__, str(tmp_path)])
    (tmp_path / "mine.py").write_text("from q2n.baselines import mine_too\n")
    (tmp_path / "mine_too.py").write_text("X = 1\n")
    tree = {**TREES["gptq"], "baseline": {"_target_": "q2n.baselines.mine.Mine"}}
    code = Checkout().of_cell(tree)
    assert {"q2n.baselines.mine", "q2n.baselines.mine_too"} <= set(code)
    (tmp_path / "mine_too.py").write_text("X = 2\n")
    assert Checkout().of_cell(tree).key != code.key


def test_a_bundled_tasks_settings_count_and_its_comments_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tasks_identity.TASK_FILES, tmp_path / "tasks")
    monkeypatch.setattr(tasks_identity, "TASK_FILES", tmp_path / "tasks")
    file = tmp_path / "tasks" / "q2n_wiki_cloze.yaml"

    def found() -> dict:
        return tasks_identity.identify_tasks(["q2n_wiki_cloze"], [], None)

    before, text = found(), file.read_text()
    file.write_text(f"# Reworded.\n{text}")
    assert found() == before
    file.write_text(text.replace("num_fewshot: 0", "num_fewshot: 1"))
    assert found() != before


@pytest.mark.parametrize(
    ("file", "matters"),
    [
        ("linalg/kernels/forward.py", True),
        ("models/block.py", True),
        ("quantization/solvers/obs.py", False),
        ("pipeline/calibration.py", False),
    ],
)
def test_what_is_kept_of_the_unquantized_model_depends_on_all_that_computes_it(
    copy: Path, monkeypatch: pytest.MonkeyPatch, file: str, matters: bool
) -> None:
    identity = {
        "config": TREES["gptq"],
        "weights": {},
        "data": {"evaluation": {}},
        "hardware": {},
        "versions": {},
    }
    before = reference.reference_identity(identity)
    text = (copy / file).read_text(encoding="utf-8")
    (copy / file).write_text(f"{text}\nCHANGED = 1\n", encoding="utf-8")
    monkeypatch.setattr(reference, "CHECKOUT", Checkout(copy))
    try:
        assert (reference.reference_identity(identity) != before) == matters
    finally:
        (copy / file).write_text(text, encoding="utf-8")
