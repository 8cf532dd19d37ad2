"""The site of the committed tables, in Chromium and as files.

Screenshots are kept in ``results/logs/site/``.
"""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "results" / "logs" / "site"
TABLE = "advae/table_1"
LIGHT_BYTES = 15e6
PHONE, DESKTOP = (390, 844), (1280, 900)
BINARY, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BINARY and DRIVER),
    reason="no chromium and chromedriver: apt-get install chromium chromium-driver",
)


class Browser:
    """Headless Chromium."""

    def __init__(self, site: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = BINARY or ""
        for argument in (
            *("--headless=new", "--disable-gpu", "--disable-dev-shm-usage"),
            "--no-sandbox",  # refused to root, which CI is; the pages are the suite's own
            "--host-resolver-rules=MAP * ~NOTFOUND",  # a request to a host is an error
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.site = site
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))

    def open(self, page: str, size: tuple[int, int] = DESKTOP, dark: bool = False) -> None:
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get((self.site / f"{page}.html").as_uri())
        ready = "return document.documentElement.dataset.ready"
        WebDriverWait(self.driver, 20, 0.02).until(lambda d: d.execute_script(ready) == "yes")

    def errors(self) -> list[str]:
        log = self.driver.get_log("browser")
        return [entry["message"] for entry in log if entry["level"] in ("SEVERE", "WARNING")]

    def shot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        assert self.driver.save_screenshot(str(SHOTS / f"{name}.png"))

    def all(self, selector: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def script(self, code: str) -> Any:
        return self.driver.execute_script(code)

    def sorts(self, orders: str) -> bool:
        """Whether what a script lists is soon in ascending order; a click is handled later."""

        def ascending(driver: webdriver.Chrome) -> bool:
            listed = driver.execute_script(orders)
            return listed == sorted(listed)

        try:
            WebDriverWait(self.driver, 20, 0.02).until(ascending)
        except TimeoutException:
            return False
        return True


@pytest.fixture(scope="module")
def browser(site: Path) -> Iterator[Browser]:
    made = Browser(site)
    yield made
    made.driver.quit()


def test_the_files_are_light_and_complete(
    site: Path, problems: Callable[[Path], list[str]]
) -> None:
    assert problems(site) == []
    files = [path for path in site.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".html" for path in files) > 50
    assert sum(path.stat().st_size for path in files) < LIGHT_BYTES


@needs_browser
def test_every_page_opens_without_an_error_and_fits_a_phone(browser: Browser, site: Path) -> None:
    wide = []
    for path in sorted(site.rglob("*.html")):
        page = str(path.relative_to(site)).removesuffix(".html")
        browser.open(page, PHONE)
        assert browser.errors() == [], page
        if browser.script("return document.scrollingElement.scrollWidth - innerWidth") > 1:
            wide.append(page)
    assert wide == []


@needs_browser
def test_sorting_by_a_reproduced_number(browser: Browser) -> None:
    browser.open(TABLE)
    orders = (
        "return [...document.querySelector('table.grid').tBodies[0].rows]"
        ".map(row => Number(row.cells[1].dataset.order))"
    )
    before = browser.script(orders)
    browser.one("table.grid thead th:nth-child(2)").click()
    assert before != sorted(before)
    assert browser.sorts(orders) and browser.script(orders) == sorted(before)


@needs_browser
def test_the_ranking_is_sorted_and_filtered(browser: Browser) -> None:
    """By gain, where the column shows an interval too, and by the name of a purifier."""
    browser.open("ranking")
    orders = (
        "return [...document.querySelector('table.ranks').tBodies[0].rows]"
        ".map(row => Number(row.cells[4].dataset.order))"
    )
    before = browser.script(orders)
    browser.one("table.ranks thead th:nth-child(5)").click()
    assert before != sorted(before)
    assert browser.sorts(orders) and browser.script(orders) == sorted(before)
    browser.one(".dt-search input").send_keys("DiffPure")
    rows = [row.text for row in browser.all("table.ranks tbody tr")]
    assert rows and all("DiffPure" in row for row in rows)


@needs_browser
def test_filtering_rows_by_text_and_by_verdict(browser: Browser) -> None:
    browser.open("tables")
    everything = len(browser.all("table.sortable tbody tr"))
    browser.one(".dt-search input").send_keys("AdvAE")
    rows = [row.text for row in browser.all("table.sortable tbody tr")]
    assert 0 < len(rows) < everything and all("AdvAE" in row for row in rows)

    browser.open(TABLE)
    chip = browser.one(".chip[data-verdict=differs]")
    section = "document.querySelector('.chip[data-verdict=differs]').closest('section')"
    bodies = f"{section}.querySelectorAll('table.grid tbody tr')"
    several = browser.script(f"return {bodies}.length")
    chip.click()
    shown = browser.script(f"return [...{bodies}].map(r => !!r.querySelector('td.v-differs'))")
    assert 0 < len(shown) < several and all(shown)
    assert browser.script(f"return {section}.querySelectorAll('td.v-match:not(.off)').length") == 0
    browser.shot("verdict")
    chip.click()
    assert browser.script(f"return {bodies}.length") == several


@needs_browser
def test_the_details_of_a_cell_are_those_of_the_csv(browser: Browser) -> None:
    with (ROOT / "results/tables/paper" / f"{TABLE}.csv").open(encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    browser.open(TABLE)
    browser.one("button[data-cell='0']").click()
    text = browser.one("dialog[open]").text
    for value in ("published", "reproduced", "ci_low", "ci_high", "n_correct", "n", "seeds"):
        assert row[value] and row[value] in text, value
    assert row["verdict"] in text and "commit" in text
    assert "make table T=advae/1 SCALE=paper" in text
    browser.shot("details")
    browser.one("dialog button").click()
    assert browser.all("dialog[open]") == []


@needs_browser
def test_the_ranking_has_details_on_a_phone(browser: Browser) -> None:
    with (ROOT / "results/tables/smoke/field/ranks.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if row["warnings"]]
    browser.open("ranking", PHONE)
    for place in ("th", "td"):
        mark = browser.one("table.ranks th [data-cell]")
        index = mark.get_attribute("data-cell")
        browser.script(f"document.querySelector('{place} [data-cell=\"{index}\"]').click()")
        text = browser.one("dialog[open]").text
        for name in ("defence", "audit", "gain_low", "images", "seeds", "warnings"):
            assert rows[0][name] in text, name
        assert "make field SCALE=smoke" in text and "commit" in text
        browser.shot("ranking_details")
        browser.one("dialog button").click()


@needs_browser
def test_dark_mode_follows_the_system_and_the_switch(browser: Browser) -> None:
    def brightness() -> float:
        color = browser.script("return getComputedStyle(document.body).backgroundColor")
        return sum(map(float, color.strip("rgba()").split(",")[:3])) / 3

    browser.open("index")
    assert brightness() > 200
    browser.open("index", dark=True)
    assert brightness() < 60
    switched = set()
    for _ in range(3):  # the switch has three positions: light, dark, as the system
        browser.one(".content-icon-container button.theme-toggle").click()
        switched.add(brightness() < 60)
    assert switched == {True, False}
    browser.script("localStorage.clear()")


@needs_browser
def test_header_and_first_column_stay_while_a_table_scrolls(browser: Browser) -> None:
    browser.open("aid/table_3", PHONE)
    browser.script("document.querySelector('.frame').scrollIntoView({behavior: 'instant'})")
    place = (
        "const f = document.querySelector('.dt-layout-table'), t = f.querySelector('table');"
        "const at = e => [e.getBoundingClientRect().x, e.getBoundingClientRect().y];"
        "return [at(t.tHead.rows[0].cells[2])[1], at(t.tBodies[0].rows[3].cells[0])[0], "
        "f.scrollTop, f.scrollLeft]"
    )
    top, left, *start = browser.script(place)
    browser.script("document.querySelector('.dt-layout-table').scrollBy(150, 200)")
    new_top, new_left, *end = browser.script(place)
    assert start == [0, 0] and end == [200, 150]
    assert (new_top, new_left) == pytest.approx((top, left), abs=1.5)


@needs_browser
@pytest.mark.parametrize(
    "page", ["index", "ranking", "tables", TABLE, "claims", "audits", "figures"]
)
def test_screenshots(browser: Browser, page: str) -> None:
    looks = {"desktop": (DESKTOP, False), "dark": (DESKTOP, True), "phone": (PHONE, False)}
    for look, (size, dark) in looks.items():
        browser.open(page, size, dark)
        browser.shot(f"{page.replace('/', '_')}_{look}")
    assert browser.errors() == []
