"""Widgets in a real browser: JupyterLab with a notebook in headless Chromium, driven as a person would.

The pictures of widgets in README and book come from here: `LZN_SHOTS=folder pytest tests/test_browser.py` takes each of them inside one
test, when the widget is as its description says, whatever ran before and however many processes share the tests; one that is in the folder stays.
"""
import contextlib
import functools
import importlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from lzn_nb.plots import COLOURS

CHROMIUM = os.environ.get("LZN_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
if not CHROMIUM and os.environ.get("CI"): raise RuntimeError("no Chromium here, and in CI it must be; install Debian's package chromium")
if not CHROMIUM: pytest.skip("no Chromium here (Debian: apt-get install chromium)", allow_module_level=True)


def needed(module):
    "A module without which tests here are left out, though not in CI, where it must be there."
    return importlib.import_module(module) if os.environ.get("CI") else pytest.importorskip(module)


playwright_api = needed("playwright.sync_api")
sync_playwright, PlaywrightError = playwright_api.sync_playwright, playwright_api.Error
ROOT = Path(__file__).resolve().parent.parent
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
pytestmark = pytest.mark.timeout(420)


def test_in_ci_nothing_is_left_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "voila", None)  # as if it were not installed
    monkeypatch.setenv("CI", "true")
    with pytest.raises(ImportError): needed("voila")
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception): needed("voila")


def notebook(path, *cells):
    made = [{"cell_type": "code", "id": f"cell{k}", "metadata": {}, "execution_count": None, "outputs": [], "source": text} for k, text in enumerate(cells)]
    path.write_text(json.dumps({"cells": made, "metadata": {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A JupyterLab on loopback; gives its address and the folder that it shows."
    folder = tmp_path_factory.mktemp("lab")
    with socket.socket() as probe: probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
    quiet = folder / ".config/lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True); quiet.write_text('{"fetchNews": "false"}')  # else it asks in the corner of every page
    whole = quiet.parent.parent / "notebook-extension/tracker.jupyterlab-settings"
    whole.parent.mkdir(parents=True); whole.write_text('{"windowingMode": "none"}')  # else cells that are out of sight are not there
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(folder / ".config"), "JUPYTER_CONFIG_PATH": str(ROOT / "app"), "OMP_NUM_THREADS": "1"}
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


def arrived(browser, address):
    "A page at an address whose server may still be starting."
    page, until = browser.new_page(viewport={"width": 1300, "height": 1150}), time.time() + 90
    page.set_default_timeout(90_000)  # a map of 225 images takes seconds, and on a machine with other work ten times as long
    while True:
        try: page.goto(address, timeout=90_000); return page
        except Exception:
            if time.time() > until: raise
            time.sleep(0.5)


def opened(lab, browser, name, *cells):
    "The page of a notebook whose first cell has been run."
    address, folder = lab
    notebook(folder / name, *cells)
    page = arrived(browser, f"{address}/lab/workspaces/{Path(name).stem}/tree/{name}")
    page.wait_for_selector(".jp-Notebook .cm-content", timeout=120_000)
    page.wait_for_selector("text=| Idle", timeout=120_000)
    page.click(".jp-Cell .cm-content >> nth=0")
    page.keyboard.press("Shift+Enter")
    return page


@contextlib.contextmanager
def shown(lab, browser, name, code, drawn, said):
    "The page of a widget, once the element `drawn` is there and the text `said`."
    page = opened(lab, browser, f"{name}.ipynb", code)
    page.wait_for_selector(drawn, state="attached", timeout=120_000)
    page.wait_for_selector(f"text={said}")
    yield page
    page.close()


def shot(page, name):
    "A picture of the widget as it is, where LZN_SHOTS names a folder for them; the first one of a name stays."
    shots = os.environ.get("LZN_SHOTS")
    if shots and not (path := Path(shots) / f"{name}.png").exists(): page.locator(".jp-OutputArea").first.screenshot(path=path)


@pytest.fixture(scope="module")
def explorer(lab, browser):
    with shown(lab, browser, "explorer", "from lzn_nb.widgets import ZoneExplorer\nexplorer = ZoneExplorer(draws=10)\nexplorer", ".shapelayer path", "in a wrong zone") as page: yield page


@pytest.mark.skipif(not os.environ.get("LZN_SHOTS"), reason="pictures are taken where LZN_SHOTS names a folder")
@pytest.mark.parametrize("name, code, drawn, said", [
    ("explorer", "from lzn_nb.widgets import ZoneExplorer\nexplorer = ZoneExplorer(draws=10, ways=True)\nexplorer", ".shapelayer path", "in a wrong zone"),
    ("flow-explorer", "from lzn_nb.widgets import FlowExplorer\nflow = FlowExplorer(frame=20, chosen=5, compare=True)\nflow", ".barlayer path", "latents off by")])
def test_pictures_are_taken_of_what_is_described(lab, browser, name, code, drawn, said):
    "Four anchors, latents and their ways; samples half-way, with a posterior and two solvers."
    with shown(lab, browser, f"{name}-shot", code, drawn, said) as page:
        page.wait_for_timeout(1000)  # until plotly has drawn all of it
        if name == "explorer": assert page.locator(".shapelayer path").count() == 4 and page.locator(".js-plotly-plot .scatterlayer .lines path").count() > 0
        else: assert page.locator("text=t = 0.500").count() == 1 and page.locator("[role=status]").inner_text().count("latents off by") == 2
        shot(page, name)


def test_the_page_of_the_book_runs_and_its_explorer_moves(lab, browser):
    "The notebook itself, run from its first cell to its last."
    address, folder = lab
    shutil.copy(ROOT / "nbs/10_widgets.ipynb", folder / "book.ipynb")
    page = arrived(browser, f"{address}/lab/workspaces/book/tree/book.ipynb")
    page.wait_for_selector("text=| Idle", timeout=120_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.locator(".jp-OutputArea .shapelayer path").first.wait_for(state="attached", timeout=180_000)
    page.wait_for_selector("text=/Python.* [|] Idle/", timeout=180_000)
    assert page.locator(".jp-OutputArea [data-mime-type='application/vnd.jupyter.stderr']", has_text="Error").count() == 0
    page.locator(".shapelayer path").nth(1).scroll_into_view_if_needed()
    before, box = picture(page), page.locator(".shapelayer path").nth(1).bounding_box()
    def moved(): return settled(page, lambda: picture(page), before)
    taken_up(lambda: drag(page, page.locator(".shapelayer path").nth(1).bounding_box(), -50, 60), moved)
    after = page.locator(".shapelayer path").nth(1).bounding_box()
    assert after["x"] < box["x"] - 20 and after["y"] > box["y"] + 20 and "in a wrong zone" in page.locator("[role=status]").first.inner_text()
    page.close()


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


def taken_up(gesture, answered, tries=3):
    "A gesture, again if there is no answer, as people do: what happens while plotly draws the figure anew is lost at times."
    for left in reversed(range(tries)):
        try: gesture(); return answered()
        except (AssertionError, PlaywrightError):
            if not left: raise


def click(page, x, y):
    "Click at a place of a figure, once plotly hovers over it: that is what it clicks."
    page.mouse.move(x - 40, y); page.mouse.move(x, y)
    page.wait_for_selector(".hoverlayer .hovertext", timeout=8000)
    page.mouse.click(x, y)


def lasso(page, around):
    "Draw a line through places, once plotly has taken up that one is being drawn."
    page.mouse.move(*around[0]); page.mouse.down()
    try:
        page.mouse.move(*around[1], steps=4)
        page.wait_for_selector(".select-outline", state="attached", timeout=8000)
        for spot in around[2:]: page.mouse.move(*spot, steps=4)
    finally: page.mouse.up()


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


def controls(page):
    "Label and tooltip of every control on the page; what a slider or a list says itself is no label."
    titled = "e => [e.matches('.widget-inline-hbox') ? e.querySelector('label')?.innerText.trim() : e.innerText || e.getAttribute('aria-label'), e.querySelector('label')?.title || e.querySelector('[title]')?.title || e.title]"
    kinds = (".widget-inline-hbox:not(.widget-html)", "button.widget-button", "button.widget-toggle-button", "button.widget-upload", "canvas[role=application]")
    return page.evaluate(f"() => [...document.querySelectorAll('{', '.join(f'.jp-OutputArea {kind}' for kind in kinds)}')].map({titled})")


def test_every_control_has_a_label_and_a_tooltip(explorer):
    found = controls(explorer)
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


@functools.cache
def misread_are_chosen() -> str:
    "What the page says when all test images are chosen that the shipped network reads wrongly."
    from lzn_nb.embedding_widgets import embedded
    from lzn_nb.latent_views import Trained
    return rf"text=/\b{int((~embedded(Trained()).right).sum())} chosen image/"


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


def test_every_control_of_the_flow_has_a_label_and_a_tooltip(flow):
    found = controls(flow)
    assert len(found) >= 9 and all(label and title and title != "null" for label, title in found), [pair for pair in found if not all(pair) or "null" in pair]


def test_it_plays(flow):
    page, before = flow, places(flow)
    page.get_by_role("button", name="Play").click()
    first = settled(page, lambda: places(page), before)
    settled(page, lambda: places(page), first)
    page.get_by_role("button", name="Play").click()


# -- LatentPlayground -----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def playground(lab, browser):
    with shown(lab, browser, "playground", "from lzn_nb.latent_widgets import LatentPlayground\nplayground = LatentPlayground()\nplayground", "canvas[role=application]", "225 of 225 images decoded") as page: yield page


def slide(page, name, *keys):
    page.locator(".widget-slider", has_text=name).locator(".noUi-handle, [role=slider]").first.focus()
    for key in keys: page.keyboard.press(key)


def sheet(page, what): return page.get_by_alt_text(what).get_attribute("src")


def test_a_click_on_the_map_shows_what_lies_there(playground):
    page, what = playground, "this latent, with different noise"
    before, status = sheet(page, what), lambda: page.locator("[role=status]", has_text="is read as").first.inner_text()
    told, box = status(), page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    taken_up(lambda: click(page, box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.1), lambda: settled(page, lambda: sheet(page, what), before))
    assert settled(page, status, told).startswith("This point is read as")
    assert float(field(page, "u").input_value()) > 2.5 and float(field(page, "v").input_value()) > 2.5


def test_the_keyboard_can_choose_point_label_and_noise(playground):
    page = playground
    before = sheet(page, "this latent, with different noise")
    field(page, "u").fill("-3"); page.keyboard.press("Enter")
    before = settled(page, lambda: sheet(page, "this latent, with different noise"), before)
    slide(page, "noise", "ArrowRight")
    settled(page, lambda: sheet(page, "this latent, with different noise"), before)
    field(page, "label").select_option("7")
    page.wait_for_selector("text=draws from the zone of 7")
    before = sheet(page, "draws from the zone of 7")
    slide(page, "α", "Home")
    settled(page, lambda: sheet(page, "draws from the zone of 7"), before)
    page.wait_for_selector("[role=status] >> text=is read as 7")


def whole_map(page, seconds=90):
    "The picture of the map once it has come to its end: two looks half a second apart see the same, and hear that it is whole."
    until, before = time.time() + seconds, None
    while time.time() < until:
        now = picture(page) if page.locator("text=225 of 225 images decoded").count() else None
        if now is not None and now == before: return now
        before = now
        page.wait_for_timeout(500)
    raise AssertionError("the map did not come to its end")


def test_another_plane_is_another_map(playground):
    "Each picture that has changed is compared with a whole one, so none has changed because an earlier map went on."
    page = playground
    before = whole_map(page)
    field(page, "plane").select_option("three labels")
    settled(page, lambda: picture(page), before)
    whole_map(page)
    assert page.locator(".scatterlayer .textpoint").count() == 3
    page.get_by_label("zone 1", exact=True).select_option("1")
    page.wait_for_selector("[role=alert] >> text=wanted three different ones")
    page.get_by_label("zone 1", exact=True).select_option("0")
    for plane in ("image centres", "by chance"):
        before = whole_map(page)
        field(page, "plane").select_option(plane)
        settled(page, lambda: picture(page), before)
    before = whole_map(page)
    slide(page, "turn", "ArrowRight")
    settled(page, lambda: picture(page), before)


def test_the_plane_through_three_images_is_drawn_to_its_end(playground):
    page = playground
    field(page, "plane").select_option("three images")
    try:
        page.get_by_label("image 1", exact=True).fill("40"); page.keyboard.press("Enter")
        page.locator(".scatterlayer .textpoint", has_text="40").wait_for(state="attached", timeout=15_000)
        page.wait_for_selector("text=225 of 225 images decoded", timeout=15_000)
    finally: field(page, "plane").select_option("label centres")


def pixel(page, row, column):
    box = page.locator("canvas[role=application]").bounding_box()
    return box["x"] + (column + 0.5) * box["width"] / 8, box["y"] + (row + 0.5) * box["height"] / 8


def test_a_painted_digit_is_read(playground):
    page = playground
    page.locator("canvas[role=application]").scroll_into_view_if_needed()
    page.mouse.move(*pixel(page, 0, 4)); page.mouse.down()
    for row in range(1, 8): page.mouse.move(*pixel(page, row, 4))
    page.mouse.up()
    page.wait_for_selector("[role=status] >> text=The drawing is read as")
    page.wait_for_selector("text=draws from the drawing's zone")
    page.get_by_alt_text("the drawing, and its reconstruction").wait_for()


def test_the_keyboard_paints_and_the_notebook_stays_where_it_is(playground):
    page, label = playground, lambda: playground.locator("canvas[role=application]").get_attribute("aria-label")
    cells = page.locator(".jp-Notebook .jp-Cell").count()
    page.get_by_role("button", name="Wipe").click()
    page.get_by_alt_text("the drawing, and its reconstruction").wait_for(state="detached")
    page.locator("canvas[role=application]").focus()
    for key in ("ArrowUp", "ArrowLeft", "Space"): page.keyboard.press(key)
    assert "row 4, column 4 is 100 % light" in label(), label()
    page.wait_for_selector("[role=status] >> text=The drawing is read as")
    page.keyboard.press("Backspace")
    assert "is 0 % light" in label() and page.evaluate("() => document.activeElement.tagName") == "CANVAS"
    page.keyboard.press("d"); page.keyboard.press("d")  # which deletes a cell, where JupyterLab hears it
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells


def upload(page, path):
    with page.expect_file_chooser() as chooser: page.get_by_role("button", name="Image file").click()
    chooser.value.set_files(path)


def test_files_are_read_or_refused(playground, tmp_path):
    from PIL import Image, ImageDraw
    page, image = playground, Image.new("RGB", (240, 240), "white")
    for stroke in ([(110, 10), (55, 130), (185, 130)], [(160, 60), (140, 230)]): ImageDraw.Draw(image).line(stroke, fill="black", width=30)
    image.save(tmp_path / "four.png"); (tmp_path / "broken.png").write_bytes(b"no picture")
    upload(page, tmp_path / "broken.png")
    page.wait_for_selector("[role=alert] >> text=broken.png cannot be read as an image")
    upload(page, tmp_path / "four.png")
    page.wait_for_selector("[role=status] >> text=The drawing is read as 4")
    page.wait_for_selector("text=labelled 4")  # of the nearest training image, when all else has followed
    shot(page, "playground")
    page.get_by_role("button", name="Wipe").click()
    page.get_by_alt_text("the drawing, and its reconstruction").wait_for(state="detached")
    image.resize((4000, 4000)).convert("L").save(tmp_path / "large.bmp"); image.resize((2800, 2800)).save(tmp_path / "huge.bmp")  # 16 and 24 MB
    upload(page, tmp_path / "large.bmp")
    page.wait_for_selector("[role=status] >> text=The drawing is read as 4")
    upload(page, tmp_path / "huge.bmp")
    page.wait_for_selector("[role=alert] >> text=huge.bmp has 23,520,054 bytes, wanted 20,000,000 at most")
    page.wait_for_selector("[role=status] >> text=The drawing is read as 4")


def test_every_control_of_the_playground_has_a_label_and_a_tooltip(playground):
    found = controls(playground)
    assert len(found) >= 20 and all(label and title and title != "null" for label, title in found), [pair for pair in found if not all(pair) or "null" in pair]
    for name in ("Image file", "drawing, 8 by 8 pixels"): assert sum(label.startswith(name) for label, _ in found) == 1, found


def test_a_typed_sentence_is_drawn_or_refused(lab, browser):
    code = "import lzn_nb\nfrom lzn_nb.latent_widgets import LatentPlayground\nplayground = LatentPlayground(lzn_nb.load_pretrained('digits-text'))\nplayground"
    with shown(lab, browser, "sentences", code, "canvas[role=application]", "225 of 225 images decoded") as page:
        def say(words): field(page, "sentence").fill(words); page.keyboard.press("Enter")

        drawn, alarms = [], page.locator(".jp-OutputArea [role=alert]")
        for words, digit in (("a thin eight", 8), ("a thick three, leaning left", 3)):
            say(words)
            page.wait_for_selector(f"text=drawn for: {words}")
            page.wait_for_selector(f"[role=status] >> text=The first draw is read as {digit}")
            drawn.append(sheet(page, f"drawn for: {words}"))
        assert drawn[0] != drawn[1] and alarms.count() == 0
        say("qwerty zyx")
        page.wait_for_selector("[role=alert] >> text=of which no word is known, wanted words such as")
        page.get_by_alt_text("drawn for").wait_for(state="detached")
        say(words)  # the last of those that were drawn
        page.wait_for_selector(f"text=drawn for: {words}")
        assert sheet(page, f"drawn for: {words}") == drawn[1]
        alarms.wait_for(state="detached")
        shot(page, "sentences")
        slide(page, "α", *["ArrowRight"] * 14)
        settled(page, lambda: sheet(page, "drawn for"), drawn[1])
        found = controls(page)
        assert len(found) >= 21 and all(label and title and title != "null" for label, title in found), [pair for pair in found if not all(pair) or "null" in pair]


# -- EmbeddingExplorer ----------------------------------------------------------------------------
@pytest.fixture(scope="module")
def embeddings(lab, browser):
    with shown(lab, browser, "embeddings", "from lzn_nb.embedding_widgets import EmbeddingExplorer\nexplorer = EmbeddingExplorer()\nexplorer", ".scatterlayer .points path", "359 test images") as page: yield page


def test_the_layout_follows_the_controls(embeddings):
    page, before = embeddings, places(embeddings)
    page.get_by_role("button", name="latent").click()
    before = settled(page, lambda: places(page), before)
    slide(page, "α", "Home")
    settled(page, lambda: places(page), before)
    field(page, "images").select_option("valid")
    page.wait_for_selector("[role=status] >> text=180 valid images")
    field(page, "images").select_option("test")
    page.wait_for_selector("[role=status] >> text=359 test images")
    page.get_by_role("button", name="anchor").click()


def test_the_keyboard_chooses_a_class_and_a_range(embeddings):
    page = embeddings
    field(page, "choose").select_option("read wrongly")
    page.wait_for_selector(misread_are_chosen())
    settled(page, lambda: page.evaluate("() => [...document.querySelectorAll('.scatterlayer .points path')].filter(e => getComputedStyle(e).opacity < 0.5).length"), 0)
    page.locator("td", has_text="all").wait_for()
    assert page.locator("td", has_text="all").count() == 1 and "0%" in page.locator("tr", has_text="all").inner_text()
    page.locator(".widget-slider", has_text="from … to").locator("[role=slider]").first.focus()
    for _ in range(3): page.keyboard.press("PageUp")
    page.wait_for_selector("text=the first 60 of them")


def test_umap_comes_later_and_does_not_block(embeddings):
    page, before = embeddings, places(embeddings)
    page.get_by_role("button", name="UMAP", exact=True).click()
    page.wait_for_selector("text=UMAP is being fitted")
    assert page.locator("text=37 chosen images").count() == 0
    field(page, "choose").select_option("3")
    page.wait_for_selector("text=37 chosen images", timeout=60_000)  # and not those that were chosen before
    assert page.locator("text=UMAP is being fitted").count() == 1 and places(page) == before
    settled(page, lambda: places(page), before, 120)
    page.wait_for_selector("[role=status] >> text=359 test images")
    before = places(page)
    page.get_by_role("button", name="PCA", exact=True).click()
    settled(page, lambda: places(page), before)


def draw_around(page) -> None:
    "A lasso around nearly all points, as often as it takes until some are chosen."
    box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    at = lambda x, y: (box["x"] + x * box["width"], box["y"] + y * box["height"])
    around = [at(*spot) for spot in ((0.05, 0.05), (0.5, 0.04), (0.95, 0.05), (0.95, 0.95), (0.5, 0.96), (0.05, 0.95), (0.05, 0.05))]
    taken_up(lambda: lasso(page, around), lambda: page.wait_for_selector("text=chosen images", timeout=8000))


def outlines(page): return page.locator(".selectionlayer path").count()


def faded(page): return page.evaluate("() => [...document.querySelectorAll('.scatterlayer .points path')].filter(e => getComputedStyle(e).opacity < 0.5).length")


def test_a_lasso_chooses_and_its_outline_goes_with_its_choice(embeddings):
    "The mouse shows one, a lasso chooses many; whatever comes after it, another choice stays, and nothing is left of the outline."
    page = embeddings
    field(page, "choose").select_option("5")
    page.wait_for_selector("text=chosen images")
    field(page, "choose").select_option("nobody")
    page.wait_for_selector("text=nobody is chosen")
    spot = page.locator(".scatterlayer .points path").nth(100).bounding_box()
    page.mouse.move(spot["x"] + 60, spot["y"]); page.mouse.move(spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2, steps=5)
    page.wait_for_selector("img[alt*='read as']")
    draw_around(page)
    assert page.locator("tr").count() > 3
    assert outlines(page) > 0
    field(page, "choose").select_option("3")
    page.wait_for_selector("text=37 chosen images")
    until = time.time() + 15
    while (outlines(page) or faded(page) != 359 - 37) and time.time() < until: page.wait_for_timeout(50)
    page.wait_for_timeout(2500)  # nothing comes after it that gives up the choice
    assert outlines(page) == 0 and faded(page) == 359 - 37 and page.locator("text=37 chosen images").count() == 1
    shot(page, "embeddings")
    box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
    page.mouse.dblclick(box["x"] + 20, box["y"] + 20)  # gives up the choice
    page.wait_for_selector("text=nobody is chosen")


def test_a_point_is_looked_at_by_its_number(embeddings):
    field(embeddings, "look at").fill("9"); embeddings.keyboard.press("Enter")
    embeddings.wait_for_selector("img[alt^='9: ']")
    field(embeddings, "choose").select_option("read wrongly")
    embeddings.wait_for_selector(misread_are_chosen())


def test_every_control_of_the_embedding_has_a_label_and_a_tooltip(embeddings):
    found = controls(embeddings)
    assert len(found) >= 9 and all(label and title and title != "null" for label, title in found), [pair for pair in found if not all(pair) or "null" in pair]


# -- TrainingMonitor ------------------------------------------------------------------------------
def test_a_run_is_watched_and_stopped(lab, browser):
    code = """from lzn_nb.run_widgets import TrainingMonitor, start_run
process = start_run("joint", "run", "--preset", "tiny", "--set", "steps=999999", "--set", "log_every=5", "--set", "eval_every=40", "--set", "save_every=20")
monitor = TrainingMonitor("run", process, seconds=0.3)
monitor"""
    with shown(lab, browser, "monitor", code, ".js-plotly-plot", "last checkpoint") as page:
        page.wait_for_selector(".scatterlayer .lines path", state="attached", timeout=120_000)
        status = lambda: page.locator("[role=status]").first.inner_text()
        settled(page, status, settled(page, status, status(), 60), 60)  # it goes on
        page.locator(".widget-image").wait_for(timeout=60_000)  # a sheet of samples
        page.locator(".js-plotly-plot image").first.wait_for(state="attached")  # zones
        page.get_by_label("curves", exact=True).select_option(["flow"])
        page.wait_for_function("() => [...document.querySelectorAll('.js-plotly-plot .annotation')].map(e => e.textContent).join() === 'flow'")
        found = controls(page)
        assert len(found) == 2 and all(label and title for label, title in found), found
        page.get_by_label("curves", exact=True).select_option(["loss", "flow", "alignment"])
        page.wait_for_function("() => [...document.querySelectorAll('.js-plotly-plot .annotation')].map(e => e.textContent).join() === 'loss,flow,alignment'")
        shot(page, "monitor")
        pixels = np.asarray(Image.open(io.BytesIO(page.locator(".js-plotly-plot").first.screenshot())).convert("RGB")).astype(int)
        inked = [int((abs(part - ImageColor.getrgb(colour)).sum(-1) < 60).sum()) for part, colour in zip(np.array_split(pixels, 3), COLOURS)]
        assert min(inked) > 100, inked  # the lines are seen: panels that are hidden now cover none of the others
        page.keyboard.press("Control+s")
        page.wait_for_timeout(1500)
        page.reload()  # the same panels are there, and go on
        page.wait_for_function("() => [...document.querySelectorAll('.js-plotly-plot .annotation')].map(e => e.textContent).join() === 'loss,flow,alignment'", timeout=60_000)
        longest = lambda: page.evaluate("() => Math.max(...document.querySelector('.js-plotly-plot').data.map(trace => (trace.x ?? []).length))")
        settled(page, longest, longest(), 60)
        page.get_by_role("button", name="Stop").click()
        page.wait_for_selector("[role=status] >> text=ended", timeout=60_000)
        assert page.get_by_role("button", name="Stop").is_disabled() and "none yet" not in status()


# -- the page without code ------------------------------------------------------------------------
def test_the_page_without_code_comes_up_and_reacts(browser, tmp_path):
    needed("voila")
    with socket.socket() as probe: probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_CONFIG_PATH": str(ROOT / "app"), "OMP_NUM_THREADS": "1"}
    with open(tmp_path / "voila.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", "voila", str(ROOT / "app" / "playground.ipynb"), "--no-browser", "--Voila.ip=127.0.0.1", f"--port={port}"], stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path)
        try:
            page = arrived(browser, f"http://127.0.0.1:{port}")
            page.wait_for_selector("text=225 of 225 images decoded", timeout=120_000)
            page.wait_for_selector("canvas[role=application]")
            assert "import" not in page.locator("body").inner_text()  # no code
            page.get_by_label("label", exact=True).select_option("7")
            page.wait_for_selector("[role=status] >> text=is read as 7")
            box = page.locator(".js-plotly-plot .nsewdrag").first.bounding_box()
            taken_up(lambda: click(page, box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.1), lambda: page.wait_for_selector("[role=status] >> text=This point is read as", timeout=15_000))
            image = Image.new("L", (4000, 4000)); image.paste(255, (1500, 500, 2500, 3500)); image.save(tmp_path / "large.bmp")  # 16 MB
            upload(page, tmp_path / "large.bmp")
            page.wait_for_selector("[role=status] >> text=The drawing is read as")
            if shots := os.environ.get("LZN_SHOTS"): page.screenshot(path=Path(shots) / "app.png")
            page.get_by_role("tab", name="Embeddings").click()
            page.wait_for_selector("text=359 test images")
            page.get_by_label("choose", exact=True).select_option("read wrongly")
            page.wait_for_selector(misread_are_chosen())
            if shots: page.screenshot(path=Path(shots) / "app-embeddings.png")
        finally: server.terminate(); server.wait(30)
