"""Widgets in a real browser: JupyterLab with a notebook in headless Chromium, driven as a person would."""
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHROMIUM = os.environ.get("LZN_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if not CHROMIUM and os.environ.get("CI"): raise RuntimeError("no Chromium here, and in CI it must be; install Debian's package chromium")
if not CHROMIUM: pytest.skip("no Chromium here (Debian: apt-get install chromium)", allow_module_level=True)
sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.timeout(300)


def notebook(path, *cells):
    made = [{"cell_type": "code", "id": f"cell{k}", "metadata": {}, "execution_count": None, "outputs": [], "source": text} for k, text in enumerate(cells)]
    path.write_text(json.dumps({"cells": made, "metadata": {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab on loopback; gives its address and the folder that it shows."
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as probe: probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(folder / ".config"), "OMP_NUM_THREADS": "1"}
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.token=", "--LabApp.news_url=none", f"--notebook-dir={folder}"],
                                  stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        try: yield f"http://127.0.0.1:{port}", folder
        finally: server.terminate(); server.wait(30)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


def opened(lab, browser, name, *cells):
    "The page of a notebook whose first cell has been run."
    address, folder = lab
    notebook(folder / name, *cells)
    page, until = browser.new_page(viewport={"width": 1300, "height": 1000}), time.time() + 90
    while True:
        try: page.goto(f"{address}/lab/workspaces/{Path(name).stem}/tree/{name}", timeout=30_000); break
        except Exception:
            if time.time() > until: raise
            time.sleep(0.5)
    page.wait_for_selector(".jp-Notebook .cm-content", timeout=120_000)
    page.wait_for_selector("text=| Idle", timeout=120_000)
    page.click(".jp-Cell .cm-content >> nth=0")
    page.keyboard.press("Shift+Enter")
    return page


@contextlib.contextmanager
def shown(lab, browser, name, code, drawn, said):
    "The page of a widget, once the element `drawn` is there and the text `said`; at the end a picture of it, where LZN_SHOTS names a folder for them."
    page = opened(lab, browser, f"{name}.ipynb", code)
    page.wait_for_selector(drawn, state="attached", timeout=120_000)
    page.wait_for_selector(f"text={said}")
    yield page
    if shots := os.environ.get("LZN_SHOTS"): page.locator(".jp-OutputArea").first.screenshot(path=Path(shots) / f"{name}.png")
    page.close()


@pytest.fixture(scope="module")
def explorer(lab, browser):
    with shown(lab, browser, "explorer", "from lzn_nb.widgets import ZoneExplorer\nexplorer = ZoneExplorer(draws=10)\nexplorer", ".shapelayer path", "in a wrong zone") as page: yield page


def field(page, label): return page.get_by_label(label, exact=True)


def picture(page): return page.locator(".js-plotly-plot image").first.get_attribute("href")


def drag(page, box, dx, dy):
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y); page.mouse.down()
    for k in (1, 2, 3): page.mouse.move(x + k * dx / 3, y + k * dy / 3)
    page.mouse.up()


def settled(page, ask, before, seconds=15):
    "What `ask()` gives once it is no longer `before`."
    until = time.time() + seconds
    while (now := ask()) == before and time.time() < until: page.wait_for_timeout(50)
    assert now != before
    return now


def test_an_anchor_is_dragged_and_its_zone_moves(explorer):
    page, before = explorer, picture(explorer)
    field(page, "anchor").fill("0"); page.keyboard.press("Enter")
    x, y = float(field(page, "x").input_value()), float(field(page, "y").input_value())
    drag(page, page.locator(".shapelayer path").nth(0).bounding_box(), 60, 40)
    assert settled(page, lambda: picture(page), before).startswith("data:image/png")
    settled(page, lambda: field(page, "x").input_value(), f"{x:g}")
    assert float(field(page, "x").input_value()) > x + 0.3 and float(field(page, "y").input_value()) < y - 0.2


def test_the_keyboard_can_place_an_anchor(explorer):
    page, before = explorer, picture(explorer)
    field(page, "anchor").fill("1"); page.keyboard.press("Tab")
    until = time.time() + 15
    while field(page, "x").input_value() != "1.5" and time.time() < until: page.wait_for_timeout(50)  # the fields show it before they are typed into
    field(page, "x").fill("-2.5"); page.keyboard.press("Enter")
    settled(page, lambda: picture(page), before)
    box, frame = page.locator(".shapelayer path").nth(1).bounding_box(), page.locator(".js-plotly-plot .bglayer, .js-plotly-plot .plot").first.bounding_box()
    assert box["x"] < frame["x"] + frame["width"] / 3


def test_fewer_evaluations_make_latents_stray(explorer):
    page = explorer
    status = lambda: page.locator("[role=status]").inner_text()
    before = status()
    page.get_by_role("button", name="euler").click()
    handle = page.locator(".widget-slider", has_text="evaluations").locator(".noUi-handle, [role=slider]").first
    handle.focus(); page.keyboard.press("Home")
    now = settled(page, status, before)
    page.wait_for_timeout(500)
    assert float(status().split(",")[1].split("%")[0]) > 5, (before, now, status())


def test_anchors_are_added_and_deleted_and_the_last_one_stays(explorer):
    page, count = explorer, lambda: explorer.locator(".shapelayer path").count()
    before = count()
    page.get_by_role("button", name="Add an anchor").click()
    assert settled(page, count, before) == before + 1
    for k in range(before, 0, -1):
        page.get_by_role("button", name="Delete it").click()
        settled(page, count, k + 1)
    page.get_by_role("button", name="Delete it").click()
    page.wait_for_selector("[role=alert] >> text=one is left")


def test_every_control_has_a_label_and_a_tooltip(explorer):
    titled = "e => [e.querySelector('label')?.innerText || e.innerText, e.querySelector('label')?.title || e.querySelector('[title]')?.title || e.title]"
    found = explorer.evaluate(f"() => [...document.querySelectorAll('.jp-OutputArea .widget-inline-hbox:not(.widget-html), .jp-OutputArea button.widget-button, .jp-OutputArea button.widget-toggle-button')].map({titled})")
    assert len(found) >= 13 and all(label and title and title != "null" for label, title in found), [pair for pair in found if not all(pair) or "null" in pair]


def test_ways_are_shown(explorer):
    page, lines = explorer, lambda: explorer.locator(".js-plotly-plot .scatterlayer .lines path").count()
    before = lines()
    page.get_by_role("button", name="Show ways").click()
    assert settled(page, lines, before) > before


# -- FlowExplorer ---------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def flow(lab, browser):
    with shown(lab, browser, "flow-explorer", "from lzn_nb.widgets import FlowExplorer\nflow = FlowExplorer()\nflow", ".barlayer path", "latents off by") as page: yield page


def places(page): return page.evaluate("() => [...document.querySelectorAll('.scatterlayer .points path')].map(e => e.getAttribute('transform')).join()")


def bars(page): return page.evaluate("() => [...document.querySelectorAll('.barlayer path')].map(e => e.getBoundingClientRect().height)")


def test_time_moves_samples_and_their_posterior(flow):
    page, before, first = flow, places(flow), bars(flow)
    assert len(first) == 4 and max(first) - min(first) < 3  # nobody knows anything at t = 0
    handle = page.locator(".widget-slider", has_text="moment").locator(".noUi-handle, [role=slider]").first
    handle.focus(); page.keyboard.press("End")
    settled(page, lambda: places(page), before)
    settled(page, lambda: bars(page), first)
    page.wait_for_timeout(500)
    last = bars(page)
    assert max(last) > 50 and sorted(last)[-2] < 3  # and at t = 1 everything is decided
    for _ in range(20): page.keyboard.press("ArrowLeft")
    page.wait_for_selector("text=t = 0.5")


def test_another_sample_has_another_posterior(flow):
    page, before = flow, bars(flow)
    field(page, "sample").fill("5"); page.keyboard.press("Enter")
    settled(page, lambda: bars(page), before)
    page.wait_for_selector("text=posterior of sample 5")


def test_two_solvers_are_laid_over_each_other(flow):
    page, status = flow, lambda: flow.locator("[role=status]").inner_text()
    before, lines = status(), page.locator(".scatterlayer .lines path").count()
    page.get_by_role("button", name="Compare with").click()
    told = settled(page, status, before)
    page.wait_for_timeout(300)
    assert "adams, 20" in told and "euler, 20" in told and page.locator(".scatterlayer .lines path").count() > lines


def test_it_plays(flow):
    page, before = flow, places(flow)
    page.locator(".widget-play button").first.click()
    first = settled(page, lambda: places(page), before)
    settled(page, lambda: places(page), first)
