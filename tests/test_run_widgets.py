"""A run watched: what is read off its folder, what is shown of it, and how it is ended."""
import asyncio
import base64
import gc
import io
import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest
import torch
from PIL import Image

from lzn_nb.checkpoints import save_checkpoint
from lzn_nb.plots import COLOURS, curve, curve_names
from lzn_nb.run_widgets import RunProcess, TrainingMonitor, draw_run, label_names, newest_sheet, run_status, start_run, thinned, zones_in
from lzn_nb.screen_plots import plotly_training_curves
from lzn_nb.widgets import sentence
from lzn_nb.zone_plots import plane_of


def log(out, *lines):
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "metrics.jsonl", "a") as file: file.writelines(json.dumps(line) + "\n" for line in lines)


def sheet(out, step, colour):
    (out / "samples").mkdir(exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(out / "samples" / f"{step:08d}.png")


def test_curves_are_the_numbers_that_come_with_updates():
    lines = [{"step": 5, "loss": 2.0, "seconds": 1.0, "skipped": 0}, {"step": 10, "loss": 1.5, "valid_score": 0.5, "note": "x", "good": True}, {"step": 10, "final": True, "loss": 9.0}]
    assert {name: curve(lines, name) for name in curve_names(lines)} == {"loss": ([5, 10], [2.0, 1.5]), "valid_score": ([10], [0.5])}


def test_where_a_run_is(tmp_path):
    assert run_status(tmp_path) == {"step": 0, "seconds": None, "saved": None, "finished": False}
    log(tmp_path, {"step": 5, "loss": 2.0, "seconds": 3.0})
    save_checkpoint(tmp_path, 7, {"step": 7})
    assert run_status(tmp_path) == {"step": 7, "seconds": 3.0, "saved": 7, "finished": False}
    log(tmp_path, {"step": 9, "final": True, "accuracy": 1.0})
    assert run_status(tmp_path)["finished"]


def test_the_monitor_shows_what_is_new(tmp_path):
    monitor = TrainingMonitor(tmp_path / "run")
    assert "waiting for the first figures" in monitor.said.value and monitor.stop_button.disabled and not monitor.figure.data
    log(tmp_path / "run", {"step": 5, "loss": 2.0, "flow": 1.0}); sheet(tmp_path / "run", 5, "red")
    assert monitor.refresh() and monitor.names == ["loss", "flow"] and list(monitor.figure.data[0].y) == [2.0]
    log(tmp_path / "run", {"step": 10, "loss": 1.0, "flow": 0.5}); sheet(tmp_path / "run", 10, "blue")
    assert monitor.refresh() and list(monitor.figure.data[0].x) == [5, 10] and "update 10" in monitor.said.value and "running" in monitor.said.value
    assert Image.open(io.BytesIO(monitor.samples.value)).getpixel((0, 0)) == (0, 0, 255) and newest_sheet(tmp_path / "run").stem == "00000010"
    log(tmp_path / "run", {"step": 10, "final": True, "accuracy": 1.0})
    assert not monitor.refresh() and "finished" in monitor.said.value


def test_curves_may_be_chosen_and_come_later(tmp_path):
    log(tmp_path, {"step": 5, "loss": 2.0})
    monitor = TrainingMonitor(tmp_path, keys=["valid_score", "loss"])
    assert monitor.names == ["loss"] and monitor.choice.value == ("loss",)
    log(tmp_path, {"step": 10, "loss": 1.0, "valid_score": 0.3})
    monitor.refresh()
    assert monitor.names == ["valid_score", "loss"] and [len(trace.x) for trace in monitor.figure.data] == [1, 2] and [note.text for note in monitor.figure.layout.annotations] == monitor.names
    monitor.choice.value = ("loss",)
    assert monitor.state.keys == ["loss"] == monitor.names and monitor.drawn.children == (monitor.figure,)
    monitor.state.keys = []
    assert monitor.names == ["loss", "valid_score"] and monitor.choice.value == ()


def test_zones_are_those_of_the_newest_checkpoint(tmp_path):
    matrix = 2 * torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    monitor = TrainingMonitor(tmp_path)
    assert zones_in(tmp_path) is None and not monitor.mapped.children
    for step, sign in ((3, 1), (9, -1)): save_checkpoint(tmp_path, step, {"step": step, "average": {"types.label.matrix": sign * matrix}})
    assert torch.allclose(zones_in(tmp_path).anchors, plane_of(-matrix).shadow(-matrix))
    assert monitor.refresh() and monitor.state.saved == 9 and monitor.mapped.children == (monitor.zones,) and len(monitor.zones.data[1].x) == 5
    assert set(monitor.zones.data[2].text) <= set("01234") and len(monitor.zones.data[2].text) > 1 and [text.get_text() for text in monitor.picture().axes[1].texts] == list(monitor.zones.data[2].text)
    (tmp_path / "config.json").write_text(json.dumps({"classes": [f"class {k}" for k in range(5)]}))
    save_checkpoint(tmp_path, 9, {"step": 9, "average": {"types.label.matrix": matrix.flip(0)}})
    monitor.state.saved = -1
    assert monitor.refresh() and set(monitor.zones.data[2].text) <= {f"class {k}" for k in range(5)} and len(monitor.zones.data[2].x) == len(monitor.zones.data[2].text) == len(zones_in(tmp_path).owner.unique())
    for other in ({"classes": ["a"]}, {"classes": 5}, [], None): (tmp_path / "config.json").write_text(json.dumps(other)); assert label_names(tmp_path, 3) == ["0", "1", "2"]
    save_checkpoint(tmp_path, 10, {"step": 10, "average": {"types.image.weight": matrix}})
    assert zones_in(tmp_path) is None and monitor.refresh()  # no labels: the map stays as it was
    (tmp_path / "checkpoints" / "00000011.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="00000011.safetensors is damaged"): zones_in(tmp_path)
    assert monitor.refresh() and 'role="alert"' in monitor.said.value


def test_a_damaged_log_is_said_and_watched_on(tmp_path):
    log(tmp_path, {"step": 5, "loss": 2.0})
    (tmp_path / "metrics.jsonl").open("a").write("[1, 2]\n")
    monitor = TrainingMonitor(tmp_path)
    assert 'role="alert"' in monitor.said.value and "line 2" in monitor.said.value and monitor.refresh()


def test_a_log_that_begins_anew_is_no_trouble(tmp_path):
    log(tmp_path, {"step": 5, "loss": 2.0}, {"loss": 1.0})
    monitor = TrainingMonitor(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    assert monitor.refresh() and len(monitor.figure.data[0].x) == 0
    with pytest.raises(ValueError, match="process: got none"): monitor.stop()


def test_seconds_out_of_range(tmp_path):
    for seconds, what in ((0, "seconds: got 0, wanted a number above 0"), (10**400, "wanted a number above 0, finite"), (1e-9, "seconds: got 1e-09, wanted a number ≥ 0.001<")): assert what in TrainingMonitor(tmp_path, seconds=seconds).box.value


@pytest.mark.parametrize("given, what", [((None,), "out: got 'None', wanted the folder of a run"), ((__file__,), "wanted the folder of a run"), (("x", None, "loss"), "positional"),
                                         ({"keys": "loss"}, "keys: got 'loss', wanted a list of names"), ({"keys": 3}, "keys: got 3, wanted a list of names"), ({"process": 5}, "process: got 5, wanted what start_run gives, or None"), ({"keys": [1]}, r"keys: got \[1\], wanted a list, each text"), ({"seconds": "x"}, "seconds: got 'x', wanted a number above 0")])
def test_what_no_monitor_can_be_made_of_is_said_in_its_place(tmp_path, given, what):
    monitor = TrainingMonitor(tmp_path, **given) if isinstance(given, dict) else TrainingMonitor(*given)
    assert monitor.box.value == sentence(monitor.refused) and re.search(what, str(monitor.refused))


@pytest.mark.parametrize("out, why", [("a" * 5000, "File name too long"), ("a/" * 3000, "File name too long"), ("a\0b", "embedded null byte"), (f"{__file__}/run", "Not a directory")], ids=["long name", "long path", "null", "below a file"])
def test_what_can_be_no_folder_is_named(out, why):
    "In one line, however long it is."
    said = str(TrainingMonitor(out).refused)
    assert re.fullmatch(r"out: got '.*" + re.escape(f" ({why}), wanted the folder of a run"), said) and len(said) < 300
    with pytest.raises(ValueError) as error: start_run("joint", out)
    assert str(error.value) == said


def test_a_run_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    said = TrainingMonitor(tmp_path).said.value
    assert "out: got " in said and "in which something cannot be read (Is a directory), wanted the folder of a run</span>" in said and "Errno" not in said
    assert "waiting" in TrainingMonitor(tmp_path / "to come").said.value


@pytest.mark.parametrize("shape", [(), (5,), (4, 3, 2)])
def test_labels_of_another_shape_are_said_and_watched_on(tmp_path, shape):
    log(tmp_path, {"step": 5, "loss": 2.0})
    save_checkpoint(tmp_path, 7, {"step": 7, "average": {"types.label.matrix": torch.zeros(shape)}})
    with pytest.raises(ValueError, match=r"checkpoint: got labels of shape .* in .*00000007.safetensors, wanted \[n,q\]"): zones_in(tmp_path)
    monitor = TrainingMonitor(tmp_path)
    assert 'role="alert"' in monitor.said.value and "update 7" in monitor.said.value and monitor.refresh() and list(monitor.figure.data[0].y) == [2.0]


def test_what_is_damaged_does_not_keep_a_run_alive(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    log(tmp_path, {"step": 5, "loss": 2.0})
    (tmp_path / "checkpoints").mkdir(); (tmp_path / "checkpoints" / "00000011.safetensors").write_bytes(b"nothing")
    monitor = TrainingMonitor(tmp_path, process)
    assert not monitor.refresh() and monitor.stop_button.disabled and "is damaged" in monitor.said.value and "ended, without a word" in monitor.said.value
    log(tmp_path, {"step": 11, "final": True})
    monitor = TrainingMonitor(tmp_path)
    assert not monitor.refresh() and "is damaged" in monitor.said.value and "finished" in monitor.said.value
    (tmp_path / "metrics.jsonl").write_text("nothing\n")
    assert not TrainingMonitor(tmp_path, process).refresh() and TrainingMonitor(tmp_path).refresh()


def test_the_sheet_of_the_end_is_shown(tmp_path):
    "It comes without an update of its own where nothing is evaluated on the way."
    log(tmp_path, {"step": 5, "loss": 2.0})
    monitor = TrainingMonitor(tmp_path)
    sheet(tmp_path, 5, "red")
    assert monitor.refresh() and monitor.samples.value == b""
    log(tmp_path, {"step": 5, "final": True})
    assert not monitor.refresh() and Image.open(io.BytesIO(monitor.samples.value)).getpixel((0, 0)) == (255, 0, 0) and monitor.samples.layout.visibility == "visible"


@pytest.mark.parametrize("cut, why", [(lambda whole: whole[:800], "got 800 bytes that make no image (image file is truncated"), (lambda whole: b"nothing", "got 7 bytes that make no image (nobody knows its format), wanted a PNG"), (lambda whole: b"", "got 0 bytes that make no image")], ids=["half", "no PNG", "empty"])
def test_a_damaged_sheet_is_said_and_the_one_before_stays(tmp_path, cut, why):
    "Until there is a whole one; everything else is shown."
    log(tmp_path, {"step": 5, "loss": 2.0}); sheet(tmp_path, 5, "red")
    monitor = TrainingMonitor(tmp_path)
    before = monitor.samples.value
    Image.effect_noise((64, 64), 90).save(later := tmp_path / "samples" / "00000010.png")
    whole = later.read_bytes()
    later.write_bytes(cut(whole))
    log(tmp_path, {"step": 10, "loss": 1.0})
    for _ in range(2): assert monitor.refresh() and f"samples/00000010.png: {why}" in monitor.said.value and "update 10" in monitor.said.value and list(monitor.figure.data[0].y) == [2.0, 1.0] and monitor.samples.value == before
    monitor.refresh(anew=True)
    assert base64.b64decode(monitor._repr_mimebundle_()["image/png"]).startswith(b"\x89PNG") and len(monitor.picture().axes) == 2
    later.write_bytes(whole)  # with no update of its own
    assert monitor.refresh() and monitor.samples.value == whole and 'role="alert"' not in monitor.said.value
    later.write_bytes(cut(whole))
    other = TrainingMonitor(tmp_path)
    assert why in other.said.value and other.samples.value == b"" and other.samples.layout.visibility == "hidden" and base64.b64decode(other._repr_mimebundle_()["image/png"]).startswith(b"\x89PNG")
    if cut(whole):
        with pytest.raises(ValueError, match="^" + re.escape(f"sheet: {why}")): draw_run([], sheet=cut(whole))


def test_panels_are_kept_and_filled_with_other_curves(tmp_path):
    "In one figure, by their names and seen whole; those that it has too many of are hidden and come back. Marks go when there are many points."
    log(tmp_path, {"step": 1, "loss": 2.0, "flow": 1.0})
    monitor = TrainingMonitor(tmp_path, keys=["loss"])
    figure, (drawn,) = monitor.figure, monitor.drawn.children
    assert drawn is figure and figure.data[0].mode == "lines+markers" and figure.layout.annotations[0].text == figure.data[0].name == "loss"
    figure.layout.yaxis.range = (0, 1)  # somebody looks closer
    monitor.state.keys = ["flow"]
    assert list(figure.data[0].y) == [1.0] and figure.layout.annotations[0].text == figure.data[0].name == "flow" and "flow" in figure.data[0].hovertemplate and figure.layout.yaxis.autorange
    monitor.state.keys = ["flow", "loss"]
    assert [title.text for title in figure.layout.annotations] == ["flow", "loss"] and [list(trace.y) for trace in figure.data] == [[1.0], [2.0]] and [trace.yaxis for trace in figure.data] == ["y", "y2"]
    low, high = figure.layout.yaxis2.domain
    assert low < high < figure.layout.yaxis.domain[0] and figure.layout.yaxis2.visible is not False and figure.layout.height == plotly_training_curves(monitor.lines, ["flow", "loss"], upright=True).layout.height
    log(tmp_path, *({"step": k, "loss": 2.0 / k, "flow": 1.0} for k in range(2, 41)))
    monitor.refresh()
    monitor.state.keys = ["loss"]
    assert [trace.visible for trace in figure.data] == [True, False] and figure.layout.yaxis2.visible is figure.layout.xaxis2.visible is False and len(figure.layout.annotations) == 1
    assert list(figure.data[0].x) == list(range(1, 41)) and figure.data[0].y[-1] == 0.05 and figure.data[0].mode == "lines" and figure.layout.yaxis.domain == (0, 1)
    monitor.state.keys = ["loss", "flow"]
    assert [title.text for title in figure.layout.annotations] == ["loss", "flow"] and [trace.visible for trace in figure.data] == [True, True] and figure.data[1].y[-1] == 1.0 and figure.layout.yaxis2.visible is not False
    assert monitor.figure is figure and monitor.drawn.children == (figure,) and [trace.line.color for trace in figure.data] == COLOURS[:2]
    state = figure.get_state()  # of a page that opens later
    assert [title["text"] for title in state["_widget_layout"]["annotations"]] == ["loss", "flow"] and [trace["name"] for trace in state["_widget_data"]] == ["loss", "flow"]
    monitor.state.keys = ["loss", "loss"]
    assert monitor.names == ["loss"]
    monitor.state.keys = ["nothing"]
    assert monitor.names == [] and not figure.layout.annotations and not any(len(trace.x) for trace in figure.data) and "no curve &#x27;nothing&#x27; so far" in monitor.said.value
    monitor.state.keys = ["flow"]
    assert [title.text for title in figure.layout.annotations] == ["flow"] and len(figure.data[0].x) == 40


def test_a_long_log_is_read_once_and_a_screen_gets_what_it_can_show(tmp_path, monkeypatch):
    "What is appended comes; a log that is shorter, or another one, is read anew; a run that goes on at an earlier update forgets what it has overtaken."
    log(tmp_path, *({"step": k, "loss": 1 / k, "flow": 1.0} for k in range(1, 40_001)))
    parsed, loads = [], json.loads
    monkeypatch.setattr(json, "loads", lambda text, **options: parsed.append(text) or loads(text, **options))
    monitor = TrainingMonitor(tmp_path)
    first, trace = len(parsed), lambda: monitor.figure.data[0]
    assert 40_000 <= first < 40_010 and 500 < len(trace().x) <= 1000 and trace().x[-1] == 40_000 and trace().y[-1] == 1 / 40_000
    monitor.refresh(); monitor.refresh(anew=True)
    assert len(parsed) - first < 10
    log(tmp_path, {"step": 40_001, "loss": 7.0, "flow": 1.0})
    monitor.refresh()
    assert len(parsed) - first < 15 and (trace().x[-1], trace().y[-1]) == (40_001, 7.0) and len(trace().x) <= 1000 and len(monitor.lines) == 40_001 and "update 40,001" in monitor.said.value
    log(tmp_path, {"resumed": 20}, {"step": 21, "loss": 3.0})
    monitor.refresh()
    assert list(trace().x) == list(range(1, 22)) and trace().y[-1] == 3.0
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 5.0}\n')
    monitor.refresh()
    assert list(trace().x) == [3] and list(trace().y) == [5.0]


def test_what_is_thinned_keeps_every_extreme_in_its_place_while_it_grows():
    "A spike is seen however long the curve has become, beginning and end as well; and no more than asked for."
    values = [1.0 + k % 7 / 100 for k in range(3000)]
    values[1000], values[1700] = 50.0, -9.0
    before = None
    for n in range(2490, 2530):
        steps, shown = thinned(list(range(1, n + 1)), values[:n])
        assert len(steps) <= 1000 and steps == sorted(set(steps)) and (steps[-1], shown[-1]) == (n, values[n - 1])
        assert [step for step, value in zip(steps, shown) if abs(value - 1) > 1] == [1001, 1701] and all(values[step - 1] == value for step, value in zip(steps, shown))
        assert before is None or steps[:600] == before
        before = steps[:600]
    assert thinned([1, 2], [3.0, 4.0]) == ([1, 2], [3.0, 4.0])
    lost = [0.0] * 3000
    lost[1500], lost[1501], lost[2999] = float("nan"), 50.0, -3.0
    assert 50.0 in thinned(list(range(3000)), lost)[1] and thinned(list(range(3000)), lost)[0][-1] == 2999 and min(thinned(list(range(2999)), lost[:2999])[1]) == 0.0  # beside what is no number, too
    for n in (1001, 1995, 4096, 100_000): assert 250 < len(thinned(list(range(n)), [float(k % 97) for k in range(n)])[0]) <= 1000


def test_a_sheet_that_is_a_folder_is_said(tmp_path):
    log(tmp_path, {"step": 5, "loss": 2.0})
    (tmp_path / "samples" / "00000005.png").mkdir(parents=True)
    monitor = TrainingMonitor(tmp_path)
    assert "samples/00000005.png: cannot be read (Is a directory), wanted a PNG" in monitor.said.value and "update 5" in monitor.said.value


def test_what_is_no_number_is_left_out_of_the_picture_as_well(tmp_path):
    log(tmp_path, {"step": 1, "loss": 1.0}, {"step": 2, "loss": [1, 2]}, {"step": 3, "loss": None}, {"step": 4, "loss": 0.5})
    monitor = TrainingMonitor(tmp_path)
    assert base64.b64decode(monitor._repr_mimebundle_()["image/png"]).startswith(b"\x89PNG")
    assert monitor.picture().axes[0].lines[0].get_xydata().tolist() == [[1, 1.0], [4, 0.5]] and list(monitor.figure.data[0].y) == [1.0, 0.5]


def ended(code, words=0):
    "A process that has ended by itself, what it says beginning at `words` of the log."
    process = RunProcess([sys.executable, "-c", f"import os; os.kill(os.getpid(), {-code}) if {code} < 0 else os._exit({code})"])
    process.wait(60)
    process.words = words
    return process


def test_how_a_process_has_ended_is_its_own_story(tmp_path):
    "The log holds what earlier ones have said, and who is killed says nothing."
    before = "lzn joint: terminated, everything is saved; to go on: …\n"
    log(tmp_path, {"step": 5, "loss": 2.0})
    (tmp_path / "log.txt").write_text(before)
    told = lambda code: TrainingMonitor(tmp_path, ended(code, len(before.encode()))).said.value
    assert "update 5: killed (signal 9), no checkpoint was written yet<" in told(-9)
    save_checkpoint(tmp_path, 7, {"step": 7})
    assert "update 7, last checkpoint 7: killed (signal 9)<" in told(-9) and "ended, without a word" in told(1)
    with (tmp_path / "log.txt").open("a") as file: file.write("lzn joint: no memory\n")
    assert "ended, lzn joint: no memory<" in told(2)


def test_an_earlier_finish_is_not_that_of_this_process(tmp_path):
    log(tmp_path, {"step": 5, "final": True})
    (tmp_path / "log.txt").write_text("lzn joint: out: already holds a run\n")
    failed = TrainingMonitor(tmp_path, ended(2))
    assert "update 5, last checkpoint none yet: finished" not in failed.said.value and "already holds a run" in failed.said.value and not failed.refresh()
    assert "finished" in TrainingMonitor(tmp_path, ended(0)).said.value and "finished" in TrainingMonitor(tmp_path).said.value
    waits = RunProcess([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        monitor = TrainingMonitor(tmp_path, waits)
        assert "finished" not in monitor.said.value and monitor.refresh() and not monitor.stop_button.disabled
    finally: waits.kill(); waits.wait(60)


@pytest.mark.parametrize("code, how", [(143, "ended"), (-15, "killed (signal 15)")])
def test_who_is_ended_at_once_has_saved_nothing(tmp_path, code, how):
    "The command says that everything is saved, which is true of everything that there is."
    (tmp_path / "log.txt").write_text("lzn joint: terminated, everything is saved; to go on: …\n")
    assert f"update 0: {how}, nothing was written yet<" in TrainingMonitor(tmp_path, ended(code)).said.value


def test_a_silent_run_may_have_been_stopped(tmp_path):
    log(tmp_path, {"step": 5, "loss": 2.0})
    monitor = TrainingMonitor(tmp_path)
    assert "running" in monitor.said.value
    os.utime(tmp_path / "metrics.jsonl", (then := time.time() - 7200,) * 2)
    assert monitor.refresh() and f"nothing new since {time.strftime('%Y-%m-%d %H:%M', time.localtime(then))}, it may have been stopped" in monitor.said.value and "running" not in monitor.said.value
    save_checkpoint(tmp_path, 6, {"step": 6})
    assert monitor.refresh() and "running" in monitor.said.value


def test_curves_that_there_are_none_of_are_said(tmp_path):
    monitor = TrainingMonitor(tmp_path, keys=["valid_score"])
    assert "no curve" not in monitor.said.value  # nor any other
    log(tmp_path, {"step": 5, "loss": 2.0})
    monitor.refresh()
    assert "no curve &#x27;valid_score&#x27; so far, wanted some of [&#x27;loss&#x27;]" in monitor.said.value
    log(tmp_path, {"step": 10, "loss": 1.0, "valid_score": 0.3})
    monitor.refresh()
    assert "no curve" not in monitor.said.value


def test_the_picture_of_a_monitor_shows_what_it_shows(tmp_path, monkeypatch):
    "Also before there is anything; a notebook gets it beside the widget."
    monitor = TrainingMonitor(tmp_path)
    axis, = monitor.picture().axes
    assert axis.get_title(loc="left") == "no figures yet"
    log(tmp_path, {"step": 5, "loss": 2.0, "flow": 1.0}, {"step": 10, "loss": 1.0, "flow": 0.5}); sheet(tmp_path, 5, "red")
    anchors = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    save_checkpoint(tmp_path, 10, {"step": 10, "average": {"types.label.matrix": anchors}})
    monitor.refresh()
    loss, flow, zones, drawn = monitor.picture().axes
    assert loss.lines[0].get_xydata().tolist() == [[5, 2.0], [10, 1.0]] and flow.lines[0].get_xydata().tolist() == [[5, 1.0], [10, 0.5]] and drawn.images[0].get_array()[0, 0].tolist() == [255, 0, 0]
    assert torch.allclose(torch.as_tensor(zones.collections[-1].get_offsets().data), plane_of(anchors).shadow(anchors).double(), atol=1e-5)
    monitor.state.keys = ["flow"]
    assert [axis.get_title(loc="left") for axis in monitor.picture().axes][:1] == ["flow"] and len(monitor.picture().axes) == 3
    assert len(draw_run(monitor.lines).axes) == 2
    given = []
    monkeypatch.setattr("IPython.display.display", lambda *what, **how: given.append((what, how)))

    async def show(): monitor._ipython_display_(); monitor.watching.cancel()

    asyncio.run(show())
    (bundle,), how = given[0]
    assert how == {"raw": True} and base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG") and "model_id" in bundle["application/vnd.jupyter.widget-view+json"]
    monitor = TrainingMonitor(5)
    assert "model_id" in monitor._repr_mimebundle_()["application/vnd.jupyter.widget-view+json"] and monitor.refused


def test_a_monitor_that_is_shown_twice_watches_once(tmp_path, monkeypatch):
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: None)

    async def show():
        monitor = TrainingMonitor(tmp_path, seconds=0.05)
        for _ in range(3): monitor._ipython_display_(); await asyncio.sleep(0.1)
        assert len(asyncio.all_tasks()) == 2  # this one, and the one that watches
        log(tmp_path, {"step": 5, "final": True})
        await asyncio.wait_for(monitor.watching, 60)
        monitor._ipython_display_()
        await asyncio.wait_for(monitor.watching, 60)

    asyncio.run(show())


def test_where_no_event_loop_runs_a_monitor_is_shown_as_it_is(tmp_path, monkeypatch, recwarn):
    "Nobody could watch."
    given = []
    monkeypatch.setattr("IPython.display.display", lambda *what, **how: given.append(what))
    monitor = TrainingMonitor(tmp_path)
    monitor._ipython_display_()
    gc.collect()
    assert len(given) == 1 and "image/png" in given[0][0] and monitor.watching is None and not [one for one in recwarn if "never awaited" in str(one.message)]


def test_curves_that_are_chosen_in_a_thread_with_a_loop_of_its_own_are_drawn_where_the_monitor_was_made(tmp_path):
    log(tmp_path, {"step": 5, "loss": 2.0, "flow": 1.0})
    drawn = []

    async def ask():
        monitor = TrainingMonitor(tmp_path)
        draw, monitor.show_curves = monitor.show_curves, lambda lines: (drawn.append(threading.get_ident()), draw(lines))
        async def elsewhere(): monitor.choice.value = ("flow",)
        other = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        other.start()
        until = time.time() + 60
        while (other.is_alive() or not drawn) and time.time() < until: await asyncio.sleep(0.02)
        return monitor.names

    assert asyncio.run(ask()) == ["flow"] and set(drawn) == {threading.get_ident()}


def test_a_run_is_started_watched_and_stopped(tmp_path):
    "The button ends it at a checkpoint; watching ends by itself."
    process = start_run("joint", tmp_path / "run", "--preset", "tiny", "--set", "steps=999999", "--set", "log_every=2")
    try:
        monitor = TrainingMonitor(tmp_path / "run", process, seconds=0.05)
        assert not monitor.stop_button.disabled

        async def go():
            watching = asyncio.ensure_future(monitor.watch())
            until = time.time() + 120
            while run_status(tmp_path / "run")["step"] < 10 and time.time() < until: await asyncio.sleep(0.1)
            monitor.stop()
            await asyncio.wait_for(watching, 120)

        asyncio.run(go())
        where = run_status(tmp_path / "run")
        assert process.returncode == 143 and where["saved"] == where["step"] >= 10 and monitor.stop_button.disabled and "everything is saved" in monitor.said.value
    finally: process.kill()


def test_a_run_that_cannot_begin_says_why(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text("… of an earlier one\n")
    process = start_run("joint", tmp_path / "run", "--preset", "tiny", "--set", "stepps=3")
    monitor = TrainingMonitor(tmp_path / "run", process)
    process.wait(120)
    assert process.words == len("… of an earlier one\n".encode())
    assert not monitor.refresh() and "stepps" in monitor.said.value and "steps" in monitor.said.value
