"""The pages in a real browser: quiet console, no request, sorting, filtering, themes, keyboard, accessibility.

The README's picture of the front page is remade with ``python -m reports.screenshot``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

AXE = "axe-core@4.10.3"
WIDTHS = (1280, 390)


class Loud:
    """What a page did that it should not do: console errors, exceptions, requests to anything but its file."""

    def __init__(self, page: Any) -> None:
        self.found: list[str] = []
        page.on("console", lambda m: self.found.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.found.append(str(error)))
        page.on("dialog", lambda dialog: self._dialog(dialog))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else self.found.append(r.url))

    def _dialog(self, dialog: Any) -> None:
        self.found.append(f"dialog: {dialog.message}")
        dialog.dismiss()


@pytest.fixture
def opened(browser: Any, site: Path) -> Iterator[Any]:
    """Opens a page of the site; at the end it must have been quiet."""
    loud: list[Loud] = []
    contexts: list[Any] = []

    def go(name: str = "index.html", width: int = 1280, scheme: str = "light", **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        loud.append(Loud(page))
        page.goto(f"file://{site / name}")
        return page

    yield go
    for context in contexts:
        context.close()
    assert [text for one in loud for text in one.found] == []


def names(site: Path) -> list[str]:
    return sorted(path.name for path in site.glob("*.html"))


def in_turn(opened: Any, site: Path, wanted: list[str], **options: Any) -> Iterator[tuple[str, Any]]:
    """Each page in one tab: a tab that stays open goes on drawing, which takes half of the time."""
    page = None
    for name in wanted:
        if page is None:
            page = opened(name, **options)
        else:
            page.goto(f"file://{site / name}")
        yield name, page


@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_is_quiet_and_fits_its_width(opened: Any, site: Path, width: int) -> None:
    for name, page in in_turn(opened, site, names(site), width=width):
        assert page.title().endswith("Speedclaim")
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), name
        clipped = page.evaluate(
            """() => [...document.querySelectorAll('main *')].filter(e => {
                 const box = e.getBoundingClientRect();
                 return box.width && box.right > innerWidth + 1 && !e.closest('.scroll') && !e.closest('.hide');
               }).map(e => e.outerHTML.slice(0, 120))"""
        )
        assert clipped == [], name


def first_cells(page: Any, table: str) -> list[str]:
    return page.eval_on_selector_all(f"#{table} tbody tr", "rows => rows.map(r => r.cells[0].innerText)")  # type: ignore[no-any-return]


def column(page: Any, table: str, index: int) -> list[str]:
    return page.eval_on_selector_all(  # type: ignore[no-any-return]
        f"#{table} tbody tr", f"rows => rows.map(r => r.cells[{index}].dataset.s)"
    )


def test_claims_sort_by_number_with_blanks_last(opened: Any) -> None:
    page = opened()
    heading = page.locator("#claims-table thead th", has_text="measured")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    up = column(page, "claims-table", 3)
    numbers = [float(text) for text in up if text]
    assert numbers == sorted(numbers)
    assert up[-1] == ""
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    down = column(page, "claims-table", 3)
    assert [float(text) for text in down if text] == numbers[::-1]
    assert down[-1] == ""


def test_claims_filter_by_text_and_by_verdict(opened: Any) -> None:
    page = opened()
    rows = page.locator("#claims-table tbody tr")
    page.locator("[data-filter=claims-table]").fill("number 3")
    assert rows.filter(visible=True).count() == 1
    page.locator("[data-filter=claims-table]").fill("")
    assert rows.filter(visible=True).count() == 6
    page.locator(".tile", has_text="reproduced").first.click()
    assert rows.filter(visible=True).count() == 2
    assert page.locator(".tools .found").first.inner_text() == "2 of 6 shown"
    page.locator(".tile", has_text="reproduced").first.click()
    assert rows.filter(visible=True).count() == 6


def test_what_could_not_be_tested_is_folded_by_reason_and_opens_by_its_tile(opened: Any, site: Path) -> None:
    page = opened()
    fold = page.locator("details.untested")
    assert fold.count() == 1
    assert "needs CUDA: no NVIDIA device" in fold.locator("summary").inner_text()
    assert not fold.locator("li").first.is_visible()
    page.locator(".tile", has_text="not testable here").click()
    assert fold.locator("li").first.is_visible()
    again = opened(f"claims.html#{fold.locator('li').first.get_attribute('id')}")
    assert again.locator("article:target").count() == 1


def test_the_matrix_switches_its_reading_and_sorts_by_it(opened: Any) -> None:
    page = opened()
    table = page.locator("table.matrix").first
    cell = table.locator("tbody tr", has=page.get_by_text("polar.aol-torch", exact=True)).locator("td").first
    assert "▲" in cell.inner_text()
    group = page.locator("[data-views]").first
    group.get_by_role("button", name="time", exact=True).click()
    assert "µs" in cell.inner_text()
    group.get_by_role("button", name="polar error").click()
    assert float(cell.inner_text().split()[0]) < 0.2
    table.locator("thead th").nth(1).get_by_role("button").click()
    first = table.locator("tbody tr").first.locator("th").inner_text()
    assert first == "polar.svd"


def test_tabs_keep_devices_apart_and_answer_the_keyboard(opened: Any) -> None:
    page = opened()
    panels = page.locator("[role=tabpanel]")
    assert panels.filter(visible=True).count() == 1
    page.get_by_role("tab").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("tab", name="NVIDIA H100 80GB HBM3").get_attribute("aria-selected") == "true"
    assert panels.filter(visible=True).count() == 1


def test_a_permanent_link_opens_the_tab_it_lies_in(opened: Any, site: Path) -> None:
    page = opened()
    target = page.locator("[role=tabpanel]").nth(1).locator("h3").first
    anchor = target.get_attribute("id")
    page.goto(f"file://{site / 'index.html'}#{anchor}")
    page.reload()
    assert target.is_visible()


def test_theme_follows_the_system_and_then_the_reader(opened: Any) -> None:
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    light, dark = opened(scheme="light"), opened(scheme="dark")
    white, black = light.evaluate(paper), dark.evaluate(paper)
    assert white != black
    light.get_by_role("button", name="Dark theme").click()
    assert light.evaluate(paper) == black
    light.reload()
    assert light.evaluate(paper) == black
    light.get_by_role("button", name="Light theme").click()
    assert light.evaluate(paper) == white


def test_copying_a_command_and_a_table(opened: Any) -> None:
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    page.locator("#claims-table .copy").first.click()
    page.wait_for_function("document.getElementById('said').textContent === 'copied'")
    command = "speedclaim run --suite polar --tier standard --method polar.aol-torch"
    assert page.evaluate("navigator.clipboard.readText()") == command
    page.locator("[data-markdown=claims-table]").click()
    page.wait_for_function("navigator.clipboard.readText().then(t => t.startsWith('| verdict'))")
    lines = page.evaluate("navigator.clipboard.readText()").strip().split("\n")
    assert len(lines) == 2 + 6
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert "<script>" not in "\n".join(lines)


def test_saving_figures_and_tables(opened: Any, site: Path) -> None:
    page = opened(next(name for name in names(site) if name.startswith("task--")), accept_downloads=True)
    with page.expect_download() as saved:
        page.locator("[data-save=svg]").first.click()
    text = Path(saved.value.path()).read_text(encoding="utf-8")
    assert text.startswith("<svg")
    assert "var(--" not in text
    with page.expect_download() as saved:
        page.locator("[data-save=csv]").first.click()
    assert Path(saved.value.path()).read_text(encoding="utf-8").startswith("method,problem,size")
    with page.expect_download() as saved:
        page.locator("[data-csv=cases-table]").click()
    assert len(Path(saved.value.path()).read_text(encoding="utf-8").strip().splitlines()) == 97


def test_raw_data_can_be_saved_from_the_audit_page(opened: Any) -> None:
    page = opened("audit.html", accept_downloads=True)
    with page.expect_download() as saved:
        page.get_by_role("link", name="cases.csv").click()
    assert Path(saved.value.path()).read_text(encoding="utf-8").startswith("device,task,method")


def test_without_script_everything_is_readable(opened: Any) -> None:
    page = opened(java_script_enabled=False)
    assert page.locator(".panel").filter(visible=True).count() == 2
    assert page.locator("#claims-table tbody tr").filter(visible=True).count() == 6


def test_the_menu_of_workloads_opens_within_a_phone(opened: Any) -> None:
    page = opened(width=390)
    page.locator("nav details.menu summary", has_text="Training").click()
    links = page.locator("nav details.menu ul a").filter(visible=True)
    assert links.count() == 2
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    links.first.click()
    assert page.locator("h1").inner_text().startswith("Training ")
    assert page.locator("#training-table tbody tr").count() >= 3


def test_methods_of_a_workload_sort_with_what_was_not_reached_last(opened: Any, site: Path) -> None:
    page = opened(next(name for name in names(site) if name.startswith("train--sotu")))
    page.locator("#training-table thead th", has_text="time to target").get_by_role("button").click()
    order = page.eval_on_selector_all("#training-table tbody tr", "rows => rows.map(r => r.cells[2].innerText)")
    assert order[-1].startswith("not reached")
    assert not order[0].startswith("not reached")


def test_print_shows_every_device(opened: Any) -> None:
    page = opened()
    page.emulate_media(media="print")
    assert page.locator(".panel").filter(visible=True).count() == 2
    assert page.locator("#theme").is_hidden()


def test_the_first_tab_stop_skips_to_the_content(opened: Any) -> None:
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core's script, taken from npm once into the user's cache; a test tool, never part of a page."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "speedclaim" / AXE
    script = cache / "axe.min.js"
    if not script.is_file():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("no npm on this machine to fetch axe-core with")
        with tempfile.TemporaryDirectory() as folder:
            fetched = subprocess.run(
                [npm, "pack", AXE, "--silent"], cwd=folder, capture_output=True, text=True, timeout=60, check=False
            )
            archives = list(Path(folder).glob("*.tgz"))
            if fetched.returncode or not archives:
                pytest.skip(f"npm could not fetch {AXE}: {fetched.stderr.strip()[:200]}")
            shutil.unpack_archive(archives[0], folder, filter="data")
            cache.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder) / "package" / "axe.min.js", script)
    return script.read_text(encoding="utf-8")


#: axe looks at every node: of table rows that differ in nothing but their words, two are enough.
ALIKE = """() => {
  const looks = ['class', 'style', 'role', 'hidden', 'scope'];
  const told = e => [e.tagName, !!e.textContent.trim(),
                     ...[...e.attributes].map(a => looks.includes(a.name) ? a.name + a.value : a.name)].join();
  for (const body of document.querySelectorAll('tbody')) {
    const seen = {};
    for (const row of [...body.rows]) {
      const kind = [row, ...row.querySelectorAll('*')].map(told).join(';');
      seen[kind] = (seen[kind] || 0) + 1;
      if (seen[kind] > 2) row.remove();
    }
  }
}"""


def violations(page: Any, axe: str, options: str) -> list[tuple[str, int, str]]:
    page.evaluate(ALIKE)
    page.evaluate(axe)
    found = page.evaluate(f"axe.run({{exclude: [['figure svg']]}}, {options})")["violations"]
    return [(v["id"], len(v["nodes"]), v["nodes"][0]["html"][:160]) for v in found]


def test_axe_finds_nothing(opened: Any, site: Path, axe: str) -> None:
    one_of_each = [name for name in names(site) if "nvidia" not in name]
    pages = in_turn(opened, site, one_of_each, bypass_csp=True)
    told = {name: violations(page, axe, "{}") for name, page in pages}
    assert told == {name: [] for name in one_of_each}


def test_axe_finds_enough_contrast_in_the_dark(opened: Any, axe: str) -> None:
    page = opened(scheme="dark", bypass_csp=True)
    assert violations(page, axe, "{runOnly: ['color-contrast']}") == []


def test_the_screenshot_is_small_and_of_the_asked_size(browser: Any, site: Path, tmp_path: Path) -> None:
    # In a process of its own: the browser fixture already runs Playwright's loop in this one.
    code = (
        "import pathlib, sys; from reports import screenshot;"
        "pathlib.Path(sys.argv[2]).write_bytes(screenshot.smaller(screenshot.shoot(pathlib.Path(sys.argv[1]))))"
    )
    target = tmp_path / "front.png"
    subprocess.run([sys.executable, "-c", code, str(site / "index.html"), str(target)], check=True, timeout=120)
    png = target.read_bytes()
    assert png.startswith(b"\x89PNG")
    assert (int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")) == (1280, 900)
    assert len(png) < 300_000
