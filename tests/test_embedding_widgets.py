"""The explorer of embeddings without a browser: what is laid out, who is chosen, and what is said of them."""
import asyncio
import base64

import pytest
import torch
from traitlets import TraitError

from lzn_nb import embedding_widgets
from lzn_nb.backbones import make_encoder
from lzn_nb.embedding_plots import layout
from lzn_nb.embedding_widgets import EmbeddingExplorer, embedded, feature_names, features_of, group_rows, joined_latents
from lzn_nb.latent_views import Trained
from lzn_nb.network import ImageType, LabelType, LatentZoningNetwork
from lzn_nb.nets import UNetDecoder


@pytest.fixture(scope="module")
def trained(): return Trained()


@pytest.fixture
def explorer(): return EmbeddingExplorer(limit=60)


def points(explorer): return torch.tensor(list(zip(explorer.figure.data[0].x, explorer.figure.data[0].y)))


# -- what is seen ---------------------------------------------------------------------------------
def test_a_split_is_read_among_the_training_images(trained):
    seen = embedded(trained, "test", 50)
    assert len(seen.images) == 50 and torch.equal(seen.labels, trained.data.test.labels[seen.number])
    assert torch.equal(seen.predicted, trained.network.classify(seen.images, among=trained.zones)) and seen.confidence.min() > 0 and seen.confidence.max() <= 1
    train = embedded(trained, "train", 40)
    assert torch.allclose(joined_latents(trained, "train", train.anchors, 0.0), trained.zones.encode(train.number, alpha=0.0), atol=1e-5)
    for given, what in ((("else",), "split: got 'else'"), (("test", 0), "limit: got 0")):
        with pytest.raises(ValueError, match=what): embedded(trained, *given)


def test_features_of_every_kind(trained):
    seen = embedded(trained, "test", 20)
    assert feature_names(trained.network) == ["anchor", "latent"] and torch.equal(features_of(trained, seen, "anchor"), seen.anchors)
    assert not torch.allclose(features_of(trained, seen, "latent", 0.0), features_of(trained, seen, "latent", 1.0))
    with pytest.raises(ValueError, match=r"feature: got 'backbone', wanted one of \['anchor', 'latent'\]"): features_of(trained, seen, "backbone")
    encoder = make_encoder("cnn", (1, 8, 8), 8)
    other = Trained(LatentZoningNetwork({"image": ImageType(encoder, UNetDecoder(1, 8, latent_dim=8, width=8, mults=(1,), blocks=1), (1, 8, 8), 8), "label": LabelType(10, 8)}), limit=50)
    assert "backbone" in feature_names(other.network) and features_of(other, embedded(other, "test", 7), "backbone").shape == (7, encoder.width)


def test_what_is_told_of_a_group(trained):
    seen = embedded(trained, "test", 60)
    rows = group_rows(seen, torch.arange(60), trained.classes)
    assert [row["class"] for row in rows] == [*trained.classes, "all"] and sum(row["images"] for row in rows[:-1]) == 60 == rows[-1]["images"]
    assert rows[-1]["right"] == f"{seen.right.float().mean():.0%}" and group_rows(seen, torch.zeros(0, dtype=torch.long), trained.classes) == []


# -- the explorer -------------------------------------------------------------------------------
def test_controls_change_the_layout(explorer):
    split, feature, alpha, method, colour = explorer.controls
    before = points(explorer)
    feature.value = "latent"
    assert explorer.state.feature == "latent" and not torch.equal(points(explorer), before) and not alpha.disabled
    before = points(explorer)
    alpha.value = 0.0
    assert not torch.equal(points(explorer), before)
    colour.value = "right"
    assert set(explorer.figure.data[0].marker.color) <= {"#0072B2", "#D55E00"}
    split.value = "valid"
    assert "60 valid images" in explorer.said.value and explorer.seen.split == "valid"
    assert points(explorer).shape == (60, 2) and len(explorer.figure.data[0].marker.symbol) == 60


def test_groups_are_chosen_by_class_numbers_and_state(explorer):
    who, numbers = explorer.choosers
    who.value = 3
    assert explorer.state.chosen == (explorer.seen.labels == 3).nonzero()[:, 0].tolist() and list(explorer.figure.data[0].selectedpoints) == explorer.state.chosen
    assert f"{len(explorer.state.chosen)} chosen images" in explorer.group.value and "<table>" in explorer.told.value
    numbers.value = (5, 9)
    assert explorer.state.chosen == [5, 6, 7, 8, 9]
    who.value = -2
    assert explorer.state.chosen == (~explorer.seen.right).nonzero()[:, 0].tolist()
    explorer.state.chosen = [0, 59, 10_000]
    assert "2 chosen images" in explorer.group.value
    explorer.state.split = "train"
    assert explorer.state.chosen == [] and "nobody is chosen" in explorer.told.value and who.value == -1
    explorer.show_one(0)
    assert f"number {int(explorer.seen.number[0])}" in explorer.hovered.value


def test_umap_is_fitted_once_in_a_thread_and_comes_late(monkeypatch):
    asked = []

    def slow(x, method="pca", seed=0):
        asked.append(method)
        if method == "umap": import time; time.sleep(0.2)
        return layout(x) * (2 if method == "umap" else 1)

    monkeypatch.setattr(embedding_widgets, "layout", slow)

    async def ask():
        explorer = EmbeddingExplorer(limit=40)
        pca = points(explorer)
        explorer.state.method = "umap"
        await asyncio.sleep(0.1)
        assert "being fitted" in explorer.said.value and torch.equal(points(explorer), pca)
        explorer.choose_class(3)
        await asyncio.sleep(0.05)
        assert "chosen images" in explorer.group.value  # everything else goes on
        await asyncio.sleep(0.4)
        assert torch.allclose(points(explorer), 2 * pca) and "40 test images" in explorer.said.value
        for method in ("pca", "umap"): explorer.state.method = method; await asyncio.sleep(0.1)
        assert asked.count("umap") == 1 and torch.allclose(points(explorer), 2 * pca)
        explorer.state.feature, explorer.state.method = "latent", "umap"
        await asyncio.sleep(0.1)
        explorer.state.method = "pca"  # asked for something else meanwhile
        await asyncio.sleep(0.4)
        assert asked.count("umap") == 2 and "40 test images" in explorer.said.value and explorer.state.method == "pca"

    asyncio.run(ask())


def test_what_goes_wrong_is_said(monkeypatch):
    def broken(x, method="pca", seed=0):
        if method == "umap": raise ImportError("UMAP needs the package umap-learn, which is not installed; wanted: pip install lzn_nb[lab]")
        return layout(x)

    monkeypatch.setattr(embedding_widgets, "layout", broken)
    explorer = EmbeddingExplorer(limit=20)
    before = points(explorer)
    explorer.state.method = "umap"
    assert 'role="alert"' in explorer.said.value and "pip install lzn_nb[lab]" in explorer.said.value and torch.equal(points(explorer), before)

    async def ask():
        explorer.state.method = "pca"
        explorer.state.feature = "latent"
        explorer.state.method = "umap"
        await asyncio.sleep(0.3)
        assert 'role="alert"' in explorer.said.value

    asyncio.run(ask())
    with pytest.raises(TraitError): EmbeddingExplorer(limit=20, feature="backbone")
    with pytest.raises(ValueError, match="limit: got 0"): EmbeddingExplorer(limit=0)


def test_a_notebook_gets_the_widget_and_a_picture(explorer):
    explorer.state.chosen = [1, 2]
    bundle = explorer._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG") and "model_id" in bundle["application/vnd.jupyter.widget-view+json"]
    explorer.state.chosen = []
    assert base64.b64decode(explorer._repr_mimebundle_()["image/png"]).startswith(b"\x89PNG")
