"""Figures show what they are given, the same every time; reports stand alone and are valid HTML."""
import base64
import io
import math
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lzn_nb.embedding_plots import embedding_map
from lzn_nb.plots import (as_screen_text, as_text, confusion_table, curve, curves_by_run, draw_reliability, figure_png, gaussian_check, html_table, image_grid, lines_of_runs,
                          markdown_table, mosaic, mosaic_corners, new_figure, normal_check, principal_plane, reliability, training_curves, write_report)
from lzn_nb.runs import write_metrics


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# -- images -----------------------------------------------------------------------------------
def test_mosaic_puts_every_image_in_its_place():
    images = torch.randn(7, 3, 4, 5, generator=generator()).mul(2).requires_grad_()
    picture = mosaic(images, 3, (2, 1))
    assert picture.shape == (3 * 6, 3 * 6, 3) and picture.min() >= 0 and picture.max() <= 1
    paper = torch.ones(18, 18, dtype=torch.bool)
    for k in range(7):
        rows, columns = slice(k // 3 * 6 + 2, k // 3 * 6 + 6), slice(k % 3 * 6 + 1, k % 3 * 6 + 6)
        assert torch.allclose(picture[rows, columns], ((images[k] + 1) / 2).clamp(0, 1).permute(1, 2, 0))
        paper[rows, columns] = False
    assert (picture[paper] == 1).all()


@pytest.mark.parametrize("n, columns, size, gap", [(7, 3, (4, 5), (2, 1)), (3, 1, (2, 6), (0, 3)), (1, 4, (1, 1), (1, 1))])
def test_corners_are_where_the_mosaic_has_put_the_images(n, columns, size, gap):
    picture = mosaic(torch.arange(n)[:, None, None, None].expand(n, 1, *size) / n - 1, columns, gap)
    for k, (x, y) in enumerate(mosaic_corners(n, columns, size, gap).tolist()): assert torch.allclose(picture[y:y + size[0], x:x + size[1]], torch.tensor(k / n / 2))


def test_grid_shows_images_under_their_titles():
    images = torch.linspace(-1, 1, 7)[:, None, None, None].expand(7, 1, 8, 8)
    figure = image_grid(images, columns=3, titles=[f"n{k}" for k in range(7)], title="all")
    axis, = figure.axes
    shown, = axis.get_images()
    pixels = np.asarray(shown.get_array())
    assert pixels.ndim == 2 and shown.get_clim() == (0, 1) and figure.get_suptitle() == "all"
    for k, text in enumerate(axis.texts):
        x, y = text.get_position()
        assert text.get_text() == f"n{k}" and pixels[round(y) + 2, round(x)] == pytest.approx(k / 6, abs=1e-6)  # right below it
    assert figure_png(image_grid(images[:2], columns=10))  # fewer images than columns
    named = image_grid(images, columns=3, rows=["a", "b $", "c"])
    assert [text.get_text() for text in named.axes[0].texts] == ["a", r"b \$", "c"] and named.get_figwidth() > image_grid(images, columns=3).get_figwidth()
    heights = [text.get_position()[1] for text in named.axes[0].texts]
    assert heights[0] < 5 and heights[2] - heights[1] == heights[1] - heights[0]
    with pytest.raises(ValueError, match="rows: got 2, wanted 3"): image_grid(images, columns=3, rows=["a", "b"])


def test_titles_of_several_lines_have_room_above_their_images():
    images = torch.linspace(-1, 1, 6)[:, None, None, None].expand(6, 1, 8, 8)
    figure = image_grid(images, columns=3, cell=1.2, titles=["a\nb\nc"] * 6, rows=["x\nyy", "z"])
    axis, = figure.axes
    figure_png(figure)
    boxes = [text.get_window_extent().transformed(axis.transData.inverted()) for text in axis.texts[:6]]
    pixels = np.asarray(axis.get_images()[0].get_array())
    for k, box in enumerate(boxes):
        row = pixels[:, round((box.x0 + box.x1) / 2)]
        covered = row[max(0, round(min(box.y0, box.y1))):round(max(box.y0, box.y1))]
        assert (covered == 1).all(), k  # nothing but paper behind a title
    assert image_grid(images, columns=3, rows=["x\nyy", "z"]).get_figwidth() == image_grid(images, columns=3, rows=["yy", "z"]).get_figwidth()


@pytest.mark.parametrize("images, options, words", [
    (torch.zeros(0, 1, 2, 2), {}, "images: got shape"), (torch.zeros(2, 2, 2, 2), {}, "images: got shape"), (torch.zeros(1, 2, 2), {}, "images: got shape"), (torch.zeros(0, 1, 2, 2), {"titles": []}, "images: got shape"),
    (torch.zeros(2, 1, 2, 2), {"titles": ["a"]}, "titles: got 1")])
def test_grid_refuses(images, options, words):
    with pytest.raises(ValueError, match=words): image_grid(images, **options)


# -- curves and latents -----------------------------------------------------------------------
def test_curves_leave_out_the_final_line_and_gaps():
    lines = [{"step": 10, "a": 1.0}, {"step": 20, "a": 0.5, "b": 3.0}, {"step": 20, "final": True, "a": 99.0}]
    first, second = training_curves(lines, ["a", "b"]).axes
    assert first.get_title() == "a" and first.lines[0].get_xydata().tolist() == [[10, 1], [20, 0.5]]
    assert second.lines[0].get_xydata().tolist() == [[20, 3]] and second.lines[0].get_marker() not in ("", "None", None)  # one point is visible
    for wrong in ("c", "final"):
        with pytest.raises(ValueError, match=f"keys: got '{wrong}'"): training_curves(lines, [wrong])


def test_what_is_no_number_is_no_point_of_a_curve():
    lines = [{"step": 1, "a": 1.0, "note": "x"}, {"step": 2, "a": [1, 2]}, {"step": 3, "a": None}, {"step": 4, "a": True}, {"step": 5, "a": 2}]
    assert curve(lines, "a") == ([1, 5], [1.0, 2]) and figure_png(training_curves(lines, ["a"]))
    with pytest.raises(ValueError, match=r"keys: got 'note', wanted one of \['a', 'step'\]"): curves_by_run(lines, ["note"])


def test_the_name_of_a_curve_is_no_formula():
    figure = training_curves([{"step": 1, "a$_$": 1.0}], ["a$_$"])
    assert figure_png(figure) and figure.axes[0].get_title() == r"a\$_\$"


def test_curves_of_several_runs_share_a_panel():
    runs = {"a $": [{"step": 1, "x": 1.0}, {"step": 2, "x": 0.5}, {"step": 2, "final": True, "x": 9.0, "only": 1.0}], "b": [{"step": 1, "x": 2.0, "y": 3.0}], "c": []}
    figure = training_curves(runs, ["x", "y"])
    first, second = figure.axes
    assert [line.get_xydata().tolist() for line in first.lines] == [[[1, 1], [2, 0.5]], [[1, 2]], []]
    assert [line.get_xydata().tolist() for line in second.lines] == [[], [[1, 3]], []]
    assert [line.get_color() for line in first.lines] == [line.get_color() for line in second.lines] and len({line.get_color() for line in first.lines}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [r"a \$", "b", "c"]
    assert not training_curves({"b": runs["b"]}, ["x"]).legends
    with pytest.raises(ValueError, match=r"keys: got 'only', wanted one of \['step', 'x', 'y'\]"): curves_by_run(runs, ["x", "only"])


def test_lines_of_runs_are_named_by_their_folders(tmp_path):
    for k, name in enumerate(("one/run", "two/run", "other")):
        (tmp_path / name).mkdir(parents=True)
        write_metrics(tmp_path / name, step=k)
    (tmp_path / "empty").mkdir()
    assert lines_of_runs(tmp_path / "one/run", str(tmp_path / "other")) == {"run": [{"step": 0}], "other": [{"step": 2}]}
    assert lines_of_runs(tmp_path / "one/run", tmp_path / "two/run", tmp_path / "other") == {"one/run": [{"step": 0}], "two/run": [{"step": 1}], "other": [{"step": 2}]}
    for folders, words in (((), "folders: got"), ((tmp_path / "other", tmp_path / "other"), "wanted different folders"), ((tmp_path / "empty",), "folders: got empty, which holds no metrics.jsonl")):
        with pytest.raises(ValueError, match=words): lines_of_runs(*folders)


def test_gaussian_check_draws_quantiles_against_quantiles():
    normal = torch.distributions.Normal(0.0, 1.0)
    exact = normal.icdf((torch.arange(600).double() + 0.5) / 600)[torch.randperm(600, generator=generator())].reshape(200, 3)
    histogram, quantiles = gaussian_check(2 * exact.requires_grad_() + 1).axes
    x, y = quantiles.lines[0].get_xydata().T
    assert len(x) == 400 and np.allclose(y, 2 * x + 1) and x.min() < -3 and x.max() > 3
    heights, widths = zip(*[(bar.get_height(), bar.get_width()) for bar in histogram.patches])
    assert np.dot(heights, widths) == pytest.approx(float(((2 * exact + 1).abs() <= 4).double().mean()))  # the rest lies beside it


@pytest.mark.parametrize("z, words", [(torch.zeros(0, 2), r"z: got shape \[0, 2\], wanted"), (torch.tensor([[math.nan, 1.0]]), "with numbers that are not finite"), (torch.tensor([[math.inf, 1.0]]), "with numbers that are not finite")])
def test_there_is_nothing_to_check_in_no_latents(z, words):
    with pytest.raises(ValueError, match=words): gaussian_check(z)


@pytest.mark.parametrize("keys", [[], "loss"])
def test_no_curves_are_no_picture(keys):
    with pytest.raises(ValueError, match=rf"keys: got .*, wanted a list of figures, such as \['loss'\]"): training_curves([{"step": 1, "loss": 2.0}], keys)


def test_densities_are_those_of_a_known_sample():
    state = normal_check(torch.tensor([[-3.5, -3.5, 0.5], [0.5, 0.5, 9.0]]), bins=8)  # the last is outside
    assert torch.allclose(state.density, torch.tensor([2, 0, 0, 0, 3, 0, 0, 0]).double() / 6) and state.edges.tolist() == list(range(-4, 5))
    assert state.observed.tolist() == [-3.5, -3.5, 0.5, 0.5, 0.5, 9] and torch.allclose(state.expected, -state.expected.flip(0), atol=1e-12)


def test_what_lies_beyond_the_histogram_counts_as_well():
    "A wide Gaussian is as flat as it is, and where nothing is in sight there is nothing to see, and no warning."
    wide = torch.distributions.Normal(0.0, 10.0)
    state = normal_check(wide.icdf((torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000)[:, None], bins=40)
    assert torch.allclose(state.density, wide.log_prob((state.edges[1:] + state.edges[:-1]) / 2).exp(), rtol=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not normal_check(torch.full((3, 2), 5.0)).density.any() and figure_png(gaussian_check(torch.full((3, 2), 5.0)))


# -- the map ----------------------------------------------------------------------------------
def test_plane_keeps_the_most_variance():
    x = torch.randn(200, 6, generator=generator(), dtype=torch.float64) * torch.tensor([1.0, 5.0, 1.0, 3.0, 1.0, 1.0])
    plane, share = principal_plane(x)
    values = torch.linalg.eigvalsh(x.T.cov()).flip(0)
    assert torch.allclose(plane.var(0), values[:2]) and torch.allclose(share, values[:2] / values.sum())
    assert abs(np.corrcoef(plane[:, 0], x[:, 1])[0, 1]) > 0.98 and abs(np.corrcoef(plane[:, 1], x[:, 3])[0, 1]) > 0.95
    assert torch.allclose(plane.mean(0), torch.zeros(2).double(), atol=1e-9)


def test_plane_is_a_function_of_the_points():
    x = torch.randn(100, 8, generator=generator(), dtype=torch.float64) * torch.arange(8, 0, -1)
    plane, share = principal_plane(x)
    order = torch.randperm(100, generator=generator(1))
    assert torch.equal(principal_plane(x.clone())[0], plane)
    assert torch.allclose(principal_plane(x[order])[0], plane[order])  # no sign hangs on the order of the points
    assert torch.allclose(principal_plane(x + 7)[0], plane) and torch.allclose(principal_plane(x + 7)[1], share)


@pytest.mark.parametrize("points", [torch.arange(5.0)[:, None], torch.zeros(4, 3), torch.ones(2, 2)])
def test_plane_of_too_few_directions(points):
    plane, share = principal_plane(points)
    assert plane.shape == (len(points), 2) and plane.isfinite().all() and share.shape == (2,) and share.isfinite().all()


def test_map_shows_every_class_by_its_name():
    x, labels = torch.randn(30, 5, generator=generator()), torch.arange(30) % 3
    figure = embedding_map(x, labels, "089")
    plane, share = principal_plane(x)
    assert [line.get_label() for line in figure.axes[0].lines] == ["0", "8", "9"]
    for c, line in enumerate(figure.axes[0].lines): assert np.allclose(line.get_xydata(), plane[labels == c]) and line.get_marker() == f"${'089'[c]}$"
    assert f"{share[0]:.0%}" in figure.axes[0].get_xlabel()
    assert figure_png(figure) == figure_png(embedding_map(x, labels, "089"))
    marks = [line.get_marker() for line in embedding_map(x, labels, ["cat", "$dog$", "a_{"]).axes[0].lines]
    assert len(set(marks)) == 3


def test_odd_names_are_drawn_as_they_are():
    names = ["$\\frac$", "a$b$c", "{", "<b>", "ß", "#", "x" * 40, "_", "%", "9"]
    labels = torch.arange(20) % 10
    for figure in (embedding_map(torch.randn(20, 3, generator=generator()), labels, names), confusion_table(labels, labels, names),
                   image_grid(torch.zeros(2, 1, 2, 2), titles=names[:2], title="$")):
        assert figure_png(figure)[:4] == b"\x89PNG"
    assert as_screen_text("$a$ <b> &") == "&#36;a&#36; &lt;b&gt; &amp;"


@pytest.mark.parametrize("labels, words", [(torch.zeros(3), "labels: got shape"), (torch.tensor([0, 1, 2, 3]), "labels: got values from 0 to 3"),
                                           (torch.tensor([0, 1, -1, 1]), "labels: got values from -1"), (None, r"labels: got NoneType, wanted a tensor \[4\]")])
def test_map_refuses_labels(labels, words):
    with pytest.raises(ValueError, match=words): embedding_map(torch.randn(4, 2), labels, "abc")


@pytest.mark.parametrize("points", [torch.zeros(4), torch.zeros(1, 2), torch.tensor([[0.0, math.nan]] * 4)])
def test_map_refuses_points(points):
    with pytest.raises(ValueError, match="points: got shape"): embedding_map(points, torch.zeros(4, dtype=torch.long), "abc")


# -- confusion --------------------------------------------------------------------------------
def test_confusion_counts_rows_by_truth():
    labels, predicted = torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([0, 0, 1, 1, 2, 3])
    axis = confusion_table(predicted, labels, "abcd").axes[0]
    assert {text.get_position()[::-1]: text.get_text() for text in axis.texts} == {(0, 0): "2", (0, 1): "1", (1, 1): "1", (1, 2): "1", (3, 3): "1"}
    shown = np.asarray(axis.get_images()[0].get_array())
    assert np.allclose(shown, [[2 / 3, 1 / 3, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0, 0], [0, 0, 0, 1]])  # a class without images stays empty
    assert axis.get_title() == "4 of 6 right" and axis.get_ylabel() == "true class" and [t.get_text() for t in axis.get_yticklabels()] == list("abcd")


@pytest.mark.parametrize("labels", [torch.tensor([0.5, 1.0]), torch.tensor([math.nan, 1.0]), torch.tensor([True, False]), torch.tensor([1j, 0])], ids=["halves", "NaN", "booleans", "complex"])
def test_labels_that_are_no_integers_are_named(labels):
    whole = torch.tensor([0, 1])
    for given, name in (((labels, whole), "predicted"), ((whole, labels), "labels")):
        with pytest.raises(ValueError, match=rf"^{name}: got {labels.dtype}, wanted integers \[2\]$"): confusion_table(*given, "abc")
    for kind in (torch.uint8, torch.int16): assert confusion_table(whole.to(kind), whole, "abc").axes[0].get_title() == "2 of 2 right"


def test_confusion_of_many_classes_and_wrong_ones():
    labels = torch.arange(100)
    assert not confusion_table(labels, labels, [str(k) for k in range(100)]).axes[0].texts
    for predicted, words in ((labels[:50], "predicted: got shape"), (labels + 1, "predicted: got values from 1 to 100")):
        with pytest.raises(ValueError, match=words): confusion_table(predicted, labels, [str(k) for k in range(100)])


# -- reliability ------------------------------------------------------------------------------
@given(st.lists(st.tuples(st.floats(0, 1) | st.sampled_from([k / 8 for k in range(9)]), st.booleans()), min_size=1, max_size=80), st.integers(1, 30) | st.sampled_from([2, 4, 8]))
@settings(max_examples=100, deadline=None)
def test_calibration_error_is_its_formula(samples, bins):
    "Guo et al. 2017, eq. 3, sample by sample with the bins ((m-1)/M, m/M]."
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64).tolist()
    held = [[] for _ in range(bins)]
    for sure, right in samples: held[next(m for m in range(bins) if sure <= edges[m + 1] or m == bins - 1)].append((sure, right))
    expected = sum(len(b) / len(samples) * abs(sum(right for _, right in b) / len(b) - sum(sure for sure, _ in b) / len(b)) for b in held if b)
    state = reliability(torch.tensor([sure for sure, _ in samples], dtype=torch.float64), torch.tensor([right for _, right in samples]), bins)
    assert state.count.tolist() == [len(b) for b in held] and state.error == pytest.approx(expected, abs=1e-12)
    assert torch.equal(state.accuracy.isnan(), state.count == 0) and torch.equal(state.confidence.isnan(), state.count == 0)


@given(st.integers(1, 50), st.integers(0, 50), st.floats(0, 1), st.integers(1, 20))
@settings(max_examples=50, deadline=None)
def test_the_error_of_one_confidence_is_its_distance_to_the_share_of_right_ones(n, right, sure, bins):
    right = min(right, n)
    state = reliability(torch.full((n,), sure, dtype=torch.float64), torch.arange(n) < right, bins)
    assert state.error == pytest.approx(abs(sure - right / n), abs=1e-9)


def test_an_edge_belongs_to_the_bin_below_it():
    assert reliability(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), torch.ones(5), 4).count.tolist() == [2, 1, 1, 1]
    assert reliability(torch.arange(11) / 10, torch.ones(11), 10).count.sum() == 11


def test_the_error_of_over_and_under_confidence_in_one_bin_cancels():
    "Why it depends on the number of bins: in one bin 0.6 that is right and 0.4 that is wrong look calibrated."
    sure, right = torch.tensor([0.6, 0.4], dtype=torch.float64), torch.tensor([True, False])
    assert reliability(sure, right, 1).error == pytest.approx(0) and reliability(sure, right, 2).error == pytest.approx(0.4)


def test_a_calibrated_sample_has_a_small_error_and_a_sure_one_a_large():
    sure = torch.rand(20_000, generator=generator())
    right = torch.rand(20_000, generator=generator(1)) < sure
    assert reliability(sure, right).error < 0.02 and reliability(sure.sqrt(), right).error == pytest.approx(1 / 6, abs=0.02)  # ∫ √p - p


@pytest.mark.parametrize("sure, right, bins, words", [
    (torch.zeros(0), torch.zeros(0), 5, "confidence: got shape"), (torch.tensor([1.1]), torch.tensor([True]), 5, "confidence: got shape"), (torch.tensor([math.nan]), torch.tensor([True]), 5, "confidence: got shape"),
    (torch.zeros(2, 2), torch.zeros(2, 2), 5, "confidence: got shape"), (torch.zeros(2), torch.zeros(3), 5, r"right: got shape \[3\], wanted \[2\]"), (torch.zeros(2), torch.tensor([0, 2]), 5, "right: got shape"), (torch.zeros(1), torch.zeros(1), 0, "bins: got 0"),
    (None, torch.zeros(2), 5, "confidence: got NoneType, wanted a tensor"), (torch.zeros(2), [True, False], 5, "right: got list, wanted a tensor"), (torch.zeros(2, dtype=torch.complex64), torch.zeros(2), 5, "confidence: got torch.complex64, wanted .* real")])
def test_reliability_refuses(sure, right, bins, words):
    with pytest.raises(ValueError, match=words): reliability(sure, right, bins)


def test_the_diagram_shows_accuracy_gap_and_counts():
    state = reliability(torch.tensor([0.1, 0.9, 0.95, 1.0]), torch.tensor([0, 1, 0, 1]), bins=4)
    upper, lower = draw_reliability(state, "a $").axes
    assert [(bar.get_x(), bar.get_height()) for bar in upper.patches] == [(0, 0), (0.75, pytest.approx(2 / 3))] and [bar.get_height() for bar in lower.patches] == [1, 0, 0, 3]
    gaps = [segment.tolist() for segment in upper.collections[0].get_segments()]
    assert np.allclose(gaps, [[[0.1, 0], [0.1, 0.1]], [[0.95, 2 / 3], [0.95, 0.95]]])
    assert upper.get_title() == f"a \\$: calibration error {state.error:.3f}"


# -- tables -----------------------------------------------------------------------------------
def test_tables_escape_what_they_hold():
    rows = [{"a|b": "x|y", "<i>": "1 < 2 & \"3\""}, {"<i>": "two\nlines", "a|b": None}]
    assert markdown_table(rows).splitlines() == ["| a\\|b | <i> |", "| --- | --- |", "| x\\|y | 1 < 2 & \"3\" |", "| None | two lines |"]
    page = html_table(rows)
    assert "<i>" not in page and "<th>&lt;i&gt;</th>" in page and "1 &lt; 2 &amp; &quot;3&quot;" in page
    assert page.index("None") < page.index("two")  # columns follow the heading, not the order in a row
    for wrong in ([], [{"a": 1}, {"a": 1, "b": 2}]):
        for table in (markdown_table, html_table):
            with pytest.raises(ValueError, match="rows: got"): table(wrong)


# -- report -----------------------------------------------------------------------------------
class Page(HTMLParser):
    "Collects tags, texts and addresses, and sees that every tag is closed in order."
    VOID = {"meta", "img", "br", "link", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.alts, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "srcset")]
        self.alts += [value for name, value in attributes if name == "alt"]
        if tag not in self.VOID: self.open.append(tag)

    def handle_endtag(self, tag): assert self.open.pop() == tag

    def handle_data(self, data): self.text += data


def report(tmp_path, parts, title="A run"):
    return write_report(tmp_path / "report.html", title, parts).read_text(encoding="utf-8")


def test_report_is_valid_and_stands_alone(tmp_path):
    figure = image_grid(torch.zeros(4, 1, 3, 3))
    text = report(tmp_path, ["digits – α = 0", {"steps": 3}, "# Figures", [{"figure": "accuracy", "value": "98 %"}], "# Pictures & more", figure, figure])
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and 'charset="utf-8"' in text
    assert [page.tags.count(tag) for tag in ("html", "head", "body", "title", "h1", "h2", "table", "img", "script", "link")] == [1, 1, 1, 1, 1, 2, 2, 2, 0, 0]
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses) and "http" not in text and "url(" not in text
    assert page.alts == ["Pictures & more"] * 2 and "digits – α = 0" in page.text and "steps" in page.text
    picture = Image.open(io.BytesIO(base64.b64decode(page.addresses[0].split(",")[1])))
    assert picture.format == "PNG" and picture.width > 100
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_report_escapes_everything(tmp_path):
    bad = "<script>alert('\"&')</script>"
    figure = image_grid(torch.zeros(1, 1, 2, 2))
    text = report(tmp_path, [bad, f"# {bad}", figure, [{bad: bad}], {bad: bad}], title=bad)
    page = Page(text)
    assert "script" not in page.tags and page.text.count(bad) == 8 and page.alts == [bad]  # title twice, string, heading, table twice, settings twice


def test_report_is_the_same_every_time(tmp_path):
    parts = lambda: ["text", gaussian_check(torch.randn(50, 2, generator=generator()))]
    assert report(tmp_path, parts()) == report(tmp_path, parts())


def test_a_report_that_fails_leaves_the_old_one(tmp_path):
    old = report(tmp_path, ["old"])
    with pytest.raises(ValueError): report(tmp_path, ["new", []])
    assert (tmp_path / "report.html").read_text() == old


def test_figures_show_themselves_in_a_notebook():
    figure = new_figure(1, 1)
    assert figure._repr_png_()[:4] == b"\x89PNG"
    from IPython.core.formatters import PNGFormatter
    assert PNGFormatter()(figure)[:4] == b"\x89PNG"


def test_pyplot_is_left_alone():
    "No figure is registered with pyplot, so nothing is shown twice and nothing is kept alive."
    import matplotlib.pyplot as plt
    before = plt.get_fignums()
    image_grid(torch.zeros(1, 1, 2, 2)), gaussian_check(torch.zeros(9, 2)), embedding_map(torch.randn(9, 2), torch.zeros(9, dtype=torch.long), "a")
    assert plt.get_fignums() == before


def test_names_that_begin_with_an_underscore_are_in_the_legend():
    figure, axis = (made := new_figure(3, 2)), made.subplots()
    axis.plot([0, 1], label=as_text("_b"))
    assert [text.get_text() for text in axis.legend().get_texts()] == ["\u200b_b"] and as_text("a_b") == "a_b" and len(figure_png(figure)) > 1000
