"""The explorer of embeddings without a browser: what is laid out, who is chosen, and what is said of them."""
import asyncio
import base64
import re
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from traitlets import TraitError

from lzn_nb import embedding_plots, embedding_widgets
from lzn_nb.backbones import make_encoder
from lzn_nb.data import Split, load_data
from lzn_nb.embedding_plots import KEPT, FittedApart, select_samples, selected_samples
from lzn_nb.embedding_widgets import PAIRS, EmbeddingExplorer, InBackground, embedded, embedded_parts, feature_names, features_of, features_parts, group_rows, joined_latents, joined_parts, map_of
from lzn_nb.latent_views import Trained
from lzn_nb.latent_widgets import LatentPlayground
from lzn_nb.network import ImageType, LabelType, LatentZoningNetwork
from lzn_nb.nets import UNetDecoder
from lzn_nb.scenarios.representation import REPRESENTATION_PRESETS, representation_network
from lzn_nb.widgets import sentence


@pytest.fixture(scope="module")
def trained(): return Trained()


@pytest.fixture
def explorer(): return EmbeddingExplorer(limit=60)


def points(explorer):
    "What the figure shows, in the order of the list."
    rows = sorted((int(row[0]), x, y) for trace in explorer.figure.data for row, x, y in zip(trace.customdata, trace.x, trace.y))
    assert [row[0] for row in rows] == list(range(len(explorer.seen.images)))
    return torch.tensor([row[1:] for row in rows])


def lasso(explorer, chosen):
    "What the browser tells Python when somebody has drawn around some points."
    explorer.figure.layout.selections = [{"type": "path", "path": "M0,0L1,0L1,1Z"}]
    select_samples(explorer.figure, torch.tensor(chosen))
    for trace in explorer.figure.data:
        for call in trace._select_callbacks: call(trace, None, None)


# -- what is seen ---------------------------------------------------------------------------------
def test_a_split_is_read_among_the_training_images(trained):
    seen = embedded(trained, "test", 50)
    assert len(seen.images) == 50 and torch.equal(seen.labels, trained.data.test.labels[seen.number])
    assert torch.equal(seen.predicted, trained.network.classify(seen.images, among=trained.zones)) and seen.confidence.min() > 0 and seen.confidence.max() <= 1
    train = embedded(trained, "train", 40)
    assert torch.allclose(joined_latents(trained, "train", train.anchors, 0.0), trained.zones.encode(train.number, alpha=0.0), atol=1e-5)
    parts = list(embedded_parts(trained, "test", 250))
    assert [len(part.images) for part in parts] == [100, 200, 250] and torch.allclose(parts[-1].anchors, trained.network.embed("image", parts[-1].images), atol=1e-4) and torch.equal(parts[0].number, parts[-1].number[:100])
    for given, what in ((("else",), "split: got 'else'"), (("test", 0), "limit: got 0")):
        with pytest.raises(ValueError, match=what): embedded(trained, *given)


def test_training_images_stand_in_their_own_places_however_many_there_are(trained):
    "Of a set larger than the limit only some have zones, and these are the ones that are shown."
    train = trained.data.train
    noise = 2 * torch.randn(2, *train.pixels.shape, generator=torch.Generator().manual_seed(0))
    pixels = torch.cat([train.pixels, *((train.pixels + more).round().clamp(0, train.top).to(train.pixels.dtype) for more in noise)])
    large = Trained(trained.network, replace(trained.data, train=Split(pixels, train.labels.repeat(3), train.top)), limit=700)
    for limit in (500, 1000):
        seen = embedded(large, "train", limit)
        places = torch.cdist(seen.anchors, large.zones.anchors, compute_mode="donot_use_mm_for_euclid_dist").min(1)
        assert len(seen.images) == min(limit, 700) == len(places.indices.unique()) == len(seen.number.unique()) and places.values.max() < 1e-4
        assert torch.equal(large.data.train.take(seen.number)[0], seen.images) and torch.equal(large.images[places.indices], seen.images)
        assert torch.allclose(joined_latents(large, "train", seen.anchors, 0.0), large.zones.encode(places.indices, alpha=0.0), atol=1e-5)


# -- without labels -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def nameless(): return representation_network(REPRESENTATION_PRESETS["tiny"], (1, 8, 8), 10)


def test_what_a_network_without_labels_reads_is_the_nearest_training_image(nameless):
    trained = Trained(nameless, limit=200, parts=("encoder",), labels=False)
    distances = torch.cdist(embedded(trained, "test", 30).anchors, trained.zones.anchors, compute_mode="donot_use_mm_for_euclid_dist")
    seen, near = embedded(trained, "test", 30), distances.argsort(1)[:, :10]
    assert torch.equal(seen.predicted, trained.labels[near[:, 0]]) and torch.allclose(seen.confidence, (trained.labels[near] == trained.labels[near[:, :1]]).float().mean(1))
    train = embedded(trained, "train", 200)
    distances = torch.cdist(train.anchors, train.anchors).fill_diagonal_(torch.inf)  # nobody is a neighbour of their own
    assert torch.equal(train.number, trained.number) and (train.predicted == trained.labels[distances.argmin(1)]).float().mean() > 0.99 and not train.right.all()
    with pytest.raises(ValueError, match="data: got one training image"): embedded(Trained(nameless, limit=1, parts=("encoder",), labels=False), "train")
    assert len(embedded(Trained(nameless, limit=1, parts=("encoder",), labels=False), "test", 5).images) == 5


def test_a_network_without_labels_can_be_explored(nameless):
    explorer = EmbeddingExplorer(nameless, limit=60, feature="backbone")
    assert explorer.refused is None and "read right by the label of the nearest training image" in explorer.said.value and explorer.controls[1].options == ("anchor", "latent", "backbone")
    assert torch.equal(explorer.seen.labels, explorer.trained.data.test.labels[explorer.seen.number]) and [trace.name for trace in explorer.figure.data] == list(explorer.trained.classes)
    for feature in ("backbone", "anchor", "latent"): explorer.state.feature = feature; assert torch.allclose(points(explorer), map_of(explorer.trained, explorer.seen, feature).points, atol=1e-4)
    explorer.state.colour = "right"
    explorer.choose_class(-2)
    assert explorer.state.chosen == (~explorer.seen.right).nonzero()[:, 0].tolist() and "<table>" in explorer.told.value
    explorer.state.split = "train"
    assert explorer.seen.split == "train" and "60 train images" in explorer.said.value
    bare = replace(explorer.trained.data, train=replace(explorer.trained.data.train, labels=None))
    assert "data: got images without labels (those of 'train' are None), wanted labels of at least 2 classes" in str(EmbeddingExplorer(nameless, bare).refused)
    faces = replace(explorer.trained.data, classes=("faces",))
    assert "data: got images without labels (all are faces), wanted labels of at least 2 classes" in str(EmbeddingExplorer(nameless, faces).refused)


def test_twins_are_neighbours_and_nobody_is_their_own(nameless):
    data = load_data("digits")
    some, other = data.train.take(torch.arange(40))
    twice = replace(data.train, pixels=data.train.pixels[:40].repeat(2, 1, 1, 1), labels=torch.cat([other, (other + 1) % 10]))
    train = embedded(Trained(nameless, replace(data, train=twice), parts=("encoder",), labels=False), "train")
    assert len(train.images) == 80 and (train.predicted == torch.cat([(other + 1) % 10, other])).all()


# -- features ---------------------------------------------------------------------------------------
def test_features_of_every_kind(trained):
    seen = embedded(trained, "test", 20)
    assert feature_names(trained.network) == ["anchor", "latent"] and torch.equal(features_of(trained, seen, "anchor"), seen.anchors)
    assert not torch.allclose(features_of(trained, seen, "latent", 0.0), features_of(trained, seen, "latent", 1.0))
    with pytest.raises(ValueError, match=r"feature: got 'backbone', wanted one of \['anchor', 'latent'\]"): features_of(trained, seen, "backbone")
    encoder = make_encoder("cnn", (1, 8, 8), 8)
    other = Trained(LatentZoningNetwork({"image": ImageType(encoder, UNetDecoder(1, 8, latent_dim=8, width=8, mults=(1,), blocks=1), (1, 8, 8), 8), "label": LabelType(10, 8)}), limit=50)
    assert "backbone" in feature_names(other.network) and features_of(other, embedded(other, "test", 7), "backbone").shape == (7, encoder.width)


def test_the_confidence_tells_images_apart(trained):
    "It is asked early enough: later the flow is sure of all of them to the last digit."
    seen = embedded(trained)
    assert len(seen.confidence.unique()) > 0.9 * len(seen.images) and 0.1 < seen.confidence.min() < seen.confidence.median() < 0.95
    explorer = EmbeddingExplorer(limit=60)
    explorer.choose_class(3)
    assert "<td>1.00</td>" not in explorer.told.value and not any(note.endswith("100%") for note in explorer.map.notes)


@pytest.mark.parametrize("split", ["test", "train"])
def test_latents_come_in_parts_that_are_bounded(trained, split):
    "However many images there are, what is computed at a time is not more than so many of them by so many zones."
    seen, sizes = embedded(trained, split, 300), [0]
    for alpha in (0.0, 1.0):
        parts = list(joined_parts(trained, split, seen.anchors, alpha))
        sizes = [0, *map(len, parts)]
        assert all(0 < b - a <= PAIRS // len(trained.zones) for a, b in zip(sizes, sizes[1:])) and len(parts) == 2 and sizes[-1] == 300
        generator = torch.Generator().manual_seed(0)
        place = {"points": seen.anchors} if split == "test" else {"index": torch.isin(trained.number, seen.number).nonzero()[:, 0]}
        whole = trained.zones.encode(**place, alpha=alpha, generator=generator)
        assert torch.allclose(parts[-1], whole, atol=1e-4) and torch.allclose(parts[0], whole[:sizes[1]], atol=1e-4)
    assert [len(part) for part in features_parts(trained, seen, "latent")] == sizes[1:] and [len(part) for part in features_parts(trained, seen, "anchor")] == [300]


def test_features_of_many_images_come_in_parts_and_can_be_left():
    async def until(true):
        end = time.monotonic() + 60
        while not true() and time.monotonic() < end: await asyncio.sleep(0.002)
        assert true()

    async def ask():
        explorer = EmbeddingExplorer(limit=300)
        anchors = points(explorer)
        explorer.state.feature = "latent"
        await until(lambda: "images placed" in explorer.said.value)
        assert re.search(r"19\d of 300 test images placed", explorer.said.value) and not explorer.stop_button.disabled and torch.equal(points(explorer), anchors)
        explorer.state.chosen = [1, 2]
        explorer.stop_button.click()
        assert not explorer.placing.busy and explorer.state.feature == "anchor" and explorer.stop_button.disabled
        await until(lambda: "then it was stopped" in explorer.said.value)
        assert re.search(r"Of the images 19\d were placed, then it was stopped; shown are still 300 test images", explorer.said.value) and torch.equal(points(explorer), anchors) and explorer.state.chosen == [1, 2]
        explorer.state.feature = "latent"
        await until(lambda: explorer.placing.busy)
        explorer.state.alpha = 0.25  # the last request wins
        explorer.state.colour = "right"
        await until(lambda: not explorer.placing.busy and "placed" not in explorer.said.value and explorer.features[0] == ("test", "latent", 0.25))
        assert torch.allclose(points(explorer), map_of(explorer.trained, explorer.seen, "latent", 0.25).points, atol=1e-4) and "stopped" not in explorer.said.value and explorer.stop_button.disabled

    asyncio.run(ask())


def test_what_is_told_of_a_group(trained):
    seen = embedded(trained, "test", 60)
    rows = group_rows(seen, torch.arange(60), trained.classes)
    assert [row["class"] for row in rows] == [*trained.classes, "all"] and sum(row["images"] for row in rows[:-1]) == 60 == rows[-1]["images"]
    assert rows[-1]["right"] == f"{seen.right.float().mean():.0%}" and group_rows(seen, torch.zeros(0, dtype=torch.long), trained.classes) == []


# -- the explorer -------------------------------------------------------------------------------
def test_the_figure_is_the_map_of_the_state(explorer):
    made = map_of(explorer.trained, explorer.seen, "anchor")
    assert torch.allclose(points(explorer), made.points, atol=1e-4) and explorer.map.notes[0] == f"number {int(explorer.seen.number[0])}, confidence {explorer.seen.confidence[0]:.0%}"
    assert "first principal component" in explorer.figure.layout.xaxis.title.text and [trace.name for trace in explorer.figure.data] == list(explorer.trained.classes)


def test_controls_change_the_layout(explorer):
    split, feature, alpha, method, colour = explorer.controls
    before = points(explorer)
    feature.value = "latent"
    assert explorer.state.feature == "latent" and not torch.equal(points(explorer), before) and not alpha.disabled
    before = points(explorer)
    alpha.value = 0.0
    assert not torch.equal(points(explorer), before)
    colour.value = "right"
    assert {trace.name for trace in explorer.figure.data} <= {"right", "wrong"} and len(points(explorer)) == 60
    split.value = "valid"
    assert "60 valid images" in explorer.said.value and explorer.seen.split == "valid" and points(explorer).shape == (60, 2)
    for control in (*explorer.controls, *explorer.choosers, explorer.stop_button): assert control.description and (control.tooltip or "title=" in control.description)


def test_groups_are_chosen_by_class_numbers_and_state(explorer):
    who, numbers, one = explorer.choosers
    who.value = 3
    assert explorer.state.chosen == (explorer.seen.labels == 3).nonzero()[:, 0].tolist() == selected_samples(explorer.figure).tolist()
    assert f"{len(explorer.state.chosen)} chosen images" in explorer.group.value and "<table>" in explorer.told.value
    numbers.value = (5, 9)
    assert explorer.state.chosen == [5, 6, 7, 8, 9] == selected_samples(explorer.figure).tolist()
    assert who.value == -1  # the list does not claim what somebody else has chosen
    who.value = -2
    assert explorer.state.chosen == (~explorer.seen.right).nonzero()[:, 0].tolist() and numbers.value == (0, 59)  # nor do the numbers
    numbers.value = (5, 9)
    lasso(explorer, [1, 2])
    assert explorer.state.chosen == [1, 2] and numbers.value == (0, 59) and who.value == -1
    for beyond in (10_000, 10**30):
        explorer.state.chosen = [0, 59, beyond]
        assert "2 chosen images" in explorer.group.value and selected_samples(explorer.figure).tolist() == [0, 59]
    explorer.state.chosen = [10_000]
    assert "nobody is chosen" in explorer.told.value and all(trace.selectedpoints is None for trace in explorer.figure.data)  # and nobody is faded
    one.value = 7
    assert explorer.state.looked_at == 7 and f"7: {int(explorer.seen.labels[7])}, read as" in explorer.hovered.value and f"number {int(explorer.seen.number[7])}" in explorer.hovered.value
    explorer.state.split = "train"
    assert explorer.state.chosen == [] and "nobody is chosen" in explorer.told.value and who.value == -1 and one.value == -1 and explorer.hovered.value == "" and numbers.max == 59


def test_a_lasso_chooses_and_its_outline_goes_with_it(explorer):
    lasso(explorer, [3, 5, 20])
    assert explorer.state.chosen == [3, 5, 20] and "3 chosen images" in explorer.group.value and len(explorer.figure.layout.selections) == 1
    explorer.state.colour = "right"  # the same choice in another figure
    assert selected_samples(explorer.figure).tolist() == [3, 5, 20] and explorer.drawn.children == (explorer.figure,)
    lasso(explorer, [4, 6])
    assert explorer.state.chosen == [4, 6] and len(explorer.figure.layout.selections) == 1
    explorer.choose_class(4)
    assert len(explorer.figure.layout.selections) == 0 and selected_samples(explorer.figure).tolist() == explorer.state.chosen
    lasso(explorer, [1, 2])
    explorer.state.chosen = []
    assert len(explorer.figure.layout.selections) == 0 and all(trace.selectedpoints is None for trace in explorer.figure.data)
    lasso(explorer, [1, 2])
    explorer.choose_class(4)
    lasso(explorer, [])  # which the browser reports as well
    assert explorer.state.chosen and selected_samples(explorer.figure).tolist() == explorer.state.chosen
    explorer.cleared -= 10
    lasso(explorer, [])
    assert explorer.state.chosen == []
    lasso(explorer, [1, 2])
    explorer.state.split = "valid"
    assert len(explorer.figure.layout.selections) == 0 and explorer.state.chosen == []


def test_umap_is_fitted_apart_once_and_the_last_request_wins(monkeypatch):
    "A process that does nothing for a second takes the place of UMAP, whose import is slow; what it would find is made up when it has ended."
    KEPT.clear()
    monkeypatch.setitem(embedding_plots.FITS, "umap", (lambda x, seed, settings: torch.zeros(len(x), 2), "scikit-learn"))
    begun = []

    class Slow(FittedApart):
        "A fit that takes a while, and gives twice the first two dimensions."
        SCRIPT = "import sys, time, torch; time.sleep(1.0)"

        def __init__(self, points, method): begun.append(self); super().__init__(points, method)
        def result(self):
            if super().result() is None: return None
            KEPT[embedding_plots.name_of_layout(self.points, "umap", 0, embedding_plots.layout_settings("umap", len(self.points), {}))] = 2 * self.points[:, :2]

    monkeypatch.setattr(embedding_widgets, "FittedApart", Slow)

    async def until(true, seconds=60):
        for _ in range(20 * seconds):
            if true(): return
            await asyncio.sleep(0.05)
        raise AssertionError("waited in vain")

    async def ask():
        explorer = EmbeddingExplorer(limit=40)
        pca = points(explorer)
        explorer.state.method = "umap"
        await until(lambda: "UMAP is being fitted, 0 s so far" in explorer.said.value)
        assert not explorer.stop_button.disabled and torch.equal(points(explorer), pca)
        explorer.choose_class(3)
        await until(lambda: "chosen images" in explorer.group.value)
        assert "UMAP is being fitted" in explorer.said.value and explorer.fitting.fit is begun[0] and begun[0].process.poll() is None  # everything else has gone on
        await until(lambda: "40 test images" in explorer.said.value)
        assert torch.allclose(points(explorer), 2 * explorer.seen.anchors[:, :2], atol=1e-4) and explorer.stop_button.disabled
        for method in ("pca", "umap"): explorer.state.method = method; await asyncio.sleep(0.2)
        assert len(begun) == 1 and torch.allclose(points(explorer), 2 * explorer.seen.anchors[:, :2], atol=1e-4)
        for alpha in (0.5, 0.7): explorer.state.feature, explorer.state.alpha = "latent", alpha; await until(lambda: explorer.fitting.name and explorer.fitting.name[-1] == alpha)
        assert len(begun) == 3 and explorer.fitting.fit is begun[2]
        await until(lambda: begun[1].process.poll() is not None)
        explorer.stop_button.click()
        await until(lambda: "40 test images" in explorer.said.value)
        assert explorer.state.method == "pca" and explorer.fitting.fit is None and explorer.stop_button.disabled and begun[2].process.wait(10) < 0
        monkeypatch.setattr(Slow, "SCRIPT", "raise SystemExit('no memory')")
        explorer.state.method = "umap"
        await until(lambda: 'role="alert"' in explorer.said.value)
        assert "no memory" in explorer.said.value

    asyncio.run(ask())


class Sleeping(FittedApart):
    "A fit that takes as long as a test wants."
    SCRIPT, begun = "import sys, time; time.sleep(60)", []
    def __init__(self, points, method): self.begun.append(self); super().__init__(points, method)


async def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end: await asyncio.sleep(0.005)
    assert true()


@pytest.fixture
def sleeping(monkeypatch):
    "Fits of UMAP that have begun and never end, one after another."
    KEPT.clear(); Sleeping.begun.clear()
    monkeypatch.setitem(embedding_plots.FITS, "umap", (lambda x, seed, settings: torch.zeros(len(x), 2), "scikit-learn"))
    monkeypatch.setattr(embedding_widgets, "FittedApart", Sleeping)
    yield Sleeping.begun
    for fit in Sleeping.begun: fit.process.kill(); fit.process.wait(10)
    KEPT.clear()


def test_a_fit_that_dies_and_that_nobody_wants_any_more_is_no_trouble(sleeping):
    "Whether something else is read meanwhile, or shown already; one that is wanted is missed."
    async def ask():
        explorer = EmbeddingExplorer(limit=300)
        explorer.state.method = "umap"
        await until(lambda: explorer.fitting.fit and "UMAP is being fitted" in explorer.said.value)
        explorer.state.split = "train"
        await until(lambda: explorer.reading.busy)
        explorer.fitting.ended(explorer.fitting.fit, ValueError("points: UMAP found no places for them (killed)"))  # what comes next between two parts
        assert explorer.reading.busy and "UMAP found no places" not in explorer.said.value
        sleeping[0].process.kill()  # it would keep the event loop waiting at the end
        await until(lambda: "train" in explorer.splits and explorer.fitting.name == ("train", "anchor", False))
        explorer.state.method = "pca"
        await until(lambda: "300 train images" in explorer.said.value)
        sleeping[-1].process.kill()
        await until(lambda: explorer.fitting.fit is None)
        assert "300 train images" in explorer.said.value and 'role="status"' in explorer.said.value and explorer.stop_button.disabled
        explorer.state.method = "umap"
        await until(lambda: explorer.fitting.fit and "UMAP is being fitted" in explorer.said.value)
        sleeping[-1].process.kill()
        await until(lambda: 'role="alert"' in explorer.said.value)
        assert "UMAP found no places for them" in explorer.said.value and explorer.stop_button.disabled

    asyncio.run(ask())


def test_colours_do_not_wait_for_what_takes_its_time(sleeping):
    "While UMAP is fitted, latents are placed or a split is read, the map that is shown takes other colours, and what is at work is still said."
    async def ask():
        explorer, names = EmbeddingExplorer(limit=300), {"class": [str(k) for k in range(10)], "right": ["right", "wrong"]}
        shown = points(explorer)

        async def colour(name: str, busy) -> None:
            explorer.state.colour = name
            await until(lambda: {trace.name for trace in explorer.figure.data} <= set(names[name]))
            assert busy() and explorer.drawn.children == (explorer.figure,) and torch.equal(points(explorer), shown) and selected_samples(explorer.figure).tolist() == explorer.state.chosen == [1, 2]
            assert " test images, " not in explorer.said.value and not explorer.stop_button.disabled

        explorer.state.chosen = [1, 2]
        explorer.state.method = "umap"
        await until(lambda: explorer.fitting.fit and "UMAP is being fitted" in explorer.said.value)
        for name in ("right", "class"): await colour(name, lambda: explorer.fitting.fit is sleeping[0] and "UMAP is being fitted" in explorer.said.value)
        explorer.stop_button.click()
        await until(lambda: "300 test images" in explorer.said.value)
        explorer.placing.urgent = explorer.reading.urgent = lambda: True  # all but the first parts wait
        for trait, value, said in (("feature", "latent", "images placed"), ("split", "train", "train images read")):
            explorer.state.set_trait(trait, value)
            await until(lambda: said in explorer.said.value)
            explorer.state.chosen = [1, 2]
            for name in ("right", "class"): await colour(name, lambda: said in explorer.said.value)
        explorer.placing.urgent = explorer.reading.urgent = lambda: False
        await until(lambda: "300 train images" in explorer.said.value)

    asyncio.run(ask())


def test_a_fit_is_dropped_where_the_map_that_is_asked_for_is_there(sleeping):
    "It says nothing any more, and there is nothing to stop."
    async def ask():
        explorer = EmbeddingExplorer(limit=40)
        kept = 2 * explorer.seen.anchors[:, :2].cpu()
        KEPT[embedding_plots.name_of_layout(embedding_plots.layout_points(explorer.features[1], "umap"), "umap", 0, embedding_plots.layout_settings("umap", 40, {}))] = kept
        explorer.state.method = "umap"
        await until(lambda: torch.allclose(points(explorer), kept, atol=1e-4))
        explorer.state.feature = "latent"
        await until(lambda: "UMAP is being fitted" in explorer.said.value)
        explorer.state.feature = "anchor"
        await until(lambda: "40 test images" in explorer.said.value)
        assert explorer.fitting.fit is None and explorer.stop_button.disabled
        assert sleeping[0].process.wait(10) < 0
        await asyncio.sleep(1.3)  # longer than a fit is silent
        assert "40 test images" in explorer.said.value and explorer.stop_button.disabled and explorer.state.method == "umap" and torch.allclose(points(explorer), kept, atol=1e-4)

    asyncio.run(ask())


def test_a_number_that_is_not_finite_is_named_and_the_slider_stays(explorer):
    for value in (float("nan"), float("inf")):
        with pytest.raises(TraitError, match=f"^alpha: got {value}, wanted a number from 0 to 2$"): explorer.state.alpha = value
        assert explorer.state.alpha == explorer.controls[2].value == 1.0


def test_a_fit_that_is_asked_for_from_a_thread_with_a_loop_of_its_own_is_followed_where_the_widget_was_made(monkeypatch):
    monkeypatch.setattr(embedding_widgets, "FittedApart", lambda points, method: SimpleNamespace(result=lambda: time.sleep(0.3), stop=lambda: None))
    told, done = [], []

    async def ask():
        fitting = InBackground(lambda seconds: told.append(threading.get_ident()), lambda name, error: done.append((threading.get_ident(), name, error)))
        async def elsewhere(): assert fitting.start(("a",), torch.zeros(5, 2), "umap")
        other = threading.Thread(target=lambda: asyncio.run(elsewhere()))  # its loop ends before the fit does
        other.start()
        until = time.time() + 60
        while not done and time.time() < until: await asyncio.sleep(0.02)

    asyncio.run(ask())
    assert set(told) == {threading.get_ident()} and done == [(threading.get_ident(), ("a",), None)]


def test_a_split_is_read_in_parts_and_the_last_request_wins():
    async def ask():
        explorer = EmbeddingExplorer(limit=300)
        before = points(explorer)
        explorer.state.split = "train"
        await asyncio.sleep(0.03)
        assert "100 train images read" in explorer.said.value or "200 train" in explorer.said.value or "300 train" in explorer.said.value
        explorer.state.split = "valid"
        while explorer.seen.split != "valid": await asyncio.sleep(0.02)
        assert "train" not in explorer.splits and "180 valid images" in explorer.said.value and len(before) == 300 and len(points(explorer)) == 180

    asyncio.run(ask())


def test_who_is_chosen_while_another_split_is_read_is_not_chosen_in_it():
    "Places in one list say nothing of another."
    async def ask():
        explorer = EmbeddingExplorer(limit=40)
        explorer.state.split = "valid"
        explorer.state.chosen, explorer.state.looked_at = [1, 2, 3], 5  # of the test images, which are still shown
        assert explorer.seen.split == "test"
        until = asyncio.get_running_loop().time() + 20
        while explorer.seen.split != "valid" and asyncio.get_running_loop().time() < until: await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        assert explorer.seen.split == "valid" and explorer.state.chosen == [] and explorer.state.looked_at == -1
        assert "nobody is chosen" in explorer.told.value and explorer.hovered.value == explorer.group.value == ""

    asyncio.run(ask())


def test_a_split_that_is_being_read_can_be_left():
    "The one before stays, with whoever has been chosen in it meanwhile; what has been left is told once, and may be asked for again."
    async def until(true):
        end = time.monotonic() + 60
        while not true() and time.monotonic() < end: await asyncio.sleep(0.005)
        assert true()

    async def ask():
        explorer = EmbeddingExplorer(limit=300)
        explorer.stop_button.click()  # there is nothing to leave
        assert explorer.stop_button.disabled and explorer.stop_button.description == "Stop"
        explorer.state.split = "train"
        await until(lambda: "train images read" in explorer.said.value)
        assert not explorer.stop_button.disabled
        explorer.state.chosen, explorer.state.colour = [1, 2, 3], "right"  # of what is still shown
        explorer.redraw()
        assert explorer.reading.busy and not explorer.stop_button.disabled
        explorer.stop_button.click()
        assert not explorer.reading.busy and explorer.stop_button.disabled
        await until(lambda: "then it was stopped" in explorer.said.value)
        assert re.search(r"Of the train images [12]00 were read, then it was stopped; shown are still 300 test images", explorer.said.value)
        await asyncio.sleep(0.2)
        assert explorer.state.split == explorer.controls[0].value == explorer.seen.split == "test" and "train" not in explorer.splits and explorer.state.chosen == [1, 2, 3]
        explorer.state.colour = "class"
        await until(lambda: "stopped" not in explorer.said.value)
        explorer.state.split = "train"
        await until(lambda: explorer.seen.split == "train")
        assert "stopped" not in explorer.said.value and "300 train images" in explorer.said.value and explorer.state.chosen == [] and explorer.stop_button.disabled

    asyncio.run(ask())


def test_an_empty_split_is_named(trained):
    "In the place of the explorer, or beside the map that stays."
    none = replace(trained.data.valid, pixels=trained.data.valid.pixels[:0], labels=trained.data.valid.labels[:0])
    data = replace(trained.data, valid=none)
    what = "split: got 'valid', which is empty in this data, wanted one with images: 'train' or 'test'"
    assert str(EmbeddingExplorer(data=data, limit=20, split="valid").refused) == what
    explorer = EmbeddingExplorer(data=data, limit=20)
    explorer.state.split = "valid"
    assert explorer.said.value == sentence(ValueError(what)) and explorer.seen.split == "test" and explorer.stop_button.disabled
    explorer.state.split = "test"
    assert "20 test images" in explorer.said.value
    for widget in (EmbeddingExplorer, LatentPlayground): assert "data: got no training images, wanted some" in str(widget(data=replace(data, train=none)).refused)


def test_what_goes_wrong_is_said(monkeypatch):
    explorer = EmbeddingExplorer(limit=20)
    before = points(explorer)
    monkeypatch.setattr(embedding_plots, "installed", lambda package: (_ for _ in ()).throw(ImportError(f"this map needs the package {package}, which is not installed; wanted: pip install lzn_nb[lab]")))
    explorer.state.method = "umap"
    assert 'role="alert"' in explorer.said.value and "pip install lzn_nb[lab]" in explorer.said.value and torch.equal(points(explorer), before)
    with pytest.raises(TraitError): explorer.state.feature = "backbone"
    for given, what in (({"alpha": 9.0}, "alpha: got 9.0, wanted a number from 0 to 2"), ({"split": "all"}, "split: got"), ({"chosen": [-1]}, "chosen: got [-1], wanted a list, each an integer ≥ 0")): assert what in str(EmbeddingExplorer(limit=20, **given).refused)
    assert "limit: got 0" in EmbeddingExplorer(limit=0).box.value and "wanted a LatentZoningNetwork" in EmbeddingExplorer("digits").box.value


def test_a_network_that_cannot_draw_can_be_explored(trained):
    image = trained.image
    deaf = LatentZoningNetwork({"image": ImageType(image.encoder, None, (1, 8, 8), image.latent_dim), "label": trained.network["label"]})
    assert EmbeddingExplorer(deaf, limit=20).refused is None


def test_a_notebook_gets_the_widget_and_a_picture(explorer):
    explorer.state.chosen = [1, 2]
    bundle = explorer._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG") and "model_id" in bundle["application/vnd.jupyter.widget-view+json"]
    explorer.state.chosen = []
    assert base64.b64decode(explorer._repr_mimebundle_()["image/png"]).startswith(b"\x89PNG")


def test_a_map_that_cannot_be_shown_is_said(monkeypatch):
    explorer = EmbeddingExplorer(limit=20)
    def ill(*_): raise ValueError("map: got one that is ill, wanted another")
    monkeypatch.setattr(embedding_widgets, "fill_embedding", ill)
    explorer.redraw()
    assert 'role="alert"' in explorer.said.value and "map: got one that is ill" in explorer.said.value
