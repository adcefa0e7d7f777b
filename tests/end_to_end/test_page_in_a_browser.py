"""The HTML page in a real browser, from a file and without a network: Debian's chromium, headless."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from helpers.pages import failed, folder, pairs
from helpers.records import make_metric, make_record

from q2n.report.figures.of_study import write_figures, write_overview
from q2n.report.page.html import write_page

selenium = pytest.importorskip("selenium", reason="selenium is not installed (pip install q2n[dev])")
PROGRAMS = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
ABSENT = [name for name, path in PROGRAMS.items() if path is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(ABSENT), reason=f"not installed: {', '.join(ABSENT)} (apt: chromium chromium-driver)"
    ),
]

PHONE, DESK = (390, 844), (1280, 900)
TABLE = "#study-main table.ledger"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a page with real figures, values of several magnitudes, and a failed cell."""
    place = tmp_path_factory.mktemp("page")
    values = {"awq": 9.5, "quip": 1234.0, "pbllm": float("inf")}
    more = [
        make_record(baseline=name, correction="off", metrics=(make_metric(value),))
        for name, value in values.items()
    ]
    report, results = folder(place, [*pairs(), *more], failed(bits=2))
    studies = tuple(replace(item, figures=write_figures(item, results)) for item in report.studies)
    report = replace(report, studies=studies, overview=write_overview(report.lines, results))
    return write_page(report, results).as_uri()


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = PROGRAMS["chromium"] or ""
    sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()  # which root cannot have
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    still = "--force-prefers-reduced-motion"  # nothing moves away from where it is clicked
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", offline, still, *sandbox):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options=options, service=Service(PROGRAMS["chromedriver"]))
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture
def opened(driver: Any, page: str) -> Iterator[Any]:
    """The page newly loaded on a desk; afterwards nothing was complained of, and nothing else asked for."""
    scheme(driver, "light")
    show(driver, page, DESK)
    driver.execute_script("localStorage.clear()")
    show(driver, page, DESK)
    yield driver
    assert driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    assert driver.get_log("browser") == []


def scheme(driver: Any, name: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": name}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def show(driver: Any, page: str, size: tuple[int, int]) -> None:
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get("about:blank")
    driver.get(page)


def find(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)


def column(driver: Any, position: int) -> list[str]:
    """Texts of the visible cells of a column, as they stand in the table."""
    script = """return [...document.querySelectorAll(arguments[0] + ' tbody tr')].filter(r => !r.hidden)
        .map(r => r.cells[arguments[1]].textContent.trim().split(/\\s/)[0])"""
    found: list[str] = driver.execute_script(script, TABLE, position)
    return found


def button(driver: Any, text: str) -> tuple[Any, int]:
    """The button of the column's head that begins so, and its position."""
    heads = driver.find_elements("css selector", f"{TABLE} thead th")
    texts = [head.text for head in heads]
    (position,) = [place for place, found in enumerate(texts) if found.startswith(text)]
    return heads[position].find_element("css selector", "button"), position


def hidden(driver: Any) -> bool:
    return not driver.execute_script("return document.getElementById('record').open")


def test_it_opens_with_the_answer_in_sight(opened: Any) -> None:
    headline = find(opened, ".headline")
    assert headline.text.startswith("In places: significantly better in 1 of 2")
    assert headline.rect["y"] + headline.rect["height"] < DESK[1]
    assert len(opened.find_elements("css selector", "figure svg")) >= 2
    assert "failed" in find(opened, "#study-main .failures").text.lower()


def test_it_sorts_by_click_numerically_and_back(opened: Any) -> None:
    click, position = button(opened, "wiki perplexity")
    before = column(opened, position)
    click.click()
    values = [float(text.replace(",", "")) for text in column(opened, position) if text[0].isdigit()]
    assert values == sorted(values)
    assert values[0] < 9.6
    assert values[-1] == 1234
    assert not column(opened, position)[-1][0].isdigit(), "what has no number is last"
    assert click.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    click.click()
    assert next(text for text in column(opened, position) if text[0].isdigit()) == "1,234"
    assert not column(opened, position)[-1][0].isdigit(), "what has no number is last"
    click.click()
    assert column(opened, position) == before


def test_it_sorts_by_keyboard(opened: Any) -> None:
    click, position = button(opened, "baseline")
    opened.execute_script("arguments[0].focus()", click)
    for key in ("\ue007", " "):  # enter, space
        opened.switch_to.active_element.send_keys(key)
    names = [text for text in column(opened, position) if text]
    assert names == sorted(names, reverse=True)
    assert len(set(names)) > 2


def test_it_filters_by_model_baseline_and_words(opened: Any) -> None:
    _, position = button(opened, "baseline")
    every = column(opened, position)
    shown = find(opened, "#filters output")
    assert shown.text == f"{len(every)} lines"
    find(opened, "select[name=baseline]").send_keys("rtn")
    assert set(column(opened, position)) == {"rtn", ""}, "the reference stays in sight"
    assert shown.text == f"{len(column(opened, position))} of {len(every)} lines"
    find(opened, "#filters [type=reset]").click()
    find(opened, "#filters input").send_keys("gptq failed")
    assert column(opened, position) == ["gptq"]
    find(opened, "#filters input").send_keys(" nothing has this")
    assert column(opened, position) == []
    assert "No line passes the filter." in find(opened, "#study-main").text
    find(opened, "#filters [type=reset]").click()
    opened.execute_script("return new Promise(done => setTimeout(done, 50))")
    assert column(opened, position) == every
    find(opened, "select[name=model]").send_keys("m")
    assert column(opened, position) == every


def test_a_number_opens_its_records(opened: Any, page: str) -> None:
    link = find(opened, f"{TABLE} a.n.better")
    keys = link.get_attribute("data-cells").split()
    link.click()
    dialog = find(opened, "#record")
    for expected in (
        "m, gptq, 3 bit, q2n=on, seed 0",
        keys[0],
        f"main/{keys[0]}/record.json",
        "commit",
        "protocol",
    ):
        assert expected in dialog.text
    picks = dialog.find_elements("css selector", ".picks button")
    assert [item.text for item in picks] == [f"{q}, seed {s}" for q in ("on", "off") for s in range(3)]
    picks[4].click()
    assert "q2n=off, seed 1" in dialog.text
    assert keys[4] in dialog.text
    opened.switch_to.active_element.send_keys("\ue00c")  # escape
    assert hidden(opened)
    assert opened.switch_to.active_element == link, "one goes on where one was"
    find(opened, f"{TABLE} tr.failed a.n").click()
    assert "NumericalError: not <positive> definite" in find(opened, "#record").text
    find(opened, "#record .close").click()
    assert hidden(opened)
    show(opened, f"{page}#record={keys[0]}", DESK)
    assert keys[0] in find(opened, "#record").text, "a record has an address"


def test_light_and_dark_follow_the_system_and_the_button(opened: Any, page: str) -> None:
    def ground() -> str:
        return str(opened.execute_script("return getComputedStyle(document.body).backgroundColor"))

    light = ground()
    scheme(opened, "dark")
    dark = ground()
    assert dark != light
    find(opened, "#theme").click()
    assert ground() == light
    show(opened, page, DESK)
    assert ground() == light, "the choice is kept"
    find(opened, "#theme").click()
    assert ground() == dark


@pytest.mark.parametrize("name", ["light", "dark"])
def test_letters_can_be_told_from_their_ground(opened: Any, name: str) -> None:
    scheme(opened, name)
    script = """
        const probe = document.body.appendChild(document.createElement('i'));
        const colour = (name) => { probe.style.color = `var(${name})`;
            return getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number) };
        const linear = (v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
        const light = (rgb) => rgb.map(v => linear(v / 255))
            .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
        const found = {};
        for (const text of ['--ink', '--muted', '--better', '--worse', '--alarm'])
            for (const ground of ['--paper', '--card']) {
                const [a, b] = [light(colour(text)), light(colour(ground))].sort((x, y) => y - x);
                found[`${text} on ${ground}`] = (a + .05) / (b + .05);
            }
        probe.remove();
        return found;"""
    ratios = opened.execute_script(script)
    assert len(ratios) == 10
    assert min(ratios.values()) >= 4.5, ratios


def test_on_a_phone_only_tables_and_figures_scroll_sideways(opened: Any, page: str) -> None:
    show(opened, page, PHONE)
    opened.execute_script("document.querySelectorAll('details').forEach(item => item.open = true)")
    assert opened.execute_script("return innerWidth") == PHONE[0]
    assert opened.execute_script("return document.documentElement.scrollWidth") <= PHONE[0]
    opened.execute_script("scrollTo(500, 0)")
    assert opened.execute_script("return scrollX") == 0
    opened.execute_script("arguments[0].click()", find(opened, f"{TABLE} a.n.better"))
    assert find(opened, "#record").rect["width"] <= PHONE[0]
    assert opened.execute_script("return document.querySelector('#record .body').scrollWidth") <= PHONE[0]
