#!/usr/bin/env python3
"""Uses the report of a study as a person would, in headless Chromium: sorts by click and by key, filters samples, saves charts, looks
at it on a narrow screen. Fails on a console message, a request that leaves the file, a picture of nothing, or a page wider than
its screen.

usage: use_report.py RESULTS_FOLDER [SCREENSHOT_FOLDER]
"""

import base64
import json
import os
import shutil
import sys
from pathlib import Path

import altair
from playwright.sync_api import sync_playwright


def numbers(texts):
    """The first number of each text; none where there is none."""
    import re

    found = [re.search(r"-?\d+(\.\d+)?(e[+-]?\d+)?", text.replace("\u2212", "-")) for text in texts]
    return [float(one.group()) if one else None for one in found]


def column(table, place):
    return [row.locator("> th, > td").nth(place).inner_text() for row in table.locator("tbody tr").all()]


def check_sorting(page):
    # The first table that has a column of numbers and more than two rows.
    for table in page.locator("main table").all():
        heads = table.locator("thead th")
        places = [place for place in range(heads.count()) if "number" in (heads.nth(place).get_attribute("class") or "")]
        if table.locator("tbody tr").count() > 2 and places and table.locator("thead button").count():
            break
    else:
        raise AssertionError("no table can be sorted")
    place = places[0]
    button = heads.nth(place).locator("button")
    button.click()
    down = [value for value in numbers(column(table, place)) if value is not None]
    assert down == sorted(down, reverse=True), down
    assert heads.nth(place).get_attribute("aria-sort") == "descending"
    button.focus()
    page.keyboard.press("Enter")
    up = [value for value in numbers(column(table, place)) if value is not None]
    assert up == sorted(up), up
    assert heads.nth(place).get_attribute("aria-sort") == "ascending"
    heads.nth(0).locator("button").press("Space")
    words = column(table, 0)
    assert heads.nth(place).get_attribute("aria-sort") is None
    assert words[0] <= words[-1], words
    return table.locator("caption").inner_text()


def check_filter(page):
    forms = page.locator("form.filter")
    assert forms.count() > 0, "no samples can be browsed"
    form = forms.first
    assert form.is_visible()
    rows = page.locator(f"#{form.get_attribute('data-of')} tbody tr")
    every = rows.count()
    shown = lambda: [row for row in rows.all() if row.is_visible()]
    assert form.locator("output").inner_text() == f"{every} of {every}"
    kinds = form.locator("select[name=kind] option")
    kind = kinds.nth(1).get_attribute("value")
    form.locator("select[name=kind]").select_option(kind)
    some = shown()
    assert 0 < len(some) < every or kinds.count() == 2, len(some)
    assert all(row.get_attribute("data-kind") == kind for row in some)
    form.locator("select[name=kind]").select_option("")
    form.locator("select[name=state]").select_option("right")
    assert all(row.get_attribute("data-state") == "right" for row in shown())
    form.locator("select[name=state]").select_option("")
    # By keyboard alone.
    name = rows.first.locator("th").inner_text()
    form.locator("input[name=text]").focus()
    page.keyboard.type(name)
    assert len(shown()) >= 1 and all(name in row.inner_text() for row in shown())
    return every


def check_charts(page):
    """Every chart can be saved as Vega-Lite, and is valid there."""
    charts = page.locator("a.chart-data").all()
    assert len(charts) >= page.locator("figure.chart").count() > 0
    for link in charts:
        assert link.get_attribute("download").endswith(".vl.json")
        chart = json.loads(base64.b64decode(link.get_attribute("href").split("base64,")[1]))
        assert chart["data"]["values"], chart["title"]
        altair.Chart.from_dict(chart, validate=True)
    return len(charts)


def check_folded(page):
    """What is folded is open on paper, and only there."""
    closed = "document.querySelectorAll('details:not([open])').length"
    before = page.evaluate(closed)
    assert before > 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(closed) == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(closed) == before


def main():
    folder = Path(sys.argv[1])
    report = sorted(path for path in folder.rglob("index.html") if "report" in str(path))[0].resolve()
    address = f"file://{report}"
    messages, requests = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        table = check_sorting(page)
        samples = check_filter(page)
        charts = check_charts(page)
        check_folded(page)
        broken = page.evaluate("Promise.all(Array.from(document.images, (image) => { image.loading = 'eager'; return image.decode().then(() => 0, () => 1) })).then((all) => all.reduce((a, b) => a + b, 0))")
        assert broken == 0, f"{broken} pictures cannot be decoded"
        pictures = page.evaluate("document.images.length")
        if len(sys.argv) > 2:
            os.makedirs(sys.argv[2], exist_ok=True)
            page.reload()
            for section in page.locator("main > section").all():
                section.screenshot(path=os.path.join(sys.argv[2], f"{section.get_attribute('id')}.png"))
        for width, scheme in ((360, "light"), (1200, "dark")):
            narrow = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
            narrow.on("console", lambda message: messages.append(message.text))
            narrow.goto(address)
            wide = narrow.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"the page is {wide} pixels wide on a screen of {width}"
            if len(sys.argv) > 2:
                narrow.screenshot(path=os.path.join(sys.argv[2], f"screen-{width}-{scheme}.png"))
        browser.close()
    assert not messages, messages
    outside = [url for url in requests if not url.startswith(("file://", "data:"))]
    assert not outside, outside
    print(f"{report}: sorted `{table}`, filtered {samples} samples, {charts} charts are Vega-Lite, {pictures} pictures decode, fits 360 pixels")


main()
