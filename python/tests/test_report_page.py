"""The pages in a browser, from disk: no requests, everything visible, no overflow, accessible."""

import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from sdtune.report.comparison import write_comparison
from sdtune.report.page import write_report
from tests.conftest import PATIENCE
from tests.report_fake import HOSTILE, write_run

# no requests of the browser itself, such as for updates, and no sandbox, which root in a container cannot set up
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
WIDTHS = (390, 1280)


@pytest.fixture(scope="module")
def browser():
    """The distribution's Chromium; the Makefile installs it."""
    chromium = shutil.which("chromium")
    assert chromium, "chromium is missing; make pytest installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(QUIET), timeout=1000 * PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report with many hosts and long, hostile names, and a comparison of seven runs."""
    folder = tmp_path_factory.mktemp("runs")
    name = "a-run-with-a-name-that-goes-on-and-on-and-on-without-any-place-to-break-it"
    report = write_report(
        write_run(folder / "r", name=name, hosts=4, ranks_per_host=4, slow=5, cpu="X" * 90, tcmalloc=False)
    )
    runs = [write_run(folder / f"s{i}", name=f"rate-{i}{HOSTILE if i == 3 else ''}") for i in range(7)]
    return {"report": report, "comparison": write_comparison(runs)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", ["report", "comparison"])
def test_page(browser, pages, which, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    requests, complaints = [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(pages[which].as_uri())

    assert [url for url in requests if not url.startswith("data:image/webp;base64,")] == [pages[which].as_uri()]
    assert complaints == []

    empty = "images => images.filter(i => !i.complete || !i.naturalWidth || i.clientWidth < 40).length"
    images = page.locator("img")
    assert images.count() > 0
    assert images.evaluate_all(empty) == 0

    charts = page.locator("figure.chart svg:visible")
    assert charts.count() == (3 if which == "report" else 2)
    for chart in charts.all():
        box = chart.bounding_box()
        assert box["width"] > 0.7 * min(width, 1000)
        assert box["height"] > 100
        assert chart.locator("path").count() > 5
        sizes = chart.locator("text").evaluate_all("texts => texts.map(t => t.getBoundingClientRect().height)")
        assert min(sizes) >= 9, "text too small to read"
        # no text leaves the chart's card
        beyond = "(texts, width) => texts.filter(t => t.getBoundingClientRect().right > width).map(t => t.textContent)"
        assert chart.locator("text").evaluate_all(beyond, width) == []

    assert page.evaluate("document.documentElement.scrollWidth") == width, "the page scrolls horizontally"
    for details in page.locator("details").all():
        details.evaluate("d => d.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == width, "an open table scrolls the page horizontally"

    found = Axe().run(page)
    assert [
        (v["id"], v["nodes"][0]["html"], v["nodes"][0]["failureSummary"]) for v in found.response["violations"]
    ] == []
    context.close()


def test_text_in_charts_has_contrast(browser, pages):
    """Axe does not check SVG, so this measures the contrast of all text to the card behind it."""
    for scheme in ("light", "dark"):
        page = browser.new_page(color_scheme=scheme)
        page.goto(pages["report"].as_uri())
        ratios = page.locator("figure.chart svg:visible text").evaluate_all(
            """texts => texts.map(t => {
                const light = c => {
                    const [r, g, b] = c.match(/[\\d.]+/g).map(x => x / 255)
                        .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
                    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
                };
                const [a, b] = [getComputedStyle(t).fill, getComputedStyle(t.closest('.card')).backgroundColor]
                    .map(light).sort((x, y) => y - x);
                return (a + 0.05) / (b + 0.05);
            })"""
        )
        assert len(ratios) > 20
        assert min(ratios) >= 4.5
        page.close()
