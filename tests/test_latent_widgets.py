"""The playground and its views without a browser: state and what is shown of it, files, drawings, and what is said when something is wrong."""
import asyncio
import base64
import builtins
import io
import itertools
import json
import re
import shutil
import subprocess
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from traitlets import TraitError

from lzn_nb.data import load_data
from lzn_nb.embedding_widgets import EmbeddingExplorer
from lzn_nb.latent_views import PLANES, Trained, border_light, draw_slice, grid_places, look_at, look_parts, plane_for, read_drawing, reading_parts, slice_parts, slice_picture, upload_pixels
from lzn_nb.latent_widgets import LatentPlayground, images_html, pixel_pad
from lzn_nb.network import ImageType, LabelType, LatentZoningNetwork
from lzn_nb.nets import UNetDecoder, UNetEncoder
from lzn_nb.plots import figure_png
from lzn_nb.saved import load_pretrained
from lzn_nb.scenarios.joint import JOINT_PRESETS, joint_network
from lzn_nb.scenarios.representation import REPRESENTATION_PRESETS, representation_network
from lzn_nb.widgets import sentence


@pytest.fixture(scope="module")
def trained(): return Trained()


@pytest.fixture
def playground(): return LatentPlayground(side=4, samples=2)


def png(image, kind="PNG"):
    image.save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


def seen_map(playground): return playground.figure.layout.images[0].source


def a_digit(trained, label=4): return ((trained.images[trained.labels == label][0] + 1) / 2).flatten().tolist()


# -- views --------------------------------------------------------------------------------------
def test_planes_go_through_what_they_are_asked_to(trained):
    plane = plane_for(trained, "zones", (3, 5, 8))
    for k in (3, 5, 8): assert torch.allclose(plane.points(plane.shadow(trained.centres[k][None])), trained.centres[k], atol=1e-4)
    plane = plane_for(trained, "images", (0, 700, 12))
    for k in (0, 700, 12): assert torch.allclose(plane.points(plane.shadow(trained.image_centres[k][None])), trained.image_centres[k], atol=1e-3)
    assert int(trained.zones.decode(trained.image_centres[700][None])) == 700
    assert plane_for(trained, "origin").origin.norm() == 0


def test_planes_of_data_and_of_chance(trained):
    x = trained.zones.encode(alpha=0.0)
    _, _, axes = torch.pca_lowrank(x, 8, niter=20)
    plane = plane_for(trained, "data")
    assert plane.origin.norm() == 0 and torch.allclose((plane.axes @ axes[:, :2]).abs(), torch.eye(2), atol=0.01)
    by_chance = [plane_for(trained, "random", [seed]) for seed in (0, 1, 0)]
    for plane in by_chance: assert torch.allclose(plane.axes @ plane.axes.T, torch.eye(2), atol=1e-5) and plane.origin.norm() == 0
    assert torch.equal(by_chance[0].axes, by_chance[2].axes) and not torch.allclose(by_chance[0].axes, by_chance[1].axes)


@pytest.mark.parametrize("given, what", [(("zones", (3, 3, 8)), "zones: got 3, 3, 8, wanted three different ones"), (("images", (3, 3, 8)), "images: got 3, 3, 8, wanted three different ones"), (("zones", (1, 2)), "wanted three different ones"),
                                         (("images", (0, 1, 5000)), "images: got number 5000, wanted 0 to 1257"), (("zones", (0, 1, -1)), "zones: got number -1, wanted 0 to 9"), (("north",), "plane: got 'north', wanted one of")])
def test_planes_that_cannot_be_laid_are_named(trained, given, what):
    with pytest.raises(ValueError, match=what): plane_for(trained, *given)


def test_a_map_is_completed_from_the_top(trained):
    _, noise = trained.noises(0, 1)
    parts = list(slice_parts(trained, plane_for(trained, "origin"), noise, side=5, part=10, half=2.0))
    assert [len(part.images) for part in parts] == [0, 10, 20, 25] and parts[0].places[0, 0].tolist() == pytest.approx([-1.6, 1.6]) and parts[0].places[-1, -1].tolist() == pytest.approx([1.6, -1.6])
    last = parts[-1]
    z = last.plane.points(last.places[1, 3][None])
    assert int(trained.label_zones.decode(z)) == int(last.owner[1, 3])
    assert torch.allclose(last.images[8], trained.network.decode("image", z, noise=noise, steps=4)[0], atol=1e-4)
    empty, full = (slice_picture(part, 10) for part in (parts[0], last))
    assert empty.shape == full.shape and full.min() >= 0 and full.max() <= 1 and not torch.equal(empty, full)
    assert torch.equal(grid_places(1.0, 2), torch.tensor([[[-0.5, 0.5], [0.5, 0.5]], [[-0.5, -0.5], [0.5, -0.5]]]))


@pytest.mark.parametrize("given, what", [({"side": 0}, "side: got 0"), ({"half": 0.0}, "half: got 0"), ({"time": 2.0}, "time: got 2"), ({"part": 0}, "part: got 0")])
def test_maps_that_cannot_be_drawn_are_named(trained, given, what):
    with pytest.raises(ValueError, match=what): next(slice_parts(trained, plane_for(trained, "origin"), trained.noises(0, 1)[1], **given))


def test_the_nearest_image_is_the_one_whose_zone_it_is(trained):
    z = trained.zones.encode([17], alpha=0.5, generator=torch.Generator().manual_seed(0))
    seen = look_at(trained, z, trained.noises(0, 1)[1], near=5)
    assert int(seen.near[0]) == 17 and seen.distances[0] == 0 and torch.equal(seen.distances, seen.distances.sort().values) and seen.samples.shape == (1, 1, 8, 8)


def test_noise_is_the_same_for_the_first(trained):
    for few, many in zip(trained.noises(3, 1), trained.noises(3, 5)): assert torch.equal(few[0], many[0])
    assert not torch.equal(trained.noises(3, 1)[0], trained.noises(4, 1)[0])
    for q, shape in ((10, (1, 10, 10)), (17, (3, 5, 7))):  # sizes that are no multiples of the blocks of a generator
        other = SimpleNamespace(centres=torch.zeros(3, q), image=SimpleNamespace(shape=shape))
        for n in (2, 5):
            for few, many in zip(Trained.noises(other, 3, 1), Trained.noises(other, 3, n)): assert torch.equal(few[0], many[0]) and many.shape[0] == n and not torch.equal(many[0], many[1])


def test_a_training_image_is_read_as_its_label(trained):
    read = read_drawing(trained, trained.images[:1], draws=32)
    assert read.label == int(trained.labels[0]) == int(read.shares.argmax()) and float(read.shares.sum()) == pytest.approx(1.0) and (read.again - read.image).square().mean() < 0.2
    with pytest.raises(ValueError, match=r"image: got torch.float32 of shape \[1, 1, 9, 9\]"): read_drawing(trained, torch.zeros(1, 1, 9, 9))
    with pytest.raises(ValueError, match="draws: got 0"): read_drawing(trained, trained.images[:1], draws=0)


def test_networks_that_do_not_fit_are_named(trained):
    label = LabelType(10, 8)
    blind = LatentZoningNetwork({"image": ImageType(None, UNetDecoder(1, 8, latent_dim=8, width=8, mults=(1,), blocks=1), (1, 8, 8), 8), "label": label})
    dumb = LatentZoningNetwork({"image": ImageType(UNetEncoder(1, 8, 8, width=8, mults=(1,), blocks=1), None, (1, 8, 8), 8), "label": label})
    for network, what in ((LatentZoningNetwork({"label": label}), r"got one of \['label'\], wanted"), (blind, "have no encoder"), (dumb, "have no decoder"), ("digits", "got one of str"), (joint_network(JOINT_PRESETS["tiny"], (1, 8, 8), 7), "got 10 classes, wanted 7"), (joint_network(JOINT_PRESETS["tiny"], (3, 8, 8), 10), r"got images of shape \[1, 8, 8\], wanted \[3, 8, 8\]")):
        with pytest.raises(ValueError, match=what): Trained(network)
        widget = LatentPlayground(network)
        assert widget.box.value == sentence(widget.refused) and re.search(what, str(widget.refused))  # in the place of the widget
    nameless = representation_network(REPRESENTATION_PRESETS["tiny"], (1, 8, 8), 10)
    assert "network: got one of ['image'], wanted a LatentZoningNetwork of images and labels" in str(LatentPlayground(nameless).refused)
    with pytest.raises(ValueError, match="data: got 'nothing'"): Trained(data="nothing")
    Trained(dumb, limit=20, parts=("encoder",))  # nobody asks it to draw


def test_names_are_shown_as_they_are(trained):
    "Neither as formulas, on paper and on the screen, nor as tags."
    from dataclasses import replace
    odd = tuple(f"{name} $x_$ <b>" for name in trained.data.classes)
    playground = LatentPlayground(data=replace(trained.data, classes=odd), side=2, samples=1, plane="zones", corners=[3, 5, 8])
    assert base64.b64decode(playground._repr_mimebundle_()["image/png"]).startswith(b"\x89PNG")
    shown = [*playground.figure.data[1].text, *playground.bars.data[0].x, *playground.bars.data[1].x, *(row[0] for row in playground.figure.data[0].customdata)]
    assert len(shown) == 27 and all(text.endswith(" &#36;x_&#36; &lt;b&gt;") for text in shown)
    assert figure_png(draw_slice(playground.slice, 10, title="costs $x_$"))


def test_what_does_not_fit_is_a_sentence_in_the_place_of_the_playground(trained):
    from dataclasses import replace
    unlabelled = replace(trained.data, classes=("faces",))
    bare = {name: replace(trained.data, **{name: replace(getattr(trained.data, name), labels=None)}) for name in ("train", "valid", "test")}
    nobodys = replace(trained.data, train=replace(trained.data.train, labels=torch.full_like(trained.data.train.labels, -1)))
    line = LatentZoningNetwork({"image": ImageType(UNetEncoder(1, 8, 1, width=8, mults=(1,), blocks=1), UNetDecoder(1, 8, latent_dim=1, width=8, mults=(1,), blocks=1), (1, 8, 8), 1), "label": LabelType(10, 1)})
    for given, what in (((None, unlabelled), "data: got images without labels .all are faces., wanted labels of 10 classes"), *(((None, data), f"data: got images without labels .those of .*{name}.* are None., wanted labels of 10 classes, those of the network") for name, data in bare.items()), ((None, nobodys), "labels of the training images: got values from -1 to -1, wanted 0 to 9"), ((line,), "got 1 dimension, wanted at least 2 to lay a plane through"), ((None, "folder:/nowhere/at/all"), "/nowhere/at/all")):
        widget = LatentPlayground(*given)
        assert 'role="alert"' in widget.box.value and re.search(what, widget.box.value) and "model_id" in widget._repr_mimebundle_()["application/vnd.jupyter.widget-view+json"], widget.box.value


@pytest.mark.parametrize("data, what", [(f"folder:{'a' * 5000}", ", which cannot be looked into (File name too long); wanted a folder of images"), ("a" * 5000, 'wanted one of "digits"')], ids=["folder", "name"])
def test_names_of_data_that_are_too_long_are_a_short_sentence(data, what):
    said = str(LatentPlayground(data=data).refused)
    assert said.startswith("data: ") and what in said and len(said) < 700 and "Errno" not in said


# -- files --------------------------------------------------------------------------------------
def test_files_become_pixels():
    half = Image.new("L", (40, 40), 255); half.paste(0, (0, 0, 40, 20))
    pixels = upload_pixels(png(half), "half.png", (1, 8, 8))
    assert pixels.shape == (1, 8, 8) and pixels[0, 0].max() == 0 and pixels[0, -1].min() == 1
    red = upload_pixels(png(Image.new("RGB", (60, 30), "red"), "JPEG"), "red.jpg", (3, 4, 4))
    assert red.shape == (3, 4, 4) and red[0].min() > 0.95 and red[1:].max() < 0.05
    assert upload_pixels(png(Image.new("RGBA", (9, 9), (0, 0, 0, 0))), "clear.png", (1, 4, 4)).min() == 1  # nothing on white
    assert upload_pixels(png(Image.new("P", (9, 9))), "palette.png", (1, 4, 4)).shape == (1, 4, 4)
    for ink in (0, 255):  # a stroke on a transparent page is seen, dark or light
        stroke = Image.new("RGBA", (40, 40), (0, 0, 0, 0)); stroke.paste((ink, ink, ink, 255), (15, 5, 25, 35))
        pixels = upload_pixels(png(stroke), "stroke.png", (1, 8, 8))
        assert pixels[0, 4, 4] == ink / 255 and pixels[0, 0, 0] == 1 - ink / 255
    faint = Image.new("RGBA", (40, 40), (0, 0, 0, 0)); faint.paste((255, 255, 255, 100), (15, 5, 25, 35))
    assert upload_pixels(png(faint), "faint.png", (1, 8, 8))[0, 4, 4] > 0.3
    tall = Image.new("L", (20, 80), 200); tall.putpixel((0, 0), 0); tall.paste(0, (5, 0, 15, 10)); tall.paste(0, (5, 70, 15, 80))
    pixels = upload_pixels(png(tall), "tall.png", (1, 8, 8))[0]  # the ends are still there, and its own grey beside it
    assert (pixels[[0, -1], 3:5] < 0.5).all() and torch.allclose(pixels[:, [0, 1, 6, 7]], torch.tensor(200 / 255))
    for long in (Image.new("L", (100, 1)), Image.new("L", (1, 100))):  # a line is a line, not nothing
        long.paste(255, (0, 0, max(1, long.width // 2), max(1, long.height // 2)))
        pixels = upload_pixels(png(long), "line.png", (1, 8, 8))[0]
        pixels = pixels if long.width > 1 else pixels.T
        assert pixels[4].tolist() == [1.0] * 4 + [0.0] * 4 and pixels[[0, -1]].unique().numel() == 1
    frame = torch.zeros(1, 4, 4); frame[:, 1:3, 1:3] = 1
    assert border_light(frame) == 0 and border_light(1 - frame) == 1


@pytest.mark.parametrize("content, what", ids=["empty", "text", "cut off", "large", "16 bits"], argvalues=[(b"", "nobody knows its format"), (b"hello", "x cannot be read as an image"), (png(Image.effect_noise((64, 64), 90))[:2000], "cannot be read"), (b"0" * 20_000_001, "x has 20,000,001 bytes, wanted 20,000,000 at most"), (png(Image.new("I;16", (8, 8))), "more than 8 bits a channel")])
def test_files_that_hold_no_image_are_refused(content, what):
    with pytest.raises(ValueError, match=what): upload_pixels(content, "x", (1, 8, 8))


def test_images_that_are_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    for side in (8, 40):
        with pytest.raises(ValueError, match="cannot be read as an image"): upload_pixels(png(Image.new("L", (side, side))), "x", (1, 8, 8))


# -- the playground -----------------------------------------------------------------------------
def test_coordinates_labels_and_noise_change_what_is_shown(playground):
    s, shown = playground.state, playground.samples
    point, u, v, label, alpha, seed, time = playground.controls
    before = shown.value
    u.value, v.value = 2.0, -1.0
    assert (s.u, s.v, s.source) == (2.0, -1.0, "point") and shown.value != before and list(playground.figure.data[2].x) == [2.0]
    before = shown.value
    seed.value = 3
    assert s.seed == 3 and shown.value != before
    label.value = 7
    assert s.source == "label" == point.value and "draws from the zone of 7" in shown.value and "<b>7</b>" in playground.said.value and len(playground.figure.data[2].x) == 0
    before = shown.value
    alpha.value = 0.0
    assert shown.value != before and not alpha.disabled
    time.value = 1.0
    assert max(playground.bars.data[0].y) == 1.0 and "t = 1.00" in playground.said.value
    point.value = "point"
    assert alpha.disabled and "This point" in playground.said.value


def test_a_click_looks_at_the_cell(playground):
    playground.go_to(*playground.slice.places[0, 3].tolist())
    assert (playground.state.u, playground.state.v) == (3.0, 3.0) and playground.controls[1].value == 3.0
    assert playground.seen.label == int(playground.slice.owner[0, 3])


def test_planes_and_reach_change_the_map(playground):
    before, (plane, corners, picked, turn, half) = seen_map(playground), playground.slice_controls
    half.value = 2.0
    assert seen_map(playground) != before and tuple(playground.figure.layout.xaxis.range) == (-2.0, 2.0) and "16 of 16" in playground.mapped.value
    before = seen_map(playground)
    plane.value = "zones"
    assert seen_map(playground) != before and tuple(playground.figure.data[1].text) == ("0", "1", "2")
    before = seen_map(playground)
    corners.children[0].value = 5
    assert playground.state.corners == [5, 1, 2] and seen_map(playground) != before
    before = seen_map(playground)
    corners.children[0].value = 1
    assert 'role="alert"' in playground.mapped.value and "wanted three different ones" in playground.mapped.value and seen_map(playground) == before
    playground.state.corners = [7, 8, 9]
    assert [corner.value for corner in corners.children] == [7, 8, 9] and 'role="status"' in playground.mapped.value


def test_no_two_controls_of_a_playground_have_the_same_label(playground):
    plane, corners, picked, turn, half = playground.slice_controls
    labels = [control.description for control in (plane, *corners.children, *picked.children, turn, half, *playground.controls)]
    assert all(labels) and len(set(labels)) == len(labels), labels


def test_images_data_and_chance_lay_planes_too(playground):
    s, (plane, corners, picked, turn, half) = playground.state, playground.slice_controls
    shown = lambda: [box.layout.display != "none" for box in (corners, picked, turn)]
    assert shown() == [False, False, False] and [name for _, name in plane.options] == list(PLANES)
    seen = {seen_map(playground)}
    for kind, there in (("data", [False, False, False]), ("images", [False, True, False]), ("random", [False, False, True])):
        plane.value = kind
        assert s.plane == kind and shown() == there and seen_map(playground) not in seen and "16 of 16" in playground.mapped.value
        seen.add(seen_map(playground))
    turn.value = 7
    assert s.turn == 7 and seen_map(playground) not in seen
    picked.children[1].value = 40
    assert s.plane == "images" == plane.value and s.picked == [0, 40, 2] and tuple(playground.figure.data[1].text) == ("0", "40", "2")
    u, v = (float(getattr(playground.figure.data[1], name)[1]) for name in "xy")
    s.u, s.v = u, v
    assert int(playground.seen.near[0]) == 40  # the centre of its zone lies in its zone
    picked.children[1].value = 2
    assert "images: got 0, 2, 2, wanted three different ones" in playground.mapped.value and "wanted three different ones" in playground.said.value
    for control in (plane, *corners.children, *picked.children, turn, half): assert control.description and (control.tooltip or "title=" in control.description)


def test_a_drawing_is_read_and_wiped(playground):
    s, pad, digit = playground.state, playground.pad, a_digit(playground.trained)
    s.source = "drawing"
    assert 'role="alert"' in playground.said.value and "paint on the pad" in playground.said.value
    pad.stroke = [pad.sheet, *digit]
    assert s.source == "drawing" and "<b>4</b>" in playground.heard.value and "reconstruction" in playground.again.value and "its nearest anchor" in playground.said.value and playground.bars.data[1].visible
    assert s.drawing == digit and int(playground.seen.near[0]) == int((playground.trained.labels == 4).nonzero()[0, 0])
    playground.turn()
    assert s.drawing == pytest.approx([1 - p for p in digit]) and pad.pixels == pytest.approx(s.drawing)
    sheet = pad.sheet
    playground.wipe()
    assert s.drawing == [] and pad.sheet > sheet and not any(pad.pixels) and playground.heard.value == "" and s.source == "point" and 'role="status"' in playground.said.value and not playground.bars.data[1].visible
    pad.stroke = [sheet, *digit]  # late, and meant for the sheet before
    assert s.drawing == [] and not any(pad.pixels)
    s.drawing = [0.5] * 7
    assert "drawing: got 7 numbers, wanted 64" in playground.heard.value == playground.said.value
    assert playground.samples.value == playground.near.value == "" and len(playground.bars.data[0].y) == 0 and not playground.bars.data[1].visible  # nothing is left of what was there before
    with pytest.raises(TraitError): s.drawing = [2.0]


def test_nobody_is_alarmed_while_a_drawing_is_read():
    "Neither at the first one, nor where nothing is left of it, whatever is looked at; an empty sheet is no drawing."
    told = []

    async def ask():
        playground = LatentPlayground(side=3, samples=1)
        playground.said.observe(lambda change: told.append(change.new), "value")
        s, digit = playground.state, a_digit(playground.trained)
        for change in (lambda: s.set_trait("drawing", digit), playground.wipe, lambda: s.set_trait("drawing", digit), lambda: s.set_trait("label", 3), playground.wipe,
                       lambda: s.set_trait("drawing", [1.0] * 64), playground.turn, lambda: s.set_trait("drawing", digit)):
            change()
            while playground.read.waiting or playground.look.waiting or playground.place.busy: await asyncio.sleep(0.02)
            yield s.source, playground.samples.value

    async def sources(): return [(source, "drawing&#x27;s zone" in samples) async for source, samples in ask()]
    found = asyncio.run(sources())
    assert [source for source, _ in found] == ["drawing", "point", "drawing", "label", "label", "drawing", "point", "drawing"], found
    assert [drawn for _, drawn in found] == [source == "drawing" for source, _ in found] and told and not any('role="alert"' in said for said in told)


def test_a_drawing_is_read_in_two_parts_and_the_last_one_wins(trained):
    "What it is read as and its draws are there before the shares; who draws meanwhile gets what belongs to the newest drawing."
    fresh = [(part.label, part.shares is None, part.written) for part in reading_parts(trained, trained.images[:1])]
    assert fresh == [(int(trained.labels[0]), True, ""), (int(trained.labels[0]), False, "")] and torch.equal(read_drawing(trained, trained.images[:1]).shares, list(reading_parts(trained, trained.images[:1]))[1].shares)
    told = []

    async def ask():
        playground = LatentPlayground(side=1, samples=1)
        s, digit = playground.state, a_digit(playground.trained)
        playground.map.now()
        playground.heard.observe(lambda change: told.append(change.new), "value")
        s.drawing = digit
        while not playground.hear.busy: await asyncio.sleep(0.002)
        assert "is read as <b>4</b>.<" in told[-1] and "reconstruction" in playground.again.value and "agree" not in told[-1] and playground.reading.shares is None
        while playground.hear.busy: await asyncio.sleep(0.002)
        shares = playground.reading.shares
        assert f"of 64 draws from its whole zone {shares[4]:.0%} agree" in told[-1] and "drawing&#x27;s zone" in playground.samples.value
        assert playground.bars.data[1].visible and playground.bars.data[1].y == pytest.approx(shares.numpy())
        s.drawing = digit[::-1]
        while not playground.hear.busy: await asyncio.sleep(0.002)
        playground.wipe()
        while playground.hear.busy or playground.read.waiting or playground.look.waiting or playground.place.busy: await asyncio.sleep(0.002)
        assert told[-1] == "" and sum("agree" in said for said in told) == 1 and playground.reading is None and not playground.bars.data[1].visible

    asyncio.run(ask())


def test_a_place_is_looked_at_in_parts_and_the_last_one_wins(trained):
    "What it is read as is there before its samples; who asks meanwhile gets what belongs to the newest place, and a complaint leaves nothing."
    z, noise = trained.centres[[3]].repeat(2, 1), trained.noises(0, 2)[1]
    first, last = look_parts(trained, z, noise)
    assert first.samples is None and last.label == first.label == 3 and torch.equal(last.samples, look_at(trained, z, noise).samples) and torch.equal(last.near, first.near)

    async def ask():
        playground = LatentPlayground(side=1, samples=2, source="label", label=3)
        playground.map.now()
        before = playground.samples.value
        playground.state.label = 4
        while not playground.place.busy: await asyncio.sleep(0)
        assert "read as <b>4</b>" in playground.said.value and playground.seen.samples is None and playground.samples.value == before and not playground.picture().axes[1].images
        while playground.place.busy: await asyncio.sleep(0)
        assert playground.samples.value != before and "zone of 4" in playground.samples.value and len(playground.seen.samples) == 2
        playground.state.label = 5
        while not playground.place.busy: await asyncio.sleep(0)
        drawn = []
        playground.samples.observe(lambda change: drawn.append(change.new), "value")
        playground.state.label = 6  # the samples that come next are still of the other
        while playground.look.waiting or playground.place.busy: await asyncio.sleep(0.002)
        assert len(drawn) == 2 and "zone of 5" in drawn[0] and "zone of 6" in drawn[1] == playground.samples.value and "read as <b>6</b>" in playground.said.value
        playground.state.label = 7
        while not playground.place.busy: await asyncio.sleep(0)
        playground.state.source = "drawing"
        while playground.look.waiting or playground.place.busy: await asyncio.sleep(0.002)
        assert 'role="alert"' in playground.said.value and playground.samples.value == playground.near.value == "" and playground.seen is None

    asyncio.run(ask())


def test_files_are_drawn_or_refused(playground):
    page = Image.new("L", (80, 80), 255); page.paste(0, (30, 10, 50, 70))
    playground.take("one.png", png(page))
    drawing = torch.tensor(playground.state.drawing).reshape(8, 8)
    assert drawing[0].max() == 0 and drawing[4, 3:5].max() == 1 and playground.pad.pixels == playground.state.drawing and "read as" in playground.heard.value  # light on dark, like the digits
    before = playground.state.drawing
    playground.upload.value = ({"name": "<b>.png", "type": "image/png", "size": 3, "content": memoryview(b"bad"), "last_modified": datetime.now()},)
    assert playground.upload.value == () and 'role="alert"' in playground.unread.value and "&lt;b&gt;.png cannot be read" in playground.unread.value and playground.state.drawing == before
    for blank in (Image.new("L", (9, 9), 255), Image.new("L", (9, 9), 0), Image.new("RGBA", (9, 9), (0, 0, 0, 0))):
        playground.take("blank.png", png(blank))
        assert "blank.png is of one tone" in playground.unread.value and playground.state.drawing == before and "read as" in playground.heard.value
    playground.state.label = 3
    playground.take("one.png", png(page))  # the same once more: no change, but it is meant to be seen
    assert playground.state.source == "drawing" and playground.unread.value == "" and "drawing&#x27;s zone" in playground.samples.value
    playground.wipe()
    assert playground.unread.value == ""
    for sheet in ([], [0.0] * 64):
        playground.state.drawing = sheet
        playground.turn()
        assert not any(playground.state.drawing)  # of nothing there is no negative


@pytest.mark.parametrize("name, value", [("seed", 3), ("time", 0.45), ("u", 0.5)])
def test_what_was_asked_for_goes_before_the_images_of_the_map(name, value):
    "Noise and t change both; u is asked for while the map is drawn."
    async def ask():
        playground, order = LatentPlayground(side=6, samples=1), []
        while playground.map.busy: await asyncio.sleep(0.01)
        tell, place = playground.tell_map, playground.place.make
        playground.tell_map = lambda more: (order.append(len(playground.slice.images)), tell(more))
        playground.place.make = lambda: (order.append("place") for _ in place())
        if name == "u": playground.state.half = 2.0
        setattr(playground.state, name, value)
        while playground.map.busy: await asyncio.sleep(0.01)
        assert order == [0, "place", "place", 5, 10, 15, 20, 25, 30, 35, 36]

    asyncio.run(ask())


def test_the_map_comes_in_parts_and_the_last_request_wins():
    async def ask():
        playground = LatentPlayground(side=6, samples=1)
        while playground.map.busy: await asyncio.sleep(0.01)
        playground.state.half = 3.0
        assert playground.map.busy and "0 of 36 images decoded …" in playground.mapped.value  # the zones are there at once
        playground.state.half = 2.0
        while playground.map.busy: await asyncio.sleep(0.01)
        assert playground.slice.half == 2.0 and "36 of 36" in playground.mapped.value
        playground.state.half = 1.0
        playground.stop_button.click()
        await asyncio.sleep(0.1)
        assert not playground.map.busy and len(playground.slice.images) == 0 and "0 of 36 images decoded, then stopped" in playground.mapped.value and "…" not in playground.mapped.value
        playground.stop_button.click()  # there is nothing left to stop
        playground.state.half = 1.5
        while playground.map.busy: await asyncio.sleep(0.01)
        playground.stop_button.click()
        assert "36 of 36 images decoded</span>" in playground.mapped.value

    asyncio.run(ask())


def test_the_first_map_is_drawn_as_any_other():
    "It comes in parts, is left when somebody says so, and gives way to the next request."
    async def ask():
        one, other = (LatentPlayground(side=6, samples=1) for _ in range(2))
        for playground in (one, other): assert playground.map.busy and len(playground.slice.images) == 0 and "0 of 36 images decoded …" in playground.mapped.value and len(playground.seen.samples) == 1
        one.stop_button.click()
        other.state.half = 2.0
        while other.map.busy: await asyncio.sleep(0.01)
        assert len(one.slice.images) == 0 and "0 of 36 images decoded, then stopped" in one.mapped.value and other.slice.half == 2.0 and "36 of 36 images decoded</span>" in other.mapped.value
        third = LatentPlayground(side=6, samples=1)
        while len(third.slice.images) < 12: await asyncio.sleep(0.001)
        third.stop_button.click()
        assert re.search(r"\b(15|20|25|30|35) of 36 images decoded, then stopped", third.mapped.value)
        for playground in (one, other, third): assert playground.figure.get_state()["_widget_layout"]["images"][0]["source"] == seen_map(playground)  # for pages that open later
        assert base64.b64decode(third._repr_mimebundle_()["image/png"]).startswith(b"\x89PNG")  # as far as it is

    asyncio.run(ask())
    assert len(LatentPlayground(side=3, samples=1).slice.images) == 9  # where no event loop runs, there is no later


def test_planes_that_cannot_be_laid_leave_no_playground():
    async def ask(): return LatentPlayground(side=3, samples=1, plane="zones", corners=[1, 1, 2], source="label")
    assert "wanted three different ones" in str(asyncio.run(ask()).refused)


def test_images_with_colours_are_shown_and_painted():
    data = load_data("digits")
    from dataclasses import replace
    split = replace(data.train, pixels=data.train.pixels[:60].repeat(1, 3, 1, 1), labels=data.train.labels[:60])
    playground = LatentPlayground(joint_network(JOINT_PRESETS["tiny"], (3, 8, 8), 10), replace(data, train=split, valid=split, test=split), side=3, samples=1)
    playground.pad.stroke = [playground.pad.sheet, *[0.5] * 64]
    assert len(playground.state.drawing) == 192 and "read as" in playground.heard.value
    red = Image.new("RGB", (9, 9), "red"); red.paste("black", (3, 0, 6, 9))
    playground.take("red.png", png(red))
    assert len(playground.state.drawing) == 192 and len(playground.pad.pixels) == 64


def test_a_notebook_gets_the_widget_and_a_picture(playground):
    bundle = playground._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG") and "model_id" in bundle["application/vnd.jupyter.widget-view+json"]
    assert playground.figure._widget_layout["images"] and playground.figure._widget_data[0]["x"] is not None  # for a page that is still loading plotly


def test_a_page_that_opens_later_is_told_what_is_shown_now(playground):
    "And by then no other page has been told anything that it knows."
    figure, bars = playground.figure, playground.bars
    playground._repr_mimebundle_()
    playground.state.label = 7
    sent = []
    for widget in (figure, bars): widget.comm.send = lambda *message, **options: sent.append(message)
    told = [widget.get_state() for widget in (figure, bars)]
    assert not sent and len(told[0]["_widget_data"][2]["x"]) == 0
    assert told[1]["_widget_data"][0]["y"]["shape"] == (10,) and (torch.frombuffer(bytearray(told[1]["_widget_data"][0]["y"]["buffer"]), dtype=torch.float32).argmax()) == playground.seen.label == 7
    assert "_widget_data" not in figure.get_state("_config") and set(figure.get_state("_config")) == {"_config"}


def test_what_goes_wrong_in_a_part_is_said_and_holds_up_nobody(trained):
    "Whatever kind of error it is."
    async def ask():
        playground = LatentPlayground(side=2, samples=1)
        while playground.map.busy: await asyncio.sleep(0.01)

        def broken():
            yield from itertools.islice(whole(), 1)
            raise IndexError("no such <pixel>")
        whole, playground.place.make = playground.place.make, broken
        playground.state.half = 2.0
        playground.state.label = 3
        while playground.look.waiting or playground.place.busy or playground.map.busy: await asyncio.sleep(0.005)
        assert playground.said.value == sentence(IndexError("no such <pixel>")) and "IndexError: no such &lt;pixel&gt;" in playground.said.value and playground.samples.value == "" and "4 of 4 images" in playground.mapped.value

    asyncio.run(ask())


def test_training_images_are_told_by_their_numbers_in_the_split(trained):
    "Of a set in which not all have zones; by their places a plane is laid through them, so these are told beside."
    from dataclasses import replace
    train = trained.data.train
    noise = 2 * torch.randn(train.pixels.shape, generator=torch.Generator().manual_seed(0))
    pixels = torch.cat([train.pixels, (train.pixels + noise).round().clamp(0, train.top).to(train.pixels.dtype)])
    large = LatentPlayground(data=replace(trained.data, train=replace(train, pixels=pixels, labels=train.labels.repeat(2))), side=2, samples=1, plane="images", picked=[10, 1000, 1999])
    s, number = large.state, large.trained.number
    assert len(pixels) == 2516 and len(number) == 2000 and number[-1] == 2515
    for k, (u, v) in zip(s.picked, zip(large.figure.data[1].x, large.figure.data[1].y)):
        large.go_to(u, v)
        assert int(large.seen.near[0]) == k and f"it lies in the zone of training image {int(number[k]):,} (place {k:,} of those with zones), labelled {int(train.labels.repeat(2)[number[k]])}." in large.said.value
        assert torch.equal(large.trained.images[k], large.trained.data.train.take(number[k:k + 1])[0][0])
    s.drawing = ((large.trained.images[700] + 1) / 2).flatten().tolist()
    assert f"its nearest anchor is that of training image {int(number[700]):,} (place 700 of those with zones)" in large.said.value


def test_traits_have_limits_and_sizes_are_checked():
    for given, what in (({"side": 0}, "side: got 0"), ({"samples": 51}, "samples: got 51"), ({"alpha": 3.0}, "alpha: got 3.0, wanted a number from 0 to 2"), ({"label": 10}, "label: got 10, wanted an integer from 0 to 9"), ({"source": "else"}, "source: got 'else', wanted one of ['point', 'label', 'drawing']"),
                        ({"corners": [1]}, "corners: got [1], wanted a list of 3, each an integer from 0 to 9"), ({"half": 0.0}, "half: got 0.0, wanted a number from 0.5 to 10"), ({"source": "drawing"}, "drawing: there is none yet"), ({"drawing": [0.5, 0.2]}, "drawing: got 2 numbers, wanted 64")):
        widget = LatentPlayground(**{"side": 2, "samples": 1} | given)
        assert widget.box.value == sentence(widget.refused) and what in str(widget.refused)
    assert LatentPlayground(side=2, samples=1, source="label", u=1.0).state.source == "label"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named_and_the_controls_stay(playground, value):
    s, controls = playground.state, {"half": playground.slice_controls[4], **dict(zip(("u", "v", "alpha", "time"), (playground.controls[k] for k in (1, 2, 4, 6))))}
    for name, limits in (("half", "from 0.5 to 10"), ("time", "from 0 to 1"), ("alpha", "from 0 to 2"), ("u", "from -10 to 10"), ("v", "from -10 to 10")):
        before = getattr(s, name)
        with pytest.raises(TraitError, match=f"^{name}: got {value}, wanted a number {limits}$"): s.set_trait(name, value)
        assert getattr(s, name) == before == controls[name].value
    with pytest.raises(TraitError, match="a number from 0 to 1"): s.drawing = [value] * 64
    assert s.drawing == []


def test_the_picture_shows_nothing_where_the_widget_shows_nothing(playground):
    "Not what was seen before, under the name of what is asked for now."
    def panels(): return {axis.get_title("left") or axis.get_title(): len(axis.images) for axis in playground.picture().axes}
    assert panels()["samples"] == panels()["nearest training images"] == 1
    playground.state.source = "drawing"
    whole, *others = playground.picture().axes
    assert "there is none yet" in playground.said.value and len(whole.images) == 1 and not whole.lines and len(others) == 3 and not any(axis.images or axis.patches or axis.axison for axis in others)
    assert base64.b64decode(playground._repr_mimebundle_()["image/png"]).startswith(b"\x89PNG")
    playground.state.label = 3
    assert panels()["samples"] == 1


def test_the_picture_is_of_what_was_seen():
    "Where the state is ahead of it, too."
    async def ask():
        playground = LatentPlayground(side=2, samples=1, u=1.0, v=2.0, time=0.25)
        playground.state.u, playground.state.time = 3.0, 0.75
        early = playground.picture()
        while playground.look.waiting or playground.place.busy or playground.map.busy: await asyncio.sleep(0.01)
        return early, playground.picture()

    for figure, place, time in zip(asyncio.run(ask()), (1.0, 3.0), ("0.25", "0.75")):
        assert figure.axes[0].lines[0].get_xydata().tolist() == [[place, 2.0]] and any(axis.get_title().endswith(f"at t = {time}") for axis in figure.axes)


def nan_in(network, part):
    next(getattr(network["image"], part).parameters()).data.flatten()[0] = float("nan")
    return network


@pytest.mark.parametrize("make, what", [
    (lambda n: LatentZoningNetwork({"image": n["image"], "label": n["image"]}), "network: got ImageType for its type 'label', wanted LabelType"), (lambda n: LatentZoningNetwork({"image": n["label"], "label": n["label"]}), "network: got LabelType for its type 'image', wanted ImageInput"),
    (lambda n: n.half(), "network: got weights of torch.float16, wanted all of torch.float32"), (lambda n: n.bfloat16(), "network: got weights of torch.bfloat16, wanted all of torch.float32"), (lambda n: n.to("meta"), "holds no numbers (it is on the device meta), wanted weights"),
    (lambda n: nan_in(n, "decoder"), "types.image.decoder.mlp.0.weight holds numbers that are not finite"), (lambda n: nan_in(n, "encoder"), "holds numbers that are not finite, wanted finite ones")])
def test_networks_that_cannot_be_used_are_named(make, what):
    for kind, sizes in ((LatentPlayground, {"side": 2, "samples": 1}), (EmbeddingExplorer, {"limit": 5})):
        widget = kind(make(load_pretrained()), **sizes)
        assert widget.refused is not None and what in str(widget.refused) and widget.box.value == sentence(widget.refused)


def test_double_precision_is_as_good():
    assert LatentPlayground(load_pretrained().double(), side=2, samples=1).refused is None


def test_files_may_be_as_large_as_the_commands_of_the_project_let_through(playground):
    "A larger message breaks the connection without a word, so what the widget itself refuses must come through, and the tooltip says what comes through elsewhere."
    root = Path(__file__).resolve().parent.parent
    for file, server in (("jupyter_server_config", "ServerApp"), ("voila", "Voila")): assert json.loads((root / "app" / f"{file}.json").read_text())[server]["tornado_settings"]["websocket_max_message_size"] > 2 * 20_000_000
    assert re.search(r"\$\(SETTINGS\) \$\(BIN\)/jupyter lab", makefile := (root / "Makefile").read_text()) and re.search(r"\$\(SETTINGS\) \\\n.*/voila", makefile)
    assert "up to 20 MB" in playground.upload.tooltip and ", 10 MB in another JupyterLab" in playground.upload.tooltip  # seen there: 9.5 MB are read, 12 MB are lost


def made_app(tmp_path, **asked):
    "What `make app` tells its page of network and data."
    root = Path(__file__).resolve().parent.parent
    (tmp_path / "voila").write_text('#!/bin/sh\nprintf "%s\\n%s" "$LZN_APP_NETWORK" "$LZN_APP_DATA"\n'); (tmp_path / "voila").chmod(0o755)
    (tmp_path / "ready").write_text(f"{root}\n")
    ran = subprocess.run(["make", "-s", "app", f"BIN={tmp_path}", f"STAMP={tmp_path}/ready", *(f"{name}={value}" for name, value in asked.items())], cwd=root, capture_output=True, text=True, timeout=60)
    _, network, data = ran.stdout.split("\n")
    assert ran.returncode == 0, ran.stderr
    return network.replace(str(root), "ROOT"), data.replace(str(root), "ROOT")


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
@pytest.mark.parametrize("data, there", [("folder:some/my images", "folder:ROOT/some/my images"), ("folder:/some/images", "folder:/some/images"), ("folder:~/images", "folder:~/images"), ("digits", "digits"), ("", "")])
def test_a_folder_of_images_is_the_same_for_the_command_and_for_its_page(tmp_path, data, there):
    "The page runs in a folder of its own."
    assert made_app(tmp_path, DATA=data) == ("", there)


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
@pytest.mark.parametrize("network, there", [("my runs/the net.safetensors", "ROOT/my runs/the net.safetensors"), ("/my runs/net.safetensors", "/my runs/net.safetensors"), ("~/net.safetensors", "~/net.safetensors"), ("", "")])
def test_a_network_is_the_same_file_for_the_command_and_for_its_page(tmp_path, network, there): assert made_app(tmp_path, NETWORK=network) == (there, "")


def test_the_page_without_code_says_what_network_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("LZN_APP_NETWORK", str(tmp_path / "none.safetensors"))
    cell = json.loads((Path(__file__).resolve().parent.parent / "app" / "playground.ipynb").read_text())["cells"][1]
    exec("".join(cell["source"]), names := {})
    assert "none.safetensors cannot be read (No such file or directory), wanted a file that `lzn_nb.saved.save(network, path)` has written" in names["shown"].value and "Errno" not in names["shown"].value
    for path, what in (("a" * 5000, "cannot be read (File name too long), wanted a file that"), ("\0", "path: got ")):
        monkeypatch.setattr("os.path.expanduser", lambda _, path=path: path)  # no environment holds a null
        exec("".join(cell["source"]), names)
        assert what in names["shown"].value and "Errno" not in names["shown"].value and len(names["shown"].value) < 500
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(tmp_path)); monkeypatch.setenv("LZN_APP_NETWORK", "~/of mine.safetensors")
    exec("".join(cell["source"]), names)
    assert f"{tmp_path}/of mine.safetensors cannot be read" in names["shown"].value


def test_captions_are_escaped_and_the_pad_needs_its_package(monkeypatch):
    assert "<script>" not in images_html(torch.zeros(2, 1, 4, 4), "<script>")
    whole = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *more: (_ for _ in ()).throw(ImportError(name)) if name == "anywidget" else whole(name, *more))
    from lzn_nb.latent_widgets import pad_class
    pad_class.cache_clear()
    with pytest.raises(ImportError, match=r"wanted: pip install lzn_nb\[lab\]"): pixel_pad(8, 8)


def test_a_photograph_keeps_its_colours(playground):
    "Dark on light is turned where there is ink on paper, in grey; and a refusal goes with the next drawing."
    from dataclasses import replace
    data = load_data("digits")
    split = replace(data.train, pixels=(data.train.pixels[:60] // 2).repeat(1, 3, 1, 1), labels=data.train.labels[:60])
    coloured = LatentPlayground(joint_network(JOINT_PRESETS["tiny"], (3, 8, 8), 10), replace(data, train=split, valid=split, test=split), side=3, samples=1)
    photo = Image.new("RGB", (16, 16), (180, 210, 250)); photo.paste((200, 30, 30), (4, 4, 12, 12))
    coloured.take("photo.png", png(photo))
    pixels = torch.tensor(coloured.state.drawing).reshape(3, 8, 8)
    assert torch.allclose(pixels[:, 0, 0], torch.tensor([180, 210, 250]) / 255) and torch.allclose(pixels[:, 4, 4], torch.tensor([200, 30, 30]) / 255)
    playground.take("blank.png", png(Image.new("L", (9, 9), 255)))
    assert "of one tone" in playground.unread.value
    playground.state.drawing = [0.0] * 20 + [1.0] * 44
    assert playground.unread.value == ""
    playground.wipe()


# -- sentences ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def speaking():
    "A network of images, labels and sentences, hardly trained: one that writes."
    from lzn_nb.scenarios.text import TEXT_PRESETS, text_network
    network = text_network(TEXT_PRESETS["tiny"], (1, 8, 8), 10).eval()
    with torch.no_grad():
        network["text"].decoder.head.weight.mul_(6)
        torch.nn.init.normal_(network["image"].decoder.heads[0][-1].weight, generator=torch.Generator().manual_seed(0))
    return network


def test_a_sentence_is_drawn_and_what_is_seen_is_told(speaking):
    playground = LatentPlayground(speaking, side=4, samples=2)
    state, (field,) = playground.state, [control for control in playground.controls if ">sentence<" in control.description]
    assert 'title="what is to be drawn' in field.description and field.description_allow_html  # ipywidgets shows no tooltip of a field for text that has a label
    before = playground.samples.value
    field.value = "a thick seven"
    assert state.source == "sentence" and "drawn for: a thick seven" in playground.samples.value != before
    assert "It is told as: <i>" in playground.said.value
    z = playground.of_sentence(playground.trained.noises(state.seed, 2)[0])
    told = look_at(playground.trained, z, playground.trained.noises(state.seed, 2)[1], sentence="a thick seven")
    assert torch.equal(told.samples, playground.seen.samples) and not torch.equal(told.samples, look_at(playground.trained, z, playground.trained.noises(state.seed, 2)[1]).samples)
    titles = [axis.get_title(loc) for axis in playground.picture().axes for loc in ("left", "center")]
    assert "drawn for: a thick seven" in titles and any("".join(title.split()).endswith("".join(f"told as: {playground.seen.written}".split())) for title in titles)  # wherever lines were broken
    state.alpha = 0.0
    assert torch.allclose(*playground.of_sentence(playground.trained.noises(0, 2)[0]), atol=1e-5)
    state.drawing = a_digit(playground.trained)
    assert state.source == "drawing" and "It is told as: <i>" in playground.heard.value


@pytest.mark.parametrize("said, what", [("  ", "sentence: there is none yet"), ("семь", "in Cyrillic letters"), ("a seven " * 20, "text: number 0 has 40 words and commas")])
def test_what_cannot_be_read_is_a_sentence(speaking, said, what):
    playground = LatentPlayground(speaking, side=4, samples=2, text="an 8")
    assert playground.state.source == "sentence" and "drawn for: an 8" in playground.samples.value
    playground.state.text = said
    assert what in playground.said.value and playground.samples.value == ""
    playground.state.text = "a fat <b>seven"
    assert "unknown words, read as &lt;unknown&gt;: fat, &lt;b&gt;seven" in playground.said.value


def test_a_network_without_sentences_has_no_field_for_them(playground):
    assert not [control for control in playground.controls if "sentence" in control.description] and playground.trained.sentences is None
    with pytest.raises(TraitError, match="text: got a sentence, wanted a network that was trained with them"): playground.state.text = "a seven"
    assert "text: got a sentence, wanted a network that was trained with them (lzn text)" in LatentPlayground(side=2, samples=1, text="a seven").box.value
    assert "sentence" not in playground.controls[0].options


# -- the network with sentences that ships ------------------------------------------------------------
@pytest.fixture(scope="module")
def told():
    "A playground of the shipped network with sentences, and its field for one."
    playground = LatentPlayground(load_pretrained("digits-text"), side=2, samples=4)
    return playground, next(control for control in playground.controls if ">sentence<" in control.description)


def test_a_typed_sentence_changes_what_is_drawn(told):
    playground, field = told
    seen = []
    for said, digit in (("a thick seven, leaning left", 7), ("a thin seven, leaning right", 7), ("an 8", 8), ("Zero.", 0)):
        field.value = said
        seen.append(playground.samples.value)
        assert playground.state.source == "sentence" and f"drawn for: {said}" in seen[-1] and f"read as <b>{digit}</b>" in playground.said.value and 'role="status"' in playground.said.value
        assert (playground.seen.labels == digit).float().mean() >= 0.75
    assert len(set(seen)) == 4
    field.value = "a thick eight"
    thick = playground.seen.samples
    field.value = "a thin eight"
    assert thick.mean() > playground.seen.samples.mean() + 0.1  # more ink


@pytest.mark.parametrize("said, what", [("", "sentence: there is none yet, wanted one, such as: a thick seven, leaning left"), ("qwerty zyx", "of which no word is known, wanted words such as"), ("x" * 5000, "of which no word is known"),
                                        (" ".join(["a seven"] * 20), "has 40 words and commas, wanted at most"), ("...", "got an empty sentence (number 0), wanted at least one word in each")], ids=["none", "unknown", "one long word", "too long", "dots"])
def test_what_is_typed_and_cannot_be_read_is_said_until_something_can(told, said, what):
    playground, field = told
    field.value = "an 8"
    field.value = said
    assert 'role="alert"' in playground.said.value and what in playground.said.value and playground.samples.value == playground.near.value == "" and len(playground.said.value) < 600
    assert not [axis for axis in playground.picture().axes[1:] if axis.images or axis.patches or axis.get_title("left")]  # nor under the name of what could not be read
    field.value = "seven " + "x" * 5000
    assert 'role="status"' in playground.said.value and "unknown words, read as &lt;unknown&gt;: xxx" in playground.said.value and len(playground.said.value) < 700 and "drawn for: seven xxx" in playground.samples.value
