"""Zones drawn: states are what the flow says, figures show the state, and both kinds show the same."""
import base64
import builtins
import io
import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lzn_nb.plots import figure_png
from lzn_nb.zone_plots import (AssignmentCurves, Plane, ZoneMap, assignment_curves, at_times, cell_middles, chances_at, draw_assignment, draw_paths, draw_posterior, draw_zones, map_picture, margin, owners, paths_back, paths_forward, plane_of,
                               plotly_assignment, plotly_paths, plotly_posterior, plotly_zones, rgb, zone_colours, zone_map, zone_map_parts, zone_places)
from lzn_nb.zones import LatentZones


def seeded(seed=0): return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0): return torch.randn(*shape, generator=seeded(seed))


@pytest.fixture(scope="module")
def zones(): return LatentZones(1.5 * normal(5, 2), steps=20)


# -- planes -------------------------------------------------------------------------------------
@given(st.integers(3, 9), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_a_plane_has_right_angles_and_its_points_are_their_own_shadows(q, seed):
    plane, uv = plane_of(normal(12, q, seed=seed), through=normal(q, seed=seed + 1)), normal(7, 2, seed=seed + 2)
    assert torch.allclose(plane.axes @ plane.axes.T, torch.eye(2), atol=1e-5) and torch.allclose(plane.shadow(plane.points(uv)), uv, atol=1e-4)


def test_the_plane_of_two_dimensions_is_not_turned_and_lines_span_none():
    assert torch.equal(plane_of(normal(9, 2)).axes, torch.eye(2)) and torch.equal(plane_of(normal(9, 2)).origin, torch.zeros(2))
    with pytest.raises(ValueError, match="points: got 4 that lie on a line"): plane_of(torch.arange(4.0)[:, None] * torch.ones(3))
    with pytest.raises(ValueError, match="points: got 1 dimension, wanted at least 2"): plane_of(normal(4, 1))


# -- maps ---------------------------------------------------------------------------------------
def test_a_map_says_of_each_point_what_the_zones_say(zones):
    state = zone_map(zones, half=3.0, side=31, time=0.5, latents=(z := normal(9, 2)))
    line = (torch.arange(31) - 15) * 6 / 31
    for row, column in ((0, 0), (3, 20), (30, 7), (15, 15)):
        point = torch.tensor([[line[column], line[row]]])
        owner, probability = owners(zones, point, 0.5)
        assert int(state.owner[row, column]) == int(zones.decode(point)) == int(owner) and torch.allclose(state.probability[row, column], probability[0], atol=1e-5)
    assert torch.equal(state.belong, zones.decode(z)) and torch.equal(state.latents, z) and torch.allclose(state.anchors, zones.anchors)


def test_of_two_anchors_the_border_is_the_middle_and_the_probability_known():
    "Theorem 1 for two anchors ±a on an axis: the sign of the coordinate decides; at λ = 0 both are as likely."
    zones = LatentZones(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), steps=20)
    state = zone_map(zones, half=2.0, side=40)
    assert (state.owner[:, :20] == 1).all() and (state.owner[:, 20:] == 0).all()
    assert torch.allclose(state.probability, state.probability.flip(1), atol=1e-5) and torch.allclose(state.probability, state.probability[:1].expand(40, -1), atol=1e-5)
    assert torch.allclose(owners(zones, normal(5, 2), 0.0)[1], torch.full((5,), 0.5)) and torch.equal(owners(zones, normal(5, 2), 1.0)[1], torch.ones(5))


def test_a_cell_of_the_picture_shows_what_lies_in_its_middle():
    "The picture fills the map to its rim, so that the line between two zones lies where it belongs."
    zones = LatentZones(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), steps=40)
    state = zone_map(zones, half=2.0, side=8)
    assert torch.allclose(cell_middles(2.0, 4), torch.tensor([-1.5, -0.5, 0.5, 1.5]))
    middles = torch.cartesian_prod(cell_middles(2.0, 8), cell_middles(2.0, 8)).flip(1)
    assert torch.equal(state.owner.flatten(), zones.decode(middles)) and torch.allclose(state.probability.flatten(), owners(zones, middles, 0.5)[1], atol=1e-6)
    image = draw_zones(state).axes[0].images[0]
    assert image.get_extent() == [-2, 2, -2, 2] and image.get_array().shape[:2] == (8, 8)


def test_probability_grows_with_time(zones):
    means = [float(zone_map(zones, side=30, time=time).probability.mean()) for time in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert means == sorted(means) and means[0] == pytest.approx(0.2, abs=1e-6) and means[-1] == 1


def test_weights_and_the_published_solver(zones):
    weighted = LatentZones(zones.anchors, torch.tensor([0.0, 1, 1, 1, 7]), solver="euler", steps=20)
    state = zone_map(weighted, side=40)
    assert 0 not in state.owner and float((state.owner == 4).float().mean()) > float((zone_map(zones, side=40).owner == 4).float().mean())
    assert torch.allclose(owners(weighted, normal(3, 2), 0.0)[1], weighted.log_weights.exp()[weighted.decode(normal(3, 2))])


def test_a_slice_is_made_of_points_of_the_space():
    zones = LatentZones(normal(8, 6), steps=10)
    plane = plane_of(zones.anchors, through=normal(6, seed=5))
    state = zone_map(zones, plane=plane, half=2.0, side=11)
    assert int(state.owner[2, 9]) == int(zones.decode(plane.points(torch.tensor([[-2 + 4 / 11 * 9.5, -2 + 4 / 11 * 2.5]])).float()))


def test_the_picture_has_borders_and_stands_upright(zones):
    state = zone_map(zones, side=50, time=1.0)
    picture, colours = map_picture(state), zone_colours(5)
    assert picture.shape == (50, 50, 3) and 0 <= picture.min() and picture.max() <= 1
    at = lambda row, column: picture[49 - row, column]
    for row, column in ((0, 0), (49, 0), (49, 49), (0, 49)): assert torch.allclose(at(row, column), 1 - 0.72 * (1 - colours[state.owner[row, column]]), atol=1e-5) or torch.allclose(at(row, column), torch.tensor(0.35))
    borders = (picture == 0.35).all(2).float().mean()
    assert 0.02 < borders < 0.4


def test_both_kinds_show_the_state(zones):
    state = zone_map(zones, side=24, latents=normal(7, 2))
    figure = plotly_zones(state, "zones")
    latents, anchors, names = figure.data
    assert torch.allclose(torch.tensor([anchors.x, anchors.y]).T, state.anchors) and torch.allclose(torch.tensor([latents.x, latents.y]).T, state.latents) and list(latents.customdata) == [str(k) for k in state.belong.tolist()] and not names.text
    picture = Image.open(io.BytesIO(base64.b64decode(figure.layout.images[0].source.split(",")[1])))
    assert picture.size == (24, 24) and picture.getpixel((0, 0)) == tuple((255 * map_picture(state)[0, 0]).round().int().tolist())
    assert figure_png(draw_zones(state, "zones")) == figure_png(draw_zones(state, "zones")) != figure_png(draw_zones(zone_map(zones, side=24, time=0.1, latents=normal(7, 2)), "zones"))


def test_names_are_written_into_the_zones_that_are_shown():
    "Each in its own zone, also where that is bent around another, in both kinds; of forty zones in many dimensions only those that the plane meets."
    many = LatentZones(2 * normal(40, 32), steps=10)
    state = zone_map(many, half=6.0, side=40, time=0.2, names=[f"<{k}$" for k in range(40)])
    shown, places = zone_places(state)
    assert shown.tolist() == state.owner.unique().tolist() and 3 < len(shown) < 40
    assert torch.equal(many.decode(plane_of(many.anchors).points(places)), shown)
    paper, screen = [text for text in draw_zones(state).axes[0].texts], plotly_zones(state).data[2]
    assert [text.get_text() for text in paper] == [rf"<{k}\$" for k in shown] and torch.allclose(torch.tensor([text.get_position() for text in paper]), places)
    assert list(screen.text) == [f"&lt;{k}&#36;" for k in shown] and torch.allclose(torch.tensor([screen.x, screen.y]).T, places) and screen.mode == "text"
    ring = torch.zeros(9, 9, dtype=torch.long)
    ring[1:8, 1:8] = 1
    _, places = zone_places(ZoneMap(9.0, 0.5, ring, torch.ones(9, 9), normal(2, 2), normal(0, 2), torch.zeros(0)))
    assert float(places[0].abs().max()) == pytest.approx(8) and torch.allclose(places[1], torch.zeros(2), atol=1e-5)
    assert not draw_zones(replace(state, names=None)).axes[0].texts
    with pytest.raises(ValueError, match="names: got 2, wanted 40, one for each zone"): replace(state, names=["a", "b"])


def test_a_map_in_parts_is_the_map(zones):
    *counts, state = zone_map_parts(zones, side=24, latents=normal(7, 2), size=100)
    whole = zone_map(zones, side=24, latents=normal(7, 2))
    assert counts == [7, 100, 100, 100, 100, 100, 76] and torch.equal(state.owner, whole.owner) and torch.allclose(state.probability, whole.probability, atol=1e-5) and torch.equal(state.belong, whole.belong)


@pytest.mark.parametrize("n", [1, 10, 11, 300])
def test_colours_are_different(n): assert torch.equal(zone_colours(n)[:10], zone_colours(10)[:n]) and len(zone_colours(n).unique(dim=0)) == n and 0 <= zone_colours(n).min() and zone_colours(n).max() <= 1


# -- ways ---------------------------------------------------------------------------------------
def test_straight_lines_between_known_times():
    times, positions = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([[[0.0]], [[2.0]], [[2.0]]])
    assert torch.allclose(at_times(times, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), positions)[:, 0, 0], torch.tensor([0.0, 1.0, 2.0, 2.0, 2.0]))
    own = torch.tensor([[0.0, 0.0], [0.5, 0.25], [1.0, 1.0]])  # each its own times
    found = at_times(own, torch.tensor([0.25]), positions.expand(3, 2, 1))
    assert torch.allclose(found[0, :, 0], torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("solver", ["adams", "euler"])
def test_ways_begin_at_latents_and_end_at_anchors(zones, solver):
    own, z = LatentZones(zones.anchors, solver=solver, steps=40), normal(9, 2, seed=2)
    paths = paths_forward(own, z, frames=11)
    assert torch.allclose(paths.positions[0], z, atol=1e-5) and torch.allclose(paths.positions[-1], zones.anchors[paths.owner], atol=1e-5) and torch.equal(paths.owner, own.decode(z))
    assert torch.allclose(paths.times, torch.linspace(0, 1, 11)) and paths.positions.shape == (11, 9, 2)


def test_the_way_back_is_the_way_forth(zones):
    own, index, noise = LatentZones(zones.anchors, steps=80), torch.arange(10) % 5, normal(10, 2, seed=3)
    back, forth = paths_back(own, index, noise), paths_forward(own, own.encode(index, noise))
    assert torch.equal(back.owner, forth.owner) and (back.positions - forth.positions).norm(dim=2).max() < 0.02
    assert torch.allclose(back.positions[0], own.encode(index, noise), atol=1e-4)


def test_ways_move_on_the_screen_and_stand_on_paper(zones):
    paths = paths_forward(zones, normal(4, 2), frames=6)
    figure = plotly_paths(paths)
    assert len(figure.frames) == 6 and [frame.name for frame in figure.frames] == [step.label for step in figure.layout.sliders[0].steps] == ["0.000", "0.200", "0.400", "0.600", "0.800", "1.000"]
    for j in (0, 3): assert torch.allclose(torch.tensor([figure.frames[j].data[0].x, figure.frames[j].data[0].y]).T, paths.positions[j]) and figure.frames[j].traces == (2,)
    json.loads(figure.to_json())
    assert sum(x != x for x in figure.data[0].x) == 4  # lines of different samples are not joined
    axis = draw_paths(paths).axes[0]
    assert torch.allclose(torch.as_tensor(axis.lines[0].get_xydata()).float(), paths.positions[:, 0])
    for moment in (0, 5): assert torch.allclose(torch.as_tensor(draw_paths(paths, moment=moment).axes[0].lines[2].get_xydata()).float(), paths.positions[moment, :1])


def test_ways_play_forth_and_back_from_where_they_are(zones):
    for paths in (paths_forward(zones, normal(4, 2), frames=6), paths_back(zones, [0, 1], normal(2, 2), frames=6)):
        figure = plotly_paths(paths)
        back, play, stop = figure.layout.updatemenus[0].buttons
        for button, label, way in ((back, "◀ back", "reverse"), (play, "▶ play", "forward")):
            assert button.label == label and button.args[0] is None and (button.args[1]["direction"], button.args[1]["fromcurrent"], button.args[1]["mode"]) == (way, True, "immediate")
        assert list(stop.args[0]) == [None] and torch.allclose(torch.tensor([figure.data[2].x, figure.data[2].y]).T, paths.positions[0])


# -- when it is decided ---------------------------------------------------------------------------
@pytest.mark.parametrize("solver", ["adams", "euler"])
def test_curves_are_those_of_the_alignment(zones, solver):
    from lzn_nb.alignment import best_log_prob
    own, z, target = LatentZones(zones.anchors, solver=solver, steps=10), normal(8, 2, seed=4), torch.arange(8) % 5
    for cutoff in (0.0, 0.2, 0.65, 0.99):
        curves, way = assignment_curves(own, z, target, cutoff), own.flow(z, target)
        assert torch.equal(curves.probability, way.log_prob.exp()) and torch.equal(curves.arrives, own.decode(z) == target) and len(curves.times) == len(curves.probability)
        counted = curves.times >= curves.counts_from
        assert torch.allclose(curves.probability[counted].amax(0), best_log_prob(way.log_prob, cutoff, way.first).exp(), atol=1e-6)
    assert len(draw_assignment(curves).axes[0].lines) == 8
    figure = plotly_assignment(curves)
    assert [trace.line.dash for trace in figure.data] == ["solid" if arrives else "dash" for arrives in curves.arrives.tolist()]


def test_lines_of_what_does_not_arrive_are_dashed():
    curves = AssignmentCurves(torch.tensor([0.2, 0.8]), torch.tensor([[0.5, 0.4], [1.0, 0.1]]), torch.tensor([True, False]), 0.0)
    assert [line.get_linestyle() for line in draw_assignment(curves).axes[0].lines] == ["-", "--"]



def test_both_kinds_show_a_posterior():
    chances = normal(12).softmax(0)
    figure, drawn = draw_posterior(chances, "half-way"), plotly_posterior(chances, "half-way").data[0]
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx(chances.tolist()) == list(drawn.y) and list(drawn.x) == list(range(12)) and list(drawn.marker.color) == rgb(zone_colours(12))
    assert torch.allclose(torch.tensor([bar.get_facecolor()[:3] for bar in figure.axes[0].patches]), zone_colours(12), atol=1e-5)


# -- titles ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("title", ["costs $x_$", r"$\foo$ <b>"])
def test_titles_are_no_formulas_and_no_tags(zones, title):
    state, paths, curves = zone_map(zones, side=4), paths_forward(zones, normal(2, 2), frames=2), assignment_curves(zones, normal(2, 2), [0, 1])
    for paper, screen, what in ((draw_zones, plotly_zones, state), (draw_paths, plotly_paths, paths), (draw_assignment, plotly_assignment, curves), (draw_posterior, plotly_posterior, torch.ones(2) / 2)):
        assert figure_png(figure := paper(what, title)) and figure.axes[0].get_title() == title.replace("$", r"\$")
        assert screen(what, title).layout.title.text == title.replace("<b>", "&lt;b&gt;").replace("$", "&#36;")


# -- bad input ------------------------------------------------------------------------------------
@pytest.mark.parametrize("call, what", [
    (lambda z: zone_map(z, side=0), "side: got 0"), (lambda z: zone_map(z, half=0), "half: got 0"), (lambda z: zone_map(z, time=1.5), "time: got 1.5"), (lambda z: zone_map(z, time="a"), "time: got 'a', wanted a number from 0 to 1"), (lambda z: zone_map(z, time=None), "time: got None"), (lambda z: zone_map(z, time=float("nan")), "time: got nan"), (lambda z: zone_map(z, latents=normal(3, 4)), "z: got"),
    (lambda z: zone_map(LatentZones(normal(4, 1))), "points: got 1 dimension"), (lambda z: paths_forward(z, normal(0, 2)), "z: got no latents"), (lambda z: paths_forward(z, normal(3, 2), frames=1), "frames: got 1, wanted at least 2"),
    (lambda z: plane_of(normal(5, 3), through=torch.zeros(2)), r"through: got shape \[2\], wanted \[3\]"), (lambda z: plane_of(normal(5, 2) / 0), "points: got numbers"), (lambda z: paths_back(z, [], normal(0, 2)), "index: got no anchors"),
    (lambda z: paths_back(z, [0, 99], normal(2, 2)), "index: got values from 0 to 99"), (lambda z: paths_back(z, [0, 1], normal(3, 2)), r"noise: got torch.float32 of shape \[3, 2\] on cpu, wanted a floating tensor \[2,2\]"), (lambda z: paths_back(z, [0.5], normal(1, 2)), "index: got torch.float32"),
    (lambda z: assignment_curves(z, normal(3, 2), [0, 1, 2], cutoff=1.0), "cutoff: got 1.0"), (lambda z: assignment_curves(z, normal(3, 2), [0, 1, 9]), "target: got"),
    *[(lambda z, draw=draw, given=given: draw(given), f"chances: got {what}, wanted real numbers") for draw in (draw_posterior, plotly_posterior) for given, what in ((normal(2, 2), r"torch.float32 of shape \[2, 2\]"), ([0.5, 0.5], "list"), (normal(0), r"torch.float32 of shape \[0\]"), (torch.ones(2).long(), r"torch.int64 of shape \[2\]"))],
    *[(lambda z, draw=draw, given=given: draw(torch.tensor(given)), f"chances: got numbers from {what}, wanted numbers from 0 to 1 whose sum is 1") for draw in (draw_posterior, plotly_posterior) for given, what in (([float("nan"), 1.0], "nan on whose sum is nan"), ([5.0, 1.0], "1 on whose sum is 6"), ([-0.5, 1.5], "-0.5 on whose sum is 1"), ([0.2, 0.2], "0.2 on whose sum is 0.4"), ([float("inf"), 0.0], "0 on whose sum is inf"))],
    *[(lambda z, call=call, plane=plane: call(z, plane_of(normal(9, plane))), rf"plane: got an origin and axes of shape \[{plane}\] and \[2, {plane}\], wanted \[2\] and \[2,2\], of the anchors' space") for plane in (3, 5) for call in
      (lambda z, plane: paths_forward(z, normal(3, 2), plane=plane), lambda z, plane: paths_back(z, [0, 1], normal(2, 2), plane=plane), lambda z, plane: zone_map(z, plane=plane, side=4))],
    (lambda z: paths_forward(LatentZones(normal(4, 5)), normal(3, 5), plane=plane_of(normal(9, 2))), r"plane: got .*, wanted \[5\] and \[2,5\]"), (lambda z: zone_map(LatentZones(normal(4, 5)), plane=plane_of(normal(9, 2)), side=4), r"plane: got .*, wanted \[5\] and \[2,5\]"),
    *[(lambda z, moment=moment: draw_paths(paths_forward(z, normal(3, 2), frames=5), moment=moment), f"moment: got {moment!r}, wanted an integer from 0 to 4") for moment in (5, 99, -1, 1.0, True, "x")]])
def test_wrong_requests_are_named(zones, call, what):
    with pytest.raises(ValueError, match=what): call(zones)


def test_without_plotly_it_is_said_what_is_missing(zones, monkeypatch):
    whole = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *more: (_ for _ in ()).throw(ImportError(name)) if name.startswith("plotly") else whole(name, *more))
    with pytest.raises(ImportError, match=r"wanted: pip install lzn_nb\[lab\]"): plotly_zones(zone_map(zones, side=5))


def test_a_plane_keeps_what_it_is_given():
    plane = Plane(torch.zeros(3), torch.eye(3)[:2])
    assert torch.equal(plane.shadow(torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[1.0, 2.0]]))


@pytest.mark.parametrize("axes, words", [(2 * torch.eye(3)[:2], "got lengths 2 and 2 and a product of 0, wanted lengths of 1 and right angles"), (torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0]]), "got lengths 1 and 1 and a product of 0.6"), (torch.eye(3)[:2] / 0, "got lengths nan"),
                                         (torch.eye(3), r"got torch.float32 of shape \[3, 3\], wanted a floating tensor \[2,q\]"), (torch.eye(3, dtype=torch.long)[:2], r"got torch.int64 of shape \[2, 3\], wanted a floating"), ([[1.0, 0], [0, 1.0]], "got list")])
def test_axes_that_are_skew_or_scaled_are_refused(axes, words):
    with pytest.raises(ValueError, match="^axes: " + words): Plane(torch.zeros(3), axes)


def test_an_origin_elsewhere_is_refused():
    with pytest.raises(ValueError, match=r"^origin: got torch.float32 of shape \[2\], wanted a tensor \[3\]"): Plane(torch.zeros(2), torch.eye(3)[:2])


def test_chances_begin_with_the_weights_and_end_with_the_owner():
    draw = torch.Generator().manual_seed(0)
    zones = LatentZones(2 * torch.randn(5, 6, generator=draw, dtype=torch.float64) + 3, torch.tensor([1.0, 2.0, 3.0, 4.0, 0.5]), steps=40)
    z = torch.randn(50, 6, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(chances_at(zones, z, 0.0), zones.log_weights.exp().expand(50, 5))
    assert torch.equal(chances_at(zones, z, 1.0).argmax(1), zones.decode(z)) and torch.equal(chances_at(zones, z, 1.0).amax(1), torch.ones(50, dtype=torch.float64))
    way = zones.flow(z, keep_path=True)
    for time in way.path.times[way.first:-1:9].tolist():  # what `flow` says of each target at its evaluations is what is said here of it
        chances = chances_at(zones, z, time)
        torch.testing.assert_close(chances.sum(1), torch.ones(50, dtype=torch.float64))
        for k in range(5):
            nearest = int((way.path.times[way.first:] - time).abs().argmin())
            torch.testing.assert_close(chances[:, k], zones.flow(z, torch.full((50,), k)).log_prob[nearest].exp(), atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("solver, steps, off", [("adams", 3, 0.06), ("adams", 10, 0.01), ("euler", 5, 0.1), ("euler", 20, 0.03)])
def test_chances_are_those_of_the_time_that_is_asked_for(solver, steps, off):
    "Also between evaluations, of which there may be few: beside a flow of four hundred."
    anchors, z = torch.tensor([[-1.6, 0.8], [1.5, 1.2], [0.3, -1.7], [0.4, 0.5]]), normal(300, 2)
    few, exact = LatentZones(anchors, solver=solver, steps=steps), LatentZones(anchors, steps=400)
    for time in (0.1, 0.25, 0.3, 0.45, 0.5, 0.65, 0.7, 0.85, 0.9): assert (owners(few, z, time)[1] - owners(exact, z, time)[1]).abs().mean() < off
    means = [float(owners(few, z, time)[1].mean()) for time in torch.linspace(0, 0.6, 25).tolist()]
    assert all(before < after for before, after in zip(means, means[1:]))  # no steps


@pytest.mark.parametrize("options", [{"solver": "euler", "steps": 1}, {"solver": "euler", "steps": 4}, {"steps": 10, "window": 3.0}, {"steps": 10, "sharpness": 5.0}])
def test_chances_behind_the_last_evaluation(zones, options):
    own, z = LatentZones(zones.anchors, **options), normal(20, 2)
    for time in (0.8, 0.95, 0.999): torch.testing.assert_close(chances_at(own, z, time).sum(1), torch.ones(20))
    assert (own.decode(z) == chances_at(own, z, 0.999).argmax(1)).all()


def test_of_a_flow_that_stops_early_chances_are_those_where_it_stops():
    zones, z = LatentZones(normal(5, 3, seed=2), steps=20).at_sharpness(2.0), normal(30, 3)
    found = chances_at(zones, z, 0.999)
    assert 0.2 < float(found.amax(1).mean()) < 0.95 and torch.equal(found, chances_at(zones, z, 1.0))
    index = torch.arange(30) % 5
    torch.testing.assert_close(found.gather(1, index[:, None])[:, 0].log(), zones.flow(z, index).log_prob[-1], atol=1e-4, rtol=1e-4)


def test_a_margin_is_small_at_a_border_and_large_far_from_it():
    zones = LatentZones(torch.tensor([[-3.0, 0.0], [3.0, 0.0]], dtype=torch.float64), steps=60)
    def at(x: float) -> float:
        z = torch.tensor([[x, 0.3]], dtype=torch.float64)
        return float(margin(chances_at(zones, z, 0.2), zones.decode(z)))
    assert at(1e-3) < 0.01 < at(0.3) < at(1.0) < at(2.0) <= 1
    some = torch.tensor([[0.2, 0.7, 0.1]])
    torch.testing.assert_close(torch.cat([margin(some, torch.tensor([k])) for k in (0, 1, 2)]), torch.tensor([-0.5, 0.5, -0.6]))
    assert margin(torch.ones(1, 1), torch.tensor([0])) == 1.0


@pytest.mark.parametrize("chances, owner, words", [(None, torch.tensor([0]), "chances: got NoneType, wanted real numbers"), (torch.ones(3), torch.tensor([0]), r"chances: got torch.float32 of shape \[3\]"), (torch.ones(1, 2, dtype=torch.complex64), torch.tensor([0]), "chances: got torch.complex64"),
                                                   (torch.ones(1, 2), None, r"owner: got NoneType, wanted a tensor \[1\]"), (torch.ones(1, 2), torch.tensor([0, 1]), r"owner: got shape \[2\], wanted \[1\]"), (torch.ones(1, 2), torch.tensor([2]), "owner: got values from 2 to 2, wanted 0 to 1")])
def test_margins_of_nothing_are_refused(chances, owner, words):
    with pytest.raises(ValueError, match=words): margin(chances, owner)


@pytest.mark.parametrize("time", [float("nan"), "x", 2, -1, True])
def test_times_that_are_none_are_named(zones, time):
    with pytest.raises(ValueError, match="time: got .*, wanted a number from 0 to 1"): chances_at(zones, normal(2, 2), time)
