"""The reports in a real browser: run by `make test-browser`, which installs it."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import io
import json
import re
import shutil
import threading

import numpy as np
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By

from gpunn import kernels
from gpunn.bench.ceilings import Ceilings
from gpunn.bench.measure import NotTimed, Row
from gpunn.bench.products import SWEEP
from gpunn.bench.results import Results
from gpunn.report import result_page, run_page
from gpunn.train import find_job, run_job

WIDTHS = (390, 1280)
EVIL = "<script>document.title='broken into'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = shutil.which("chromedriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not driver or not chromium:
        pytest.fail("there is no chromium with its chromedriver: run make test-browser")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tmp_path_factory.mktemp("profile")
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
                 "disable-background-networking", "disable-component-update", "disable-sync",
                 "hide-scrollbars", f"user-data-dir={profile}"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    made = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield made
    made.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The two kinds of pages by name: a short real run, and a made-up result with all sections."""
    folder = tmp_path_factory.mktemp("pages")
    job = find_job("digits")
    config = job.config(device="cpu", epochs=4, hidden=(32,), limit=600)
    run_job(job, config, folder / "run", verbose=False)
    run_page(folder / "run").write(folder / "run.html")
    write_result(folder / "result.json")
    result_page(folder / "result.json").write(folder / "result.html")
    handler = functools.partial(QuietHandler, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield {name: f"{address}/{name}.html" for name in ("run", "result")}
    server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def write_result(path):
    rng = np.random.default_rng(0)
    environment = {
        "machine": {"gpu": f"NVIDIA H100 {EVIL}", "cpu": "a CPU", "memory_bytes": 1 << 37},
        "versions": {"python": "3.11", "cupy": EVIL, "torch": None},
        "commit": "a" * 40, "clean": False, "date": "2026-11-26T06:00:00Z", "command": ["x", EVIL],
    }  # fmt: skip
    found = Results(environment, {})
    rates = {"float32": 5e13, "bfloat16": 7e14}
    how = {name: f"measured so {EVIL}" for name in ("copy", *rates)}
    found.ceilings = [Ceilings("cuda", 3e12, rates, how)]
    for number, name in enumerate(kernels.table()):
        for dtype in rates:
            moved = float(10 ** rng.uniform(5, 9))
            work = moved * float(10 ** rng.uniform(-1, 2.8))
            floor = max(moved / 3e12, work / rates[dtype])
            for by in ("cuda", "torch", "cupy"):
                seconds = floor * float(rng.uniform(1.05, 3))
                peers = {"torch": float(rng.lognormal(0, 0.4)), "cupy": 1.5} if by == "cuda" else {}
                found.rows.append(
                    Row(name, (64, 2**number % 999 + 1), dtype, "cuda", by, by == "cuda", "stream",
                        "cold", (seconds, seconds * 1.01), 5, work, moved, floor, "memory", peers)
                )  # fmt: skip
    found.not_timed = [NotTimed(f"case {EVIL}", "torch", "it has none")]
    found.tests = [{"stage": "parity", "item": EVIL, "passed": False, "checked": 7, "seconds": 1.0,
                    "failures": [{"case": EVIL, "reason": f"wrong by 3\n{EVIL}"}]}]  # fmt: skip
    found.stages = [{"name": "parity", "state": "partly", "seconds": 3.0, "items": 2, "failed": 1,
                     "detail": "one", "not_run": {"x": EVIL}}]  # fmt: skip
    curve = np.exp(-np.arange(30) / 9).tolist()
    found.training = [
        {"job": "mlp", "batch": 32, "device": "cuda", "threads": 1, "contestant": name,
         "precision": "fp32", "flops": 1e9, "median": seconds, "over_ours": seconds / 1e-4,
         "curve": curve, "target": ">= 2 x torch", "reached": name == "gpunn" or None}
        for name, seconds in (("gpunn", 1e-4), ("torch", 2.5e-4))
    ]  # fmt: skip
    for product in SWEEP:
        ratio = float(rng.lognormal(0, 0.4))
        found.products.append(
            dataclasses.asdict(product)
            | {"key": product.key, "kernel": "matmul_wgmma<x>", "seconds": 1e-4, "tflops": 500.0,
               "ratio": ratio, "errors": {"gpunn": 1e-3, "torch": 1.1e-3}}
        )  # fmt: skip
    path.write_text(json.dumps(found.to_json()))


def opened(browser, address, width, height=1000, dark=False):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what was there before
    browser.get(address)


@pytest.mark.parametrize("name", ["run", "result"])
@pytest.mark.parametrize("width", WIDTHS)
def test_opens_without_faults(browser, pages, name, width):
    opened(browser, pages[name], width)
    assert browser.get_log("browser") == []
    asked = [
        message["params"]["request"]["url"]
        for entry in browser.get_log("performance")
        if (message := json.loads(entry["message"])["message"])["method"]
        == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith("data:")] == [pages[name]]
    assert browser.title != "broken into"
    script = "return [document.documentElement.scrollWidth, innerWidth]"
    needed, there = browser.execute_script(script)
    assert needed <= there == width
    images = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth, i.alt])"
    )
    assert all(complete and wide > 0 and alt for complete, wide, alt in images)
    assert len(images) > 20 if name == "run" else not images
    charts, texts = browser.execute_script("""
        const boxes = (what) => [...document.querySelectorAll(what)]
          .filter(e => e.checkVisibility()).map(e => e.getBoundingClientRect());
        return [boxes("svg").map(b => [b.left, b.right, b.height]),
                boxes("svg text").map(b => [b.left, b.right])]""")
    assert charts
    assert all(left >= 0 and right <= width + 1 and high > 50 for left, right, high in charts)
    assert all(left >= 0 and right <= width + 1 for left, right in texts)
    picture = np.asarray(Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("L"))
    assert picture.std() > 10


CONTRAST = """
const parse = (c) => [...c.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
const over = (a, b) => [0, 1, 2].map(i => a[3] * a[i] + (1 - a[3]) * b[i]).concat(1);
const light = (c) => { const v = c.slice(0, 3).map(x => { x /= 255;
  return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
const found = [];
for (const e of document.querySelectorAll("body *")) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || !e.checkVisibility() || e.closest("svg, #tip, .skip")) continue;
  const layers = [];
  for (let up = e; up; up = up.parentElement)
    layers.push(parse(getComputedStyle(up).backgroundColor));
  let ground = [255, 255, 255, 1];
  for (const layer of layers.reverse()) ground = over(layer, ground);
  const text = over(parse(getComputedStyle(e).color), ground);
  const [a, b] = [light(text), light(ground)].sort((x, y) => y - x);
  const ratio = (a + 0.05) / (b + 0.05);
  if (ratio < 4.5) found.push([e.tagName, e.className, e.textContent.slice(0, 30), ratio]);
}
return found.slice(0, 5);
"""


@pytest.mark.parametrize("name", ["run", "result"])
@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read(browser, pages, name, dark):
    opened(browser, pages[name], 1280, dark=dark)
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 150) == dark
    assert browser.execute_script(CONTRAST) == []
    sizes = browser.execute_script("""
        const texts = [...document.querySelectorAll("svg text")].filter(t => t.checkVisibility());
        return texts.map(t => {
          const box = t.ownerSVGElement;
          return parseFloat(getComputedStyle(t).fontSize) * box.getBoundingClientRect().width
            / box.viewBox.baseVal.width })""")
    assert min(sizes) > 9


def column(table, number):
    return table.parent.execute_script(
        "const [table, at] = arguments;"
        "return [...table.tBodies[0].rows].map(row => Number(row.cells[at].dataset.v))",
        table,
        number - 1,
    )


def test_tables_sort_and_filter(browser, pages):
    opened(browser, pages["result"], 1280)
    section = browser.find_element(By.CSS_SELECTOR, "section#kernels")
    table = section.find_element(By.TAG_NAME, "table")
    before = column(table, 5)
    heading = table.find_element(By.CSS_SELECTOR, "th:nth-child(5)")
    button = heading.find_element(By.TAG_NAME, "button")
    assert button.text == "Of floor"
    browser.execute_script(
        "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", button
    )
    button.click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert column(table, 5) == sorted(before, reverse=True)
    button.send_keys("\n")  # by the keyboard, back
    assert column(table, 5) == sorted(before)
    search = section.find_element(By.CSS_SELECTOR, "input[type=search]")
    search.send_keys("matmul bfloat16")
    rows = browser.execute_script(
        "return [...arguments[0].tBodies[0].rows].filter(r => r.checkVisibility())"
        ".map(r => r.textContent)",
        table,
    )
    assert rows and all("matmul" in row and "bfloat16" in row for row in rows)
    said = section.find_element(By.TAG_NAME, "output").text
    assert said == f"{len(rows)} of {len(before)} rows"


def test_legends_and_tooltips(browser, pages):
    opened(browser, pages["run"], 1280)
    figure = browser.find_element(By.CSS_SELECTOR, "#learning-curves figure")
    button = figure.find_element(By.CSS_SELECTOR, "button[data-toggle='1']")
    line = figure.find_element(By.CSS_SELECTOR, ".wide path[data-series='1']")
    assert line.is_displayed()
    button.click()
    assert not line.is_displayed() and button.get_attribute("aria-pressed") == "false"
    button.click()
    assert line.is_displayed()
    strip = figure.find_element(By.CSS_SELECTOR, ".wide rect.hit:nth-child(2)")
    webdriver.ActionChains(browser).move_to_element(strip).perform()
    tip = browser.find_element(By.ID, "tip")
    assert tip.is_displayed() and tip.text.startswith("epoch 2\ntraining: ")
    box = browser.execute_script("return arguments[0].getBoundingClientRect()", tip)
    assert box["left"] >= 0 and box["right"] <= 1280


def test_headings_and_print(browser, pages):
    opened(browser, pages["run"], 1280)
    levels = browser.execute_script(
        "return [...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    links = browser.execute_script(
        "return [...document.querySelectorAll('nav a')].map(a => !!document.querySelector("
        "a.getAttribute('href')))"
    )
    assert links and all(links)
    paper = browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert len(paper) > 10_000
