"""The reports in a browser: they draw, sort, answer to the keyboard, fit a phone, print, and ask no network."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe

from wshare.files.sealed import read_json

PHONE = {"width": 375, "height": 720}
# A4 upright without its margins, in CSS pixels.
PAPER = {"width": 718, "height": 1047}
SEARCHES = ["greedy", "milp", "rate_distortion", "slope", "two_step", "uniform"]
PAGES = ("made_up/report/index.html", "report/index.html")
# Charts of the search that is shown, or of the whole page, that are not drawn as they should be.
BROKEN = """() => [...document.querySelectorAll(".chart")].filter(place => !place.closest("[hidden]")).filter(place => {
  const drawn = place.querySelector("svg"), box = drawn?.getBoundingClientRect();
  const marks = drawn?.querySelectorAll(".mark-symbol path, .mark-rect path, .mark-rule line").length;
  return !box || box.width < 100 || box.height < 60 || !marks || box.right > innerWidth + 1;
}).map(place => place.dataset.chart)"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def choose(page, search: str) -> None:
    """Show the details of a search and wait until its charts are drawn."""
    page.select_option("#search", search)
    page.wait_for_selector(f'html[data-ready="{search}"]', state="attached")


def column(page, table: str, number: int) -> list[str]:
    """Values of a table's column, from the top."""
    return page.eval_on_selector_all(
        f'[id="{table}"] tbody tr', f"rows => rows.map(row => row.cells[{number}].dataset.value)"
    )


@pytest.mark.parametrize("name", PAGES)
def test_page_draws_without_an_error_or_the_network(visit, reports, name):
    page = visit.open(reports / name)
    assert page.evaluate(BROKEN) == []
    assert page.locator(".chart svg").count() > 0
    assert visit.said == []
    others = [url for url in visit.asked if not url.startswith("data:")]
    assert others == [(reports / name).as_uri()]


@pytest.mark.parametrize("search", SEARCHES)
def test_every_search_can_be_shown(visit, reports, search):
    page = visit.open(reports / PAGES[0])
    choose(page, search)
    assert page.locator("article:visible").count() == 1
    assert page.locator("article:visible").get_attribute("data-search") == search
    assert page.evaluate(BROKEN) == []
    assert page.locator(f'.card[data-search="{search}"]').get_attribute("data-shown") is not None
    assert visit.said == []


def test_a_card_leads_to_its_details(visit, reports):
    page = visit.open(reports / PAGES[0])
    page.locator('.card[data-search="milp"] button').click()
    page.wait_for_selector('html[data-ready="milp"]', state="attached")
    assert page.locator("article:visible").get_attribute("data-search") == "milp"


def test_table_sorts_by_click(visit, reports):
    page = visit.open(reports / PAGES[0])
    choose(page, "slope")
    table = "layers-slope"
    head = page.locator(f"#{table} th").nth(6)
    assert head.get_attribute("aria-sort") == "none"
    for order, reverse in (("ascending", False), ("descending", True)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        values = [int(value) for value in column(page, table, 6)]
        assert values == sorted(values, reverse=reverse)
    # Another column takes over.
    page.locator(f"#{table} th button").nth(0).click()
    assert head.get_attribute("aria-sort") == "none"
    assert column(page, table, 0) == sorted(column(page, table, 0))


def test_table_sorts_by_keyboard_alone(visit, reports):
    page = visit.open(reports / PAGES[1])
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "packed file":
            break
    focus = "getComputedStyle(document.activeElement)"
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"
    assert page.evaluate(f"{focus}.outlineStyle") == "solid"
    assert float(page.evaluate(f"{focus}.outlineWidth").removesuffix("px")) >= 2
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"
    values = [int(value) for value in column(page, "results", 8)]
    assert values == sorted(values)
    page.keyboard.press("Space")
    assert [int(value) for value in column(page, "results", 8)] == sorted(values, reverse=True)


def test_pointing_at_a_combination_shows_its_recipe(visit, reports):
    page = visit.open(reports / PAGES[0])
    choose(page, "slope")
    chart = page.locator('.chart[data-chart="slope/front"]')
    chart.scroll_into_view_if_needed()
    # The chosen combination is drawn last.
    chart.locator(".mark-symbol.role-mark path").last.hover()
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    text = tip.inner_text()
    assert "chosen (analytic, search images)" in text
    assert "16, 8, 4" in text
    assert "share of float32" in text


@pytest.mark.parametrize(("name", "table", "button"), [(PAGES[0], "layers-slope", "slope"), (PAGES[1], "results", "")])
def test_table_can_be_saved(visit, reports, tmp_path, name, table, button):
    page = visit.open(reports / name)
    if button:
        choose(page, button)
    with page.expect_download() as download:
        page.locator(f'button[data-csv="{table}"]').click()
    path = tmp_path / "table.csv"
    download.value.save_as(path)
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + page.locator(f'[id="{table}"] tbody tr').count()
    assert rows[0] == page.locator(f'[id="{table}"] th').all_inner_texts()
    assert [row[0] for row in rows[1:]] == column(page, table, 0)
    assert [row[6] for row in rows[1:]] == column(page, table, 6)


def test_configuration_can_be_saved(visit, reports, tmp_path):
    page = visit.open(reports / PAGES[0])
    with page.expect_download() as download:
        page.locator("article:visible button[data-text]").click()
    assert download.value.suggested_filename == "made_up.yaml"
    path = tmp_path / "config.yaml"
    download.value.save_as(path)
    assert yaml.safe_load(path.read_text()) == {"models": {"made_up": {}}}


@pytest.mark.parametrize("name", PAGES)
def test_phone_needs_no_sideways_scrolling(visit, reports, name):
    visit.page.set_viewport_size(PHONE)
    page = visit.open(reports / name)
    assert page.evaluate(OVERFLOW) == 0
    assert page.evaluate(BROKEN) == []
    for search in SEARCHES if page.locator("#search").count() else ():
        choose(page, search)
        assert page.evaluate(OVERFLOW) == 0, search
        assert page.evaluate(BROKEN) == [], search
    # What is wider than the screen scrolls in a box of its own.
    assert page.evaluate("[...document.querySelectorAll('table')].every(table => table.closest('.scroll'))")


@pytest.mark.parametrize("name", PAGES)
def test_print_shows_results_and_no_controls(visit, reports, name):
    page = visit.open(reports / name)
    page.emulate_media(media="print")
    assert page.locator("h1").is_visible()
    assert page.locator(".chart svg").first.is_visible()
    hidden = page.locator("button:not(th button), .picker, .skip")
    assert all(not hidden.nth(i).is_visible() for i in range(hidden.count()))
    # Tables are not cut off, and fit the paper.
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].every(box => getComputedStyle(box).overflowX === 'visible')"
    )
    page.set_viewport_size(PAPER)
    assert page.evaluate(OVERFLOW) == 0


@pytest.mark.parametrize("name", PAGES)
def test_no_rule_of_accessibility_is_broken(visit, reports, name):
    page = visit.open(reports / name)
    found = Axe().run(page).response
    assert len(found["passes"]) > 30
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]] == []


def test_text_can_be_told_from_its_ground(visit, reports):
    page = visit.open(reports / PAGES[0])
    ratios = page.evaluate(
        """() => {
          const light = color => {
            const part = value => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
            const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(part);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const ground = node => {
            for (; node; node = node.parentElement) {
              const color = getComputedStyle(node).backgroundColor;
              if (!/^rgba.*, 0\\)$/.test(color)) return color;
            }
            return "rgb(255, 255, 255)";
          };
          const texts = "h1,h2,h3,p,dt,dd,td,th,li,figcaption,button,.verdict,small";
          return [...document.querySelectorAll(texts)].map(node => {
            const pair = [light(getComputedStyle(node).color), light(ground(node))].sort((x, y) => y - x);
            return [node.tagName + "." + node.className, (pair[0] + 0.05) / (pair[1] + 0.05)];
          });
        }"""
    )
    assert len(ratios) > 100
    # WCAG 2.1, success criterion 1.4.3.
    assert [entry for entry in ratios if entry[1] < 4.5] == []


def test_data_of_the_page_are_those_of_the_files(visit, reports):
    page = visit.open(reports / PAGES[0])
    data = json.loads(page.locator("#data").text_content())
    for search in SEARCHES:
        path: Path = reports / "made_up" / "search" / search / "metrics.json"
        assert data["metrics"][search] == read_json(path)
