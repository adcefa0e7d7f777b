"""The HTML page says what the records say, every number leads to its record, and no record's text is code."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from helpers.pages import FIGURE, HOSTILE, failed, folder, pairs, study
from helpers.records import make_metric, make_record, seeded

from q2n.records.failure import Failure
from q2n.records.provenance import Provenance
from q2n.records.store import RunRecord
from q2n.report.overview import Report, StudyReport
from q2n.report.page.answer import answer, headline
from q2n.report.page.by_bits import by_bits
from q2n.report.page.drawing import inline
from q2n.report.page.html import render, write_page
from q2n.report.page.prose import Prose
from q2n.report.studies.study import PublishedColumn, PublishedRow, PublishedValue
from q2n.report.tables.pairs import Counts
from q2n.report.tables.table import Table

ROOT = Path(__file__).resolve().parents[3]

Usual = tuple[Report, Path, "Page"]


class Page(HTMLParser):
    """Elements and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.elements if attribute in attrs]

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def cells(self) -> dict[str, Any]:
        (text,) = [text for text in self.texts if text.startswith('{"shared"')]
        found: dict[str, Any] = json.loads(text)
        return found

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Usual:
    """The report of :func:`pairs` with a failed cell, its folder, and the page."""
    place = tmp_path_factory.mktemp("usual")
    report, results = folder(place, pairs(), failed(bits=2))
    return report, results, Page(write_page(report, results).read_text())


def sortable(report: StudyReport) -> Table:
    (table,) = report.tables
    return by_bits(table, report.pairs)


def page(tmp_path: Path, records: list[RunRecord], *lost: Failure, **kwargs: Any) -> Page:
    report, results = folder(tmp_path, records, *lost, **kwargs)
    return Page(write_page(report, results).read_text())


def test_every_number_leads_to_records_that_the_page_and_the_folder_have(usual: Usual) -> None:
    report, results, found = usual
    known = {**found.cells["cells"], **found.cells["failures"]}
    linked = [attrs for attrs in found.of("a") if "data-cells" in attrs]
    for attrs in linked:
        keys = str(attrs["data-cells"]).split()
        assert keys
        assert all(key in known for key in keys)
        assert attrs["href"] == known[keys[0]]["files"][0][1]
    ids = Counter(found.values("id"))
    assert not [name for name, count in ids.items() if count > 1], "ids are unique"
    for href in found.values("href"):
        if href.startswith("#"):
            assert href[1:] in ids
        elif not href.startswith(("data:", "http", "../")):
            assert (results / unquote(href)).is_file(), href
    # no number of the tables is without its link
    table = sortable(report.studies[0])
    numbers = [item for line in table.lines for item in line.numbers[1:-1] if item.order is not None]
    assert numbers
    assert all(item.cells for item in numbers)
    assert {" ".join(item.cells + item.others) for item in numbers} <= {
        str(attrs["data-cells"]) for attrs in linked
    }


def test_a_number_has_all_its_seeds_and_a_difference_both_sides(usual: Usual) -> None:
    table = sortable(usual[0].studies[0])
    lines = {(line.row.baseline, line.bits, line.row.line): line for line in table.lines}
    _, value, change, _ = lines["gptq", 3, "on"].numbers
    assert value.cells == tuple(record.fingerprint for record in pairs()[3:6])
    assert set(change.cells + change.others) == {record.fingerprint for record in pairs()[:6]}
    assert change.verdict == "better"
    assert change.text.endswith(" %")
    assert "to" in change.detail
    alone = lines["rtn", 3, "on"]
    assert alone.numbers[2].verdict == "one seed", "which is never called significant"
    assert alone.numbers[0].text == "1"


def test_what_is_in_a_record_is_text(tmp_path: Path) -> None:
    hostile = {"model": HOSTILE, "baseline": HOSTILE, "provenance": Provenance(weights=HOSTILE)}
    records = [*seeded("off", 0.0, 2, **hostile), *seeded(HOSTILE, -0.1, 2, **hostile)]
    lost = failed(model=HOSTILE, bits=2).model_copy(update={"message": HOSTILE})
    asked = study(title=HOSTILE, question=HOSTILE, verdict=f"[x](javascript:alert(1)) {HOSTILE}")
    found = page(tmp_path, records, lost, study=asked)
    assert [attrs.get("type") for attrs in found.of("script")] == [None, "application/json"]
    assert not found.of("img")
    assert not [name for _, attrs in found.elements for name in attrs if name.startswith("on")]
    assert not [href for href in found.values("href") if href.startswith("javascript")]
    assert {cell["cell"]["model"] for cell in found.cells["cells"].values()} == {HOSTILE}
    assert found.cells["failures"][lost.ref.fingerprint]["reason"].endswith(HOSTILE)
    assert HOSTILE in found.text


def test_the_policy_allows_nothing_but_the_pages_own(usual: Usual) -> None:
    found = usual[2]
    (policy,) = [attrs["content"] for attrs in found.of("meta") if "http-equiv" in attrs]
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert not found.values("src")
    assert not found.values("style")
    assert [str(attrs["href"])[:5] for attrs in found.of("link")] == ["data:"]


def test_the_page_is_a_function_of_the_records_and_names_no_folder_of_the_machine(
    usual: Usual, tmp_path: Path
) -> None:
    report, results = folder(tmp_path, list(reversed(pairs())), failed(bits=2))
    text = render(report, results)
    assert text == (usual[1] / "index.html").read_text()
    assert str(tmp_path) not in text
    assert "/home/somebody" not in text


def test_failed_and_missing_cells_are_seen(usual: Usual) -> None:
    report, _, found = usual
    table = sortable(report.studies[0])
    states = {(line.row.baseline, line.bits, line.row.line): line.state for line in table.lines}
    assert states["gptq", 2, "on"] == "failed"
    assert states["gptq", 2, "off"] == "not run"
    assert states["gptq", 3, "on"] == "finished"
    links = [attrs for attrs in found.of("a") if attrs.get("data-cells") == failed(bits=2).ref.fingerprint]
    assert len(links) == 3, "in the table's value and seeds, and in the list of failures"
    assert {attrs["href"] for attrs in links} == {f"main/{failed(bits=2).ref.fingerprint}/failure.json"}
    assert "NumericalError: not <positive> definite" in found.text
    assert "1 failed" in found.text
    assert "not run" in found.text


def test_a_failed_seed_is_seen_beside_those_that_finished(tmp_path: Path) -> None:
    report, _ = folder(tmp_path, seeded("on", 0.1), failed(seed=7))
    table = sortable(report.studies[0])
    (line,) = [line for line in table.lines if line.numbers[0].detail]
    assert (line.state, line.numbers[0].text, line.numbers[0].detail) == ("finished", "3", "1 failed")


@pytest.mark.parametrize(
    ("counts", "begins"),
    [
        (Counts(), "Nothing to say yet"),
        (Counts(undecided=5), "Not shown: not one of 5 comparisons"),
        (Counts(undecided=1), "Not shown: not one comparison"),
        (Counts(better=3), "Yes: better in every"),
        (Counts(worse=3), "No: worse in every"),
        (
            Counts(better=1, undecided=2),
            "In places: significantly better in 1 of 3 comparisons, worse in none",
        ),
        (Counts(worse=1, undecided=2), "No: significantly worse in 1 of 3 comparisons, better in none"),
        (Counts(better=2, worse=1, undecided=4), "It depends: significantly better in 2 of 7 comparisons"),
    ],
)
def test_the_headline_follows_the_counts(counts: Counts, begins: str) -> None:
    assert headline(counts).startswith(begins)


def test_the_answer_counts_what_is_significant_and_says_what_rests_on_one_seed(usual: Usual) -> None:
    report, _, found = usual
    said = answer(report)
    assert said.counts == Counts(better=1, undecided=1, single=1)
    assert [(row[0], row[1]) for row in said.rows] == [("m", "gptq"), ("m", "rtn")]
    assert said.how_sure[0].startswith("1 of 2 rest on one seed")
    assert any("median" in sentence for sentence in said.how_much)
    assert said.headline in found.text


def test_one_seed_alone_decides_nothing(tmp_path: Path) -> None:
    report, _ = folder(tmp_path, [*seeded("off", 0.0, 1), *seeded("on", -0.5, 1)])
    said = answer(report)
    assert said.headline.startswith("Not shown")
    assert said.how_sure[0].startswith("All of them rest on one seed")
    assert {item.verdict for row in said.rows for cell in row[2] for item in cell} == {"one seed"}


def test_a_gain_between_useless_models_is_called_one(tmp_path: Path) -> None:
    def cell(correction: str, value: float) -> RunRecord:
        return make_record(correction=correction, metrics=(make_metric(value, reference=8.0),))

    report, _ = folder(tmp_path, [cell("off", 500.0), cell("on", 200.0)])
    assert any("collapsed models" in sentence for sentence in answer(report).how_much)


def test_records_without_a_study_or_a_partner_are_shown(tmp_path: Path) -> None:
    found = page(tmp_path, [make_record(name="lonely")])
    assert "Other records" in found.text
    assert "Nothing to say yet" in found.text
    assert "study-lonely" in found.values("id")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "results/main/0123456789abcdef/record.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    assert "Left out: main/0123456789abcdef/record.json: is not JSON" in page(tmp_path, [make_record()]).text


def test_published_numbers_are_beside_ours_and_nothing_is_said_where_there_are_none(
    usual: Usual, tmp_path: Path
) -> None:
    assert "Published" not in usual[2].text
    value = PublishedValue(
        study="main",
        table="Table 99 (invented)",
        row=PublishedRow(model="m", baseline="gptq", q2n="on"),
        column=PublishedColumn(bits=3, metric="perplexity", dataset="wiki"),
        value=1234.5,
        protocol={"seqlen": 2048},
    )
    text = page(tmp_path, seeded("on", 0.1), published=(value,)).text
    assert "Table 99 (invented)" in text
    assert "not comparable: seqlen is 512 here, 2048 there" in text


def test_a_drawing_is_shapes_and_text_alone(tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    path.write_text(FIGURE)
    drawn = Page(inline(path, "x", themed=True))
    tags = Counter(tag for tag, _ in drawn.elements)
    assert not {"script", "style", "metadata"} & tags.keys()
    assert set(drawn.values("id")) == {"x-0"}
    assert drawn.values("clip-path") == ["url(#x-0)"]
    assert drawn.values("href") == ["#x-0", "data:image/png;base64,AA"]
    assert drawn.values("d") == ["M.1 1l1.9 2"]
    assert drawn.values("fill") == ["var(--fig-ffffff, #ffffff)"]
    assert "onload" not in drawn.elements[0][1]
    assert drawn.text == "a<b"
    assert Page(inline(path, "y", themed=False)).values("fill") == ["#ffffff"]


def test_a_line_written_in_steps_passes_through_its_points(tmp_path: Path) -> None:
    points = [(123.456789, 0.04), (1.0, -7.96), (1.04, 88.0), (0.0, 88.0), (-0.06, 200.55)]
    told = " \n".join(f"{'L' if i else 'M'} {x:f} {y:f}" for i, (x, y) in enumerate(points))
    path = tmp_path / "figure.svg"
    path.write_text(f'<svg viewBox="0 0 1 1"><path d="{told} z M 5.0 5.0 L 6.5 5.0"/></svg>')
    (drawn,) = Page(inline(path, "x", themed=True)).values("d")
    first, second = drawn.split("z")
    assert second == "M5 5l1.5 0"
    start, steps = first[1:].split("l")
    numbers = [[float(text) for text in re.findall(r"-?[\d.]+", part)] for part in (start, steps)]
    x, y = numbers[0]
    found = [(x, y)]
    for across, down in zip(numbers[1][::2], numbers[1][1::2], strict=True):
        x, y = x + across, y + down
        found.append((x, y))
    assert found == [pytest.approx(point, abs=0.051) for point in points]


def test_prose_has_no_markup_of_its_own_and_links_as_seen_from_the_page() -> None:
    links = "[d](../../docs/statistics.md#x) [e](javascript:x) [f](https://example.org) [g](#h)"
    shown = str(Prose().html(f"A *b* <b onclick=x>c</b> {links}", "main"))
    assert "<em>b</em>" in shown
    assert "<b" not in shown
    assert re.findall(r'href="([^"]*)"', shown) == ["../docs/statistics.md#x", "https://example.org"]
    assert " g" in shown, "what leads nowhere is text"
    assert str(Prose().line("the *first*\n\nanother", "main")) == "the <em>first</em>"


def test_an_installed_package_has_the_pages_parts() -> None:
    with (ROOT / "pyproject.toml").open("rb") as stream:
        patterns = tomllib.load(stream)["tool"]["setuptools"]["package-data"]["q2n"]
    parts = [path for path in (ROOT / "q2n/report/page").iterdir() if path.suffix in (".html", ".css", ".js")]
    assert len(parts) == 5
    for part in parts:
        name = part.relative_to(ROOT / "q2n").as_posix()
        assert any(fnmatch(name, pattern) for pattern in patterns), name
