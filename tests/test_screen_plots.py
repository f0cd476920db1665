"""The figures for the screen show the same numbers as those for paper, and names as they are."""
import base64
import io
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lzn_nb.plots import confusion_table, gaussian_check, image_grid, reliability, training_curves
from lzn_nb.screen_plots import plotly_confusion_table, plotly_gaussian_check, plotly_image_grid, plotly_reliability, plotly_training_curves

ODD = ["<b>", "$x$ $y$", "&amp;", "plain"]
SHOWN = ["&lt;b&gt;", "&#36;x&#36; &#36;y&#36;", "&amp;amp;", "plain"]


def normal(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def lines(n, rate): return [{"step": k, "x": rate**k} for k in range(1, n)] + [{"step": n, "final": True, "x": 99.0}]


def test_curves_are_those_of_the_drawing():
    runs = {ODD[0]: lines(50, 0.9), ODD[1]: [line | {"y": 1.0} for line in lines(10, 0.5)]}
    drawn, figure = training_curves(runs, ["x", "y"]), plotly_training_curves(runs, ["x", "y"])
    on_paper = [line for axis in drawn.axes for line in axis.lines]
    for line, trace in zip(on_paper, figure.data, strict=True): assert np.allclose(line.get_xdata(), trace.x) and np.allclose(line.get_ydata(), trace.y) and line.get_color() == trace.line.color
    assert [trace.name for trace in figure.data] == 2 * SHOWN[:2] and [trace.mode for trace in figure.data[:2]] == ["lines", "lines+markers"]  # few points make no line
    assert [trace.showlegend for trace in figure.data] == [True, True, False, False] and figure.data[1].legendgroup == figure.data[3].legendgroup != figure.data[2].legendgroup
    assert figure.layout.showlegend and [note.text for note in figure.layout.annotations] == ["x", "y"] and {trace.xaxis for trace in figure.data} == {"x", "x2"}
    assert figure.layout.xaxis.matches == figure.layout.xaxis2.matches == "x"


def test_panels_stand_above_each_other_where_asked_for():
    figure = plotly_training_curves({"a": [line | {"y": 1.0} for line in lines(9, 0.5)]}, ["x", "y"], upright=True)
    assert figure.layout.width == 500 and figure.layout.yaxis.domain[0] > figure.layout.yaxis2.domain[1] and figure.layout.xaxis.title.text is None and figure.layout.xaxis2.title.text == "update"


def test_one_run_needs_no_legend_and_unknown_figures_are_refused():
    assert not plotly_training_curves(lines(5, 0.5), ["x"]).layout.showlegend
    with pytest.raises(ValueError, match="keys: got 'final', wanted one of"): plotly_training_curves(lines(5, 0.5), ["final"])
    with pytest.raises(ValueError, match="keys: got .., wanted a list of figures"): plotly_training_curves(lines(5, 0.5), [])


@pytest.mark.parametrize("channels, titles, rows", [(1, True, True), (3, False, False)])
def test_images_are_the_mosaic_and_marks_are_in_their_middle(channels, titles, rows):
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, channels, 6, 8)
    figure = plotly_image_grid(images, 3, titles=ODD + ["e"] if titles else None, rows=ODD[:2] if rows else ())
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(figure.data[0].source.split(",")[1])))) / 255
    assert pixels.ndim == 3 and len(figure.data) == 2 + titles
    for k, (x, y) in enumerate(zip(figure.data[1].x, figure.data[1].y)):  # pixel (i, j) lies around the point (j, i)
        block = pixels[round(y - 2.5):round(y + 2.5) + 1, round(x - 3.5):round(x + 3.5) + 1]
        assert block.shape == (6, 8, 3) and np.allclose(block, k / 4, atol=1 / 255)
    assert list(figure.data[1].customdata) == ([f"{k}: {name}" for k, name in enumerate(SHOWN + ["e"])] if titles else list("01234"))
    if titles: assert list(figure.data[2].text) == SHOWN + ["e"] and all(above < middle - 2.5 for above, middle in zip(figure.data[2].y, figure.data[1].y))
    if rows: assert list(figure.layout.yaxis.ticktext) == SHOWN[:2] and list(figure.layout.yaxis.tickvals) == [figure.data[1].y[0], figure.data[1].y[3]]


@pytest.mark.parametrize("call", [image_grid, plotly_image_grid])
def test_both_grids_refuse_the_same(call):
    for images, options, words in ((torch.zeros(0, 1, 2, 2), {}, "images: got shape"), (torch.zeros(1, 2, 2, 2), {}, "images: got shape"), (torch.zeros(2, 1, 2, 2), {"titles": []}, "titles: got 0, wanted 2"),
                                   (torch.zeros(4, 1, 2, 2), {"columns": 2, "rows": ["a"]}, "rows: got 1, wanted 2")):
        with pytest.raises(ValueError, match=words): call(images, **options)


def test_the_check_of_latents_is_that_of_the_drawing():
    z = normal(70, 9)
    (histogram, quantiles), figure = gaussian_check(z).axes, plotly_gaussian_check(z)
    bars, density, points, diagonal = figure.data
    assert np.allclose([bar.get_height() for bar in histogram.patches], bars.y) and np.allclose([bar.get_x() + bar.get_width() / 2 for bar in histogram.patches], bars.x)
    assert np.allclose(histogram.lines[0].get_xydata(), np.stack([density.x, density.y], 1)) and np.allclose(quantiles.lines[0].get_xydata(), np.stack([points.x, points.y], 1))
    assert diagonal.x == diagonal.y == (-4, 4)


def test_the_table_counts_what_the_drawing_counts():
    labels, predicted = torch.tensor([0, 0, 0, 1, 1, 3]), torch.tensor([0, 0, 1, 1, 2, 3])
    axis, figure = confusion_table(predicted, labels, ODD).axes[0], plotly_confusion_table(predicted, labels, ODD)
    heat, = figure.data
    assert np.allclose(heat.z, axis.get_images()[0].get_array()) and figure.layout.annotations[0].text == axis.get_title() == "4 of 6 right"
    counts, totals = np.moveaxis(np.asarray(heat.customdata), 2, 0)
    assert counts.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]] and (totals == counts.sum(1, keepdims=True)).all()
    assert [list(row) for row in heat.text] == [["2", "1", "", ""], ["", "1", "1", ""], [""] * 4, ["", "", "", "1"]]
    assert figure.layout.yaxis.autorange == "reversed" and list(figure.layout.xaxis.ticktext) == list(figure.layout.yaxis.ticktext) == SHOWN and figure.layout.xaxis.title.text == "read as"
    with pytest.raises(ValueError, match="predicted: got shape"): plotly_confusion_table(predicted[1:], labels, ODD)


def test_the_table_of_many_classes_names_them_where_one_points():
    figure = plotly_confusion_table(torch.arange(50), torch.arange(50), [f"c{k}" for k in range(50)])
    assert figure.data[0].text is None and not figure.layout.xaxis.showticklabels and figure.layout.xaxis.ticktext[49] == "c49"


def test_reliability_shows_full_bins_only():
    state = reliability(torch.tensor([0.1, 0.9, 0.95, 1.0]), torch.tensor([0, 1, 0, 1]), bins=4)
    upper, lower, gaps, diagonal = plotly_reliability(state, ODD[0]).data
    assert upper.x == lower.x == (0.125, 0.875) and upper.width == (0.25, 0.25) and np.allclose(upper.y, [0, 2 / 3]) and lower.y == (1, 3)
    assert np.allclose(np.asarray(gaps.x, dtype=float), [0.1, 0.1, np.nan, 0.95, 0.95, np.nan], equal_nan=True) and np.allclose(np.asarray(gaps.y, dtype=float), [0.1, 0, np.nan, 0.95, 2 / 3, np.nan], equal_nan=True)
    assert list(upper.customdata[1])[:3] == [0.75, 1.0, 3] and diagonal.x == (0, 1)
    figure = plotly_reliability(state, ODD[0])
    assert figure.layout.annotations[0].text == f"{SHOWN[0]}: calibration error {state.error:.3f}" and "NaN" not in figure.to_json()


def test_every_figure_is_json_and_the_same_every_time():
    made = lambda: [plotly_training_curves(lines(5, 0.5), ["x"]), plotly_image_grid(torch.zeros(2, 3, 4, 4)), plotly_gaussian_check(normal(9, 3)), plotly_confusion_table(torch.zeros(3).long(), torch.zeros(3).long(), "ab"),
                    plotly_reliability(reliability(torch.ones(3), torch.ones(3)))]
    for first, again in zip(made(), made()): assert json.loads(first.to_json()) == json.loads(again.to_json())


def test_without_plotly_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    for call in (lambda: plotly_image_grid(torch.zeros(1, 1, 2, 2)), lambda: plotly_training_curves(lines(5, 0.5), ["x"])):
        with pytest.raises(ImportError, match=r"pip install lzn_nb\[lab\]"): call()
