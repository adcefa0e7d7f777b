"""What is committed below results/ beside the records is what the report makes of them, and nothing else."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from q2n.report.__main__ import main
from q2n.report.overview import gather
from q2n.report.render.files import FOLDER as TABLES
from q2n.report.render.files import write_tables
from q2n.report.studies.study import load_experiments

ROOT = Path(__file__).resolve().parents[3]
RESULTS, EXPERIMENTS = ROOT / "results", ROOT / "experiments"
MADE = ("tables", "figures", "index.html")
DRAWN = (".svg", ".html")
"""Files with coordinates: their last digits are another processor's arithmetic, not another result."""
MADE_BY = re.compile(r'<p id="of-today">.*?</p>')
DECIMAL = re.compile(r"-?\d+\.\d+")


def made(folder: Path) -> dict[str, Path]:
    """Everything below a results folder that is no record, by relative path."""
    files = [
        path
        for part in MADE
        for path in ((folder / part).rglob("*") if part != "index.html" else [folder / part])
    ]
    return {path.relative_to(folder).as_posix(): path for path in files if path.is_file()}


def differing(expected: dict[str, Path], committed: dict[str, Path]) -> list[str]:
    """Complaints, a line a file."""
    found = [f"missing: {name}" for name in sorted(expected.keys() - committed.keys())]
    found += [f"superfluous: {name}" for name in sorted(committed.keys() - expected.keys())]
    for name in sorted(expected.keys() & committed.keys()):
        if not _same(expected[name], committed[name]):
            found.append(f"not what the records say: {name}")
    return found


def _same(one: Path, other: Path) -> bool:
    """Equal bytes; of a drawing equal text around decimals that agree to a thousandth of a pixel or 1e-6.

    What the page says of the code that made it is left out: any later change of the code makes it another."""
    if one.read_bytes() == other.read_bytes():
        return True
    if one.suffix not in DRAWN:
        return False
    ours, theirs = (MADE_BY.sub("", path.read_text(encoding="utf-8")) for path in (one, other))
    pairs = zip(DECIMAL.findall(ours), DECIMAL.findall(theirs), strict=False)
    return DECIMAL.sub("0.0", ours) == DECIMAL.sub("0.0", theirs) and all(
        math.isclose(float(a), float(b), rel_tol=1e-6, abs_tol=1e-3) for a, b in pairs
    )


@pytest.fixture
def records_only(tmp_path: Path) -> Path:
    """A results folder with the committed records (and failures) and nothing made of them."""
    if not any(RESULTS.glob("*/*/record.json")):
        pytest.skip("no records are committed below results/")
    for folder in sorted(RESULTS.iterdir()):
        if folder.is_dir() and folder.name not in MADE:
            (tmp_path / folder.name).symlink_to(folder, target_is_directory=True)
    return tmp_path


def test_the_committed_tables_are_made_of_the_committed_records(records_only: Path) -> None:
    for study in gather(records_only, load_experiments(EXPERIMENTS)).studies:
        write_tables(study, records_only)
    committed = {name: path for name, path in made(RESULTS).items() if name.startswith(f"{TABLES}/")}
    assert differing(made(records_only), committed) == [], "make tables"


@pytest.mark.slow
def test_every_committed_file_is_made_of_the_committed_records(records_only: Path) -> None:
    assert main(["--results", str(records_only), "--experiments", str(EXPERIMENTS)]) == 0
    assert differing(made(records_only), made(RESULTS)) == [], "make tables"


def test_committed_results_stay_small() -> None:
    """Limits a reader of the repository has been promised; one record's largest part is what was measured of
    its null spaces, so of both files together the mean counts."""
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix == ".png"]
    assert sum(path.stat().st_size for path in files) <= 14e6
    records = list(RESULTS.glob("*/*/record.json"))
    assert all(path.stat().st_size <= 10_000 for path in records)
    values = [path.with_name("layers.parquet") for path in records]
    assert sum(path.stat().st_size for path in (*records, *values)) <= 15_000 * len(records)


def test_of_a_drawing_the_last_digits_may_depart(tmp_path: Path) -> None:
    today = '<p id="of-today">{} of the 9 records shown are of the code that made this page.</p>'
    for place, count in enumerate((0, 3)):
        (tmp_path / f"{place}.html").write_text(f"M 1.5{today.format(count)}")
    assert _same(tmp_path / "0.html", tmp_path / "1.html")
    texts = ("M 1.0000001 2.5", "M 1.0000002 2.5", "M 1.0 2.6", "L 1.0 2.5")
    paths = [tmp_path / f"{place}.svg" for place in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_text(text)
    assert [_same(paths[0], path) for path in paths] == [True, True, False, False]


def test_a_file_that_departs_is_missing_or_is_too_many_is_noticed(tmp_path: Path) -> None:
    for side, files in (
        ("a", {"x.md": "1", "y.md": "1", "p.svg": "1.0"}),
        ("b", {"x.md": "2", "z.md": "1", "p.svg": "1.0"}),
    ):
        (tmp_path / side / "tables").mkdir(parents=True)
        for name, text in files.items():
            (tmp_path / side / "tables" / name).write_text(text)
    (tmp_path / "b" / "index.html").write_text("")
    assert differing(made(tmp_path / "a"), made(tmp_path / "b")) == [
        "missing: tables/y.md",
        "superfluous: index.html",
        "superfluous: tables/z.md",
        "not what the records say: tables/x.md",
    ]
