"""Embeddings drawn: layouts are kept by what they are made from, figures show the state, and pictures cover no other."""
import base64
import importlib.metadata
import io
import json
import re
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lzn_nb import embedding_plots
from lzn_nb.embedding_plots import (KEPT, SYMBOLS, Embedding, FittedApart, box, draw_embedding, embedding, embedding_map, framed, groups, is_at_once, layout, plotly_embedding, sample_html, select_samples,
                                    selected_samples, spread, thumbnails_of)
from lzn_nb.plots import MARKS, figure_png, principal_plane


def normal(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True)
def forgotten():
    "No layout of another test is remembered."
    KEPT.clear()


@pytest.fixture
def umap(monkeypatch):
    "An umap-learn that counts its fits, and lays points out by their first two dimensions and the seed."
    class UMAP:
        fits = []

        def __init__(self, random_state, n_jobs, n_neighbors, min_dist): self.seed, self.told = random_state, (n_jobs, n_neighbors, min_dist)

        def fit_transform(self, x):
            UMAP.fits.append((self.seed, *self.told))
            return np.ascontiguousarray(x[:, :2]) + self.seed

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    monkeypatch.setattr(embedding_plots, "installed", lambda package: "1.0")
    return UMAP


def state(n=30, classes="089", **more):
    labels = torch.arange(n) % len(classes)
    parts = {"points": normal(n, 2), "labels": labels, "classes": classes, "predicted": torch.where(torch.arange(n) % 5 == 0, (labels + 1) % len(classes), labels), "images": normal(n, 1, 4, 4).clamp(-1, 1)}
    return Embedding(**parts | more)


# -- layouts ------------------------------------------------------------------------------------
def test_a_layout_is_fitted_once_for_the_same_content(umap):
    x = normal(20, 5)
    first = layout(x, "umap")
    again = layout(x.clone().double().requires_grad_(), "umap", n_neighbors=15)  # other tensor, same content; a setting that is the usual one
    assert torch.equal(first, again) and torch.equal(first, x[:, :2]) and umap.fits == [(0, 1, 15, 0.1)]
    first.zero_()  # what was given away is not what is kept
    again.zero_()
    assert torch.equal(layout(x, "umap"), x[:, :2]) and len(umap.fits) == 1


@pytest.mark.parametrize("change", [{"seed": 1}, {"n_neighbors": 5}, {"min_dist": 0.5}, {"points": "moved"}, {"points": "turned"}, {"version": "2.0"}])
def test_another_content_is_fitted_anew(umap, monkeypatch, change):
    x = normal(20, 5)
    layout(x, "umap")
    if change.get("points") == "moved": x = x.clone(); x[3, 4] += 1e-6
    if change.get("points") == "turned": x = x.flatten().reshape(25, 4)  # the same bytes in another shape
    if "version" in change: monkeypatch.setattr(embedding_plots, "installed", lambda package: "2.0")
    layout(x, "umap", **{k: v for k, v in change.items() if k not in ("points", "version")})
    assert len(umap.fits) == 2


def test_a_layout_outlives_the_process_in_its_folder(umap, tmp_path):
    x, folder = normal(20, 5), tmp_path / "new" / "maps"
    first = layout(x, "umap", folder=folder)
    file, = folder.iterdir()
    assert file.suffix == ".safetensors"
    KEPT.clear()
    assert torch.equal(layout(x, "umap", folder=str(folder)), first) and len(umap.fits) == 1
    file.unlink()
    layout(x, "umap", folder=folder)  # remembered, and written again
    assert file.exists() and len(umap.fits) == 1


@pytest.mark.parametrize("damage", ["cut", "shape", "nan", "name"])
def test_a_damaged_file_is_said_to_be_so_and_replaced(umap, tmp_path, damage):
    from safetensors.torch import load_file, save_file
    x = normal(20, 5)
    first = layout(x, "umap", folder=tmp_path)
    file, = tmp_path.iterdir()
    if damage == "cut": file.write_bytes(file.read_bytes()[:-9])
    else: save_file({"shape": {"points": first[:7]}, "nan": {"points": first / 0}, "name": {"other": first}}[damage], file)
    KEPT.clear()
    with pytest.warns(UserWarning, match="is damaged"): assert torch.equal(layout(x, "umap", folder=tmp_path), first)
    assert torch.equal(load_file(file)["points"], first) and len(umap.fits) == 2


def test_a_folder_that_cannot_be_written_costs_a_warning(umap, tmp_path):
    (tmp_path / "file").write_text("no folder")
    x = normal(20, 5)
    with pytest.warns(UserWarning, match="cannot keep a layout"): places = layout(x, "umap", folder=tmp_path / "file")
    assert torch.equal(places, x[:, :2])


def test_memory_keeps_the_latest(umap):
    tensors = [normal(6, 3, seed=k) for k in range(65)]
    for x in tensors: layout(x, "umap")
    assert len(KEPT) == 64
    layout(tensors[-1], "umap"); layout(tensors[1], "umap")
    assert len(umap.fits) == 65
    layout(tensors[0], "umap")  # the oldest is gone, and now the oldest is the third
    layout(tensors[1], "umap")
    assert len(umap.fits) == 66


def test_pca_is_the_principal_plane_and_nothing_is_kept():
    x = normal(20, 5)
    assert torch.allclose(layout(x), principal_plane(x)[0].float()) and not KEPT


def test_tsne_keeps_clusters_together_and_comes_out_the_same():
    which = torch.arange(60) % 3
    x = 20 * torch.eye(3, 9)[which] + normal(60, 9)
    first = layout(x, "tsne")
    KEPT.clear()
    assert torch.equal(layout(x, "tsne"), first) and not torch.equal(layout(x, "tsne", perplexity=5), first)
    nearest = torch.cdist(first, first).fill_diagonal_(torch.inf).argmin(1)
    assert (which[nearest] == which).all()


def test_umap_itself():
    threads = torch.get_num_threads()
    pytest.importorskip("umap")
    which = torch.arange(40) % 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its spectral beginning complains about clusters that do not touch
        places = layout(20 * torch.eye(2, 6)[which] + normal(40, 6), "umap", n_neighbors=5)
    nearest = torch.cdist(places, places).fill_diagonal_(torch.inf).argmin(1)
    assert places.shape == (40, 2) and places.dtype == torch.float32 and (which[nearest] == which).all()
    assert torch.get_num_threads() == threads  # numba sets them anew, after which PyTorch is many times slower


def test_without_umap_the_extra_is_named(monkeypatch):
    def version(package): raise importlib.metadata.PackageNotFoundError(package)
    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ImportError, match=r"umap-learn.*wanted: pip install lzn_nb\[lab\]"): layout(normal(9, 3), "umap")


@pytest.mark.parametrize("points, options, words", [
    (normal(9, 3), {"method": "isomap"}, "method: got 'isomap', wanted one of"), (normal(9, 3), {"perplexity": 3}, "settings: got 'perplexity' for PCA"),
    (normal(9, 3), {"method": "tsne", "min_dist": 3}, "settings: got 'min_dist' for t-SNE, wanted some of"), (normal(9, 3), {"method": "tsne", "perplexity": 9}, "perplexity: got 9, wanted a number above 0 and below 9"),
    (normal(9, 3), {"method": "umap", "n_neighbors": 9}, "n_neighbors: got 9, wanted an integer"), (normal(4, 3), {"method": "tsne"}, r"points: got shape \[4, 3\], wanted \[n,q\], n ≥ 5"),
    (normal(9), {}, "points: got shape"), (torch.tensor(1.0), {}, "points: got shape"), (normal(0, 3), {"method": "umap"}, "points: got shape"), (normal(9, 3) / 0, {"method": "tsne"}, "points: got shape"),
    (torch.full((9, 3), 1e300, dtype=torch.float64), {"method": "umap"}, "points: got shape"), (torch.ones(9, 3), {"method": "tsne"}, "points: got 9 in 3 dimension.* all the same"), (normal(9, 1), {"method": "umap"}, "points: got 9 in 1 dimension")])
def test_layouts_refuse(points, options, words):
    with pytest.raises(ValueError, match=words): layout(points, **options)


# -- the state ----------------------------------------------------------------------------------
@pytest.mark.parametrize("change, words", [
    ({"points": normal(30, 3)}, "points: got shape"), ({"points": torch.full((30, 2), torch.nan)}, "points: got shape"), ({"labels": torch.zeros(3)}, "labels: got shape"), ({"labels": torch.full((30,), 3)}, "labels: got values from 3"),
    ({"predicted": torch.full((30,), -1)}, "predicted: got values from -1"), ({"images": normal(29, 1, 4, 4)}, r"images: got shape .*wanted \[30,1,h,w\]"), ({"images": normal(30, 2, 4, 4)}, "images: got shape")])
def test_parts_that_do_not_fit_are_refused(change, words):
    parts = {"points": normal(30, 2), "labels": torch.zeros(30, dtype=torch.long), "classes": "abc"}
    with pytest.raises(ValueError, match=words): Embedding(**parts | change)


def test_axes_say_what_they_are(umap):
    x, labels = normal(20, 5), torch.zeros(20, dtype=torch.long)
    share = principal_plane(x)[1]
    assert embedding(x, labels, "a").axes == (f"first principal component ({share[0]:.0%} of the variance)", f"second ({share[1]:.0%})")
    made = embedding(x.requires_grad_(), labels, "a", "umap", 4, n_neighbors=3)
    assert "UMAP" in made.axes[0] and torch.allclose(made.points, x[:, :2] + 4) and umap.fits == [(4, 1, 3, 0.1)] and not made.points.requires_grad
    for method, given in (("pca", {"perplexity": 3}), ("umap", {"perplexity": 3})):
        with pytest.raises(ValueError, match="settings: got 'perplexity'"): embedding(x, labels, "a", method, **given)


@given(st.integers(1, 40), st.integers(1, 25), st.integers(0, 99), st.sampled_from(["class", "right"]))
@settings(max_examples=40, deadline=None)
def test_groups_hold_every_sample_once(n, k, seed, by):
    draw = torch.Generator().manual_seed(seed)
    labels, predicted = torch.randint(k, (2, n), generator=draw)
    made = groups(Embedding(normal(n, 2), labels, [f"c{c}" for c in range(k)], predicted), by)
    assert torch.equal(torch.cat([group.index for group in made]).sort().values, torch.arange(n))
    for group in made:
        if by == "class": assert {f"c{c}" for c in labels[group.index].tolist()} == {group.name}
        else: assert ((labels == predicted)[group.index] == (group.name == "right")).all()
    assert len({group.colour for group in made}) == len(made)


# -- thumbnails ---------------------------------------------------------------------------------
@given(st.integers(1, 60), st.floats(0.05, 2), st.floats(0.05, 2), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_pictures_cover_no_other_and_no_more_would_fit(n, width, height, seed):
    points, size = normal(n, 2, seed=seed), torch.tensor([width, height])
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    kept = spread(points, (width, height), order)
    apart = ((points[kept, None] - points[kept]).abs() >= size).any(2)
    assert kept[0] == order[0] and (apart | torch.eye(len(kept), dtype=torch.bool)).all()
    left = torch.tensor([k for k in range(n) if k not in set(kept.tolist())], dtype=torch.long)
    assert not ((points[left, None] - points[kept]).abs() >= size).any(2).all(1).any()


def test_the_misread_are_shown_first_and_frames_tell_the_group():
    made = state(points=torch.zeros(30, 2).index_fill(0, torch.tensor([29]), 1.0))  # all in one place but the last
    assert thumbnails_of(made, 0.5).index.tolist() == [0, 29]
    made = state(points=made.points, predicted=torch.where(torch.arange(30) == 7, (made.labels + 1) % 3, made.labels))
    shown = thumbnails_of(made, 0.5, "right")
    assert shown.index.tolist() == [7, 29] and shown.size == (0.5, 0.5)
    assert [tuple((255 * picture[0, 0]).round().int().tolist()) for picture in shown.pictures] == [(0xCC, 0x66, 0x77), (0x88, 0xCC, 0xEE)]
    assert thumbnails_of(made, 0) is None


def test_frames_go_around_the_picture():
    image = torch.tensor([[[-1.0, 1.0], [0.0, 0.0]]])[None]
    picture, = framed(image, torch.tensor([[1.0, 0.0, 0.0]]))
    edge = (picture.shape[0] - 32) // 2
    inner = picture[edge:-edge, edge:-edge]
    assert inner.shape == (32, 32, 3) and (inner[:16, :16] == 0).all() and (inner[:16, 16:] == 1).all() and (inner[16:] == 0.5).all()
    rim = torch.ones(picture.shape[:2], dtype=torch.bool)
    rim[edge:-edge, edge:-edge] = False
    assert torch.equal(picture[rim].unique(dim=0), torch.tensor([[1.0, 0.0, 0.0]]))
    large, = framed(torch.full((1, 3, 300, 600), 1.0), torch.zeros(1, 3))
    edge = (large.shape[1] - 64) // 2
    assert large.shape[1] - 2 * edge == 64 and large.shape[0] - 2 * edge == 32 and (large[edge:-edge, edge:-edge] == 1).all()


@pytest.mark.parametrize("call", [draw_embedding, plotly_embedding])
def test_drawings_refuse(call):
    for made, options, words in ((state(images=None), {"thumbnails": 0.1}, "thumbnails: got 0.1 for a map without images"), (state(), {"thumbnails": 1.5}, "thumbnails: got 1.5, wanted a number above 0 and below 1"),
                                 (state(predicted=None), {"by": "right"}, "by: got 'right' without predicted classes"), (state(), {"by": "size"}, "by: got 'size', wanted 'class'")):
        with pytest.raises(ValueError, match=words): call(made, **options)


# -- on paper -----------------------------------------------------------------------------------
def test_the_drawing_shows_the_state():
    made = state(axes=("across $", "up"), images=normal(30, 3, 4, 8).clamp(-1, 1))
    figure = draw_embedding(made, "title $", by="right", thumbnails=0.1)
    axis, (right, wrong) = figure.axes[0], groups(made, "right")
    for line, group in zip(axis.lines, (right, wrong), strict=True): assert np.allclose(line.get_xydata(), made.points[group.index]) and line.get_label() == group.name
    assert (axis.get_title(), axis.get_xlabel(), axis.get_ylabel()) == (r"title \$", r"across \$", "up") and axis.get_aspect() == 1
    shown, (xlim, ylim) = thumbnails_of(made, 0.1, "right"), (axis.get_xlim(), axis.get_ylim())
    assert shown.size[0] == pytest.approx(2 * shown.size[1]) and shown.size[0] == pytest.approx(0.1 * float((made.points.amax(0) - made.points.amin(0)).max()))
    for k, picture in zip(shown.index, axis.get_images(), strict=True):
        left, right, bottom, top = picture.get_extent()
        assert np.allclose([(left + right) / 2, (bottom + top) / 2], made.points[k]) and np.allclose([right - left, top - bottom], shown.size)
        assert xlim[0] <= left and right <= xlim[1] and ylim[0] <= bottom and top <= ylim[1]
    assert figure_png(figure) == figure_png(draw_embedding(made, "title $", by="right", thumbnails=0.1))


def test_the_map_of_reports_is_the_principal_plane():
    x, labels = normal(30, 5), torch.arange(30) % 3
    axis, plane = embedding_map(x, labels, "089").axes[0], principal_plane(x)[0]
    for c, line in enumerate(axis.lines): assert np.allclose(line.get_xydata(), plane[labels == c], atol=1e-5)


def test_legends_where_they_say_something():
    assert not draw_embedding(state()).legends  # letters are their own legend
    assert [text.get_text() for text in draw_embedding(state(classes=["cat", "d$g", "<b>"])).legends[0].get_texts()] == ["cat", r"d\$g", "<b>"]
    assert not draw_embedding(state(n=60, classes=[f"class {c}" for c in range(30)])).legends


@pytest.mark.parametrize("points", [torch.zeros(1, 2), torch.ones(5, 2), torch.arange(5.0)[:, None] * torch.tensor([1.0, 0.0])])
def test_places_without_extent(points):
    made = Embedding(points, torch.zeros(len(points), dtype=torch.long), "a", images=normal(len(points), 3, 4, 6).clamp(-1, 1))
    assert figure_png(draw_embedding(made, thumbnails=0.3))[:4] == b"\x89PNG" and plotly_embedding(made, thumbnails=0.3).layout.images
    (x0, x1), (y0, y1) = box(points)
    assert x1 - x0 == pytest.approx(y1 - y0) and x1 > x0 and ((points >= torch.tensor([x0, y0])) & (points <= torch.tensor([x1, y1]))).all()


# -- on the screen ------------------------------------------------------------------------------
def test_the_screen_shows_the_same():
    made = state(classes=["cat", "d$g", "<b>"], axes=("across", "<up>"))
    figure = plotly_embedding(made, "a & b", thumbnails=0.1)
    for trace, group in zip(figure.data, groups(made), strict=True):
        assert np.allclose(np.stack([trace.x, trace.y], 1), made.points[group.index]) and trace.marker.color == group.colour and trace.marker.symbol == SYMBOLS[group.mark]
        assert [row[0] for row in trace.customdata] == group.index.tolist() and "customdata[2]" in trace.hovertemplate
        assert [row[2] for row in trace.customdata] == [["cat", "d&#36;g", "&lt;b&gt;"][k] for k in made.predicted[group.index].tolist()]
    assert [trace.name for trace in figure.data] == ["cat", "d&#36;g", "&lt;b&gt;"] and figure.layout.title.text == "a &amp; b" and figure.layout.yaxis.title.text == "&lt;up&gt;"
    assert figure.layout.dragmode == "lasso" and figure.layout.yaxis.scaleanchor == "x" and figure.layout.showlegend
    shown = thumbnails_of(made, 0.1)
    for k, picture, image in zip(shown.index, shown.pictures, figure.layout.images, strict=True):
        assert np.allclose([image.x, image.y], made.points[k]) and (image.sizex, image.sizey) == shown.size and (image.xanchor, image.yanchor) == ("center", "middle")
        assert np.allclose(np.asarray(Image.open(io.BytesIO(base64.b64decode(image.source.split(",")[1])))) / 255, picture, atol=1 / 255)
    json.loads(figure.to_json())


def test_without_readings_nothing_is_said_of_them():
    made = state(predicted=None, images=None)
    trace = plotly_embedding(made).data[1]
    assert "[2]" not in trace.hovertemplate and list(trace.customdata[0]) == [1, "8"]
    assert sample_html(made, 1) == "<span>1: 8</span>"


def test_notes_are_said_last_and_the_misread_have_a_dark_rim():
    made = state(notes=[f"note {k} <" for k in range(30)])
    trace = plotly_embedding(made).data[0]
    assert trace.hovertemplate.startswith("%{customdata[0]}: %{customdata[1]}, read as %{customdata[2]}, %{customdata[3]}") and trace.customdata[1][3] == "note 3 &lt;"
    assert sample_html(made, 1).endswith("<span>1: 8, read as 8, note 1 &lt;</span>") and sample_html(state(predicted=None, images=None, notes=made.notes), 1) == "<span>1: 8, note 1 &lt;</span>"
    assert [trace.marker.line.colorscale[int(k)][1] for k in trace.marker.line.color] == [["white", "#222"][k % 5 == 0] for k in range(0, 30, 3)] and (trace.marker.line.cmin, trace.marker.line.cmax) == (0, 1)
    for name in ("x", "y", "customdata"): assert isinstance(trace[name], np.ndarray)  # of a list plotly looks at each entry, which takes ten times as long
    assert isinstance(trace.marker.line.color, np.ndarray)
    with pytest.raises(ValueError, match="notes: got 3, wanted 30"): state(notes="abc")


def test_a_fit_of_its_own_process_is_the_same_and_can_be_stopped():
    x = normal(30, 4)
    assert not is_at_once(x, "tsne") and is_at_once(x)
    apart, dropped = FittedApart(x, "tsne"), FittedApart(x + 1, "tsne")
    dropped.stop()
    assert dropped.result() is None and not is_at_once(x + 1, "tsne")
    places = apart.result()
    assert is_at_once(x, "tsne") and torch.equal(places, layout(x, "tsne"))
    KEPT.clear()
    assert torch.allclose(places, layout(x, "tsne"), atol=1e-3)
    for given, what in (((x[:3], "tsne"), "points: got shape"), ((x, "isomap"), "method: got 'isomap'")):
        with pytest.raises(ValueError, match=what): FittedApart(*given)


def test_last_words_of_a_process_are_said(monkeypatch):
    monkeypatch.setattr(FittedApart, "SCRIPT", "raise SystemExit('no room')")
    with pytest.raises(ValueError, match="t-SNE found no places for them .no room"): FittedApart(normal(30, 4), "tsne").result()


def test_letters_differ_in_form_on_the_screen():
    assert [trace.marker.symbol for trace in plotly_embedding(state()).data] == list(SYMBOLS.values())[:3] and len(set(SYMBOLS.values())) == len(MARKS)


@given(st.sets(st.integers(0, 29)))
@settings(max_examples=20, deadline=None)
def test_selections_translate_there_and_back(chosen):
    figure = plotly_embedding(state(), by="right")
    assert len(selected_samples(figure)) == 0
    select_samples(figure, torch.tensor(sorted(chosen), dtype=torch.long))
    assert selected_samples(figure).tolist() == sorted(chosen)
    assert all(trace.selectedpoints is not None for trace in figure.data)  # those without any fade as a whole
    select_samples(figure, None)
    assert all(trace.selectedpoints is None for trace in figure.data)


def test_a_sample_as_html_is_its_picture_and_words():
    made = state(classes=["cat", "<b>", "dog"], images=torch.linspace(-1, 1, 30)[:, None, None, None].expand(30, 1, 2, 3))
    text = sample_html(made, 10)  # class 1, read as 2
    assert "<b>" not in text and text.count("10: &lt;b&gt;, read as dog") == 2
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", text)[1]))))
    assert pixels.shape == (2, 3, 3) and np.allclose(pixels / 255, 10 / 29, atol=1 / 255)
    for k in (-1, 30):
        with pytest.raises(ValueError, match=f"k: got {k}, wanted 0 to 29"): sample_html(made, k)


def test_without_plotly_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match=r"pip install lzn_nb\[lab\]"): plotly_embedding(state())
