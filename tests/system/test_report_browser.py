"""The report page in a real browser: nothing loaded, nothing overflowing, tables sorted by mouse and by keyboard."""

import itertools
from pathlib import Path

import pytest
from chromium import CHROMIUM

from quad_tasks.storage.store import open_store

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

OVERFLOWING = """() => {
  const width = document.documentElement.clientWidth;
  const contained = ["auto", "scroll", "hidden"];
  const scrolls = e => e && (contained.includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
  return [...document.querySelectorAll("body *")]
    .filter(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e.parentElement))
    .map(e => e.tagName + "." + e.className);
}"""


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser, small_run):
    """Open the report at a width and in a colour scheme; gather what the browser complains of and asks for."""
    path = Path(open_store(small_run.workspace).local_path(f"runs/{small_run.run}/report/index.html"))
    contexts, complaints, requests = [], [], []

    def open_at(width=1440, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        return page, complaints, [url for url in requests if not url.startswith(("file:", "data:"))]

    yield open_at
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1440])
def test_nothing_overflows_is_loaded_or_complained_of(open_page, width, scheme):
    page, complaints, requests = open_page(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate(OVERFLOWING) == []
    assert complaints == []
    assert requests == []


def test_a_table_is_sorted_by_mouse_and_by_keyboard(open_page):
    page, _, _ = open_page()
    table = page.locator("#domain-table table, table#domain-table").first
    button = table.locator("thead th button").nth(1)
    cells = table.locator("tbody tr td:nth-child(2)")

    def values():
        return [float(value) for value in cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")]

    button.click()
    assert values() == sorted(values(), reverse=True)
    assert table.locator("thead th").nth(1).get_attribute("aria-sort") == "descending"
    button.focus()
    page.keyboard.press("Enter")
    assert values() == sorted(values())
    assert table.locator("thead th").nth(1).get_attribute("aria-sort") == "ascending"


def test_every_section_can_be_linked_to_and_reached(open_page):
    page, _, _ = open_page()
    links = page.locator("nav a").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert len(links) >= 10
    assert all(page.locator(f"[id='{link[1:]}']").count() == 1 for link in links)
    levels = page.locator("h1, h2, h3, h4").evaluate_all("all => all.map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    unnamed = page.locator("svg").evaluate_all(
        "all => all.filter(s => !s.getAttribute('aria-label') && !s.getAttribute('aria-labelledby')"
        " && s.getAttribute('aria-hidden') !== 'true' && !s.closest('[role=img]')).length"
    )
    assert unnamed == 0
