"""Widgets without a browser: their state, what they show of it, and what they say when it is wrong."""
import asyncio
import builtins
import os
import re
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from traitlets import TraitError

from lzn_nb import widgets
from lzn_nb.widgets import PART, FlowExplorer, InParts, Latest, ZoneExplorer, explored, explored_parts, in_plane, posterior, sentence, solved, waits, waits_table
from lzn_nb.zones import LatentZones

SQUARE = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])


def shown(explorer): return torch.tensor([[(s.x0 + s.x1) / 2, (s.y0 + s.y1) / 2] for s in explorer.figure.layout.shapes])


def said(widget):
    "What a widget says in the place of itself."
    assert widget.box.value == sentence(widget.refused)
    return widget.refused


def circles(*places): return [SimpleNamespace(x0=x - 0.1, x1=x + 0.1, y0=y - 0.1, y1=y + 0.1) for x, y in places]


# -- requests -----------------------------------------------------------------------------------
def test_of_many_requests_the_last_is_served():
    served = []

    async def ask():
        value = []
        latest = Latest(lambda: served.append(value[-1]), delay=0.01)
        for k in range(20): value.append(k); latest(); await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        value.append("later"); latest()
        await asyncio.sleep(0.05)

    asyncio.run(ask())
    assert served == [19, "later"]


def test_without_a_loop_it_is_served_at_once():
    served = []
    Latest(lambda: served.append(1))()
    assert served == [1]


def test_a_hand_that_never_rests_is_served_now_and_then():
    "Events closer together than the delay must not put the work off for ever; the last one is always served."
    served = []

    async def ask():
        value = []
        latest = Latest(lambda: served.append(value[-1]), delay=0.03, often=0.05)
        until = asyncio.get_running_loop().time() + 0.5
        while asyncio.get_running_loop().time() < until: value.append(len(value)); latest(); await asyncio.sleep(0.005)
        seen = len(served)
        await asyncio.sleep(0.1)
        return seen, value[-1]

    seen, last = asyncio.run(ask())
    assert 3 <= seen < 30 and served[-1] == last and served == sorted(set(served))


# -- long work ----------------------------------------------------------------------------------
def test_long_work_leaves_room_for_others_and_is_dropped_by_the_next_request():
    done, other = [], []

    async def ask():
        asked = ["first"]
        def parts():
            mine = asked[0]
            for k in range(20): done.append((mine, k)); yield
        work = InParts(parts, done.append)
        work()
        for _ in range(3): await asyncio.sleep(0.002); other.append(len(done))
        assert work.busy and 1 < len(done) < 20 and len(set(other)) > 1
        asked[0] = "second"; work()
        await asyncio.sleep(0.3)
        assert not work.busy and done[-20:] == [("second", k) for k in range(20)] and ("first", 19) not in done
        work(); work.stop()
        await asyncio.sleep(0.05)
        assert done[-1] == ("second", 0)

    asyncio.run(ask())


def test_long_work_without_a_loop_and_what_goes_wrong_in_it():
    done, wrong = [], []
    def parts():
        done.append(1); yield
        raise ValueError("no")

    work = InParts(parts, wrong.append)
    work()
    assert done == [1] and str(wrong[0]) == "no" and not work.busy


def test_what_is_urgent_goes_before_all_parts_but_the_first():
    "And no part is lost by waiting."
    done = []

    async def ask():
        def parts():
            for k in range(3): done.append(k); yield

        latest = Latest(lambda: done.append("place"))
        work = InParts(parts, done.append, lambda: bool(latest.waiting))
        work(); latest()
        await asyncio.sleep(0.2)
        assert done == [0, "place", 1, 2] and not work.busy

    asyncio.run(ask())


def test_the_last_part_may_ask_for_other_work():
    "Nothing of what it has asked for is dropped when it ends itself."
    done = []

    async def ask():
        def parts():
            for k in range(2): done.append(k); yield
            if len(done) < 4: work()

        work = InParts(parts, done.append)
        work()
        await asyncio.sleep(0.3)
        assert done == [0, 1, 0, 1] and not work.busy

    asyncio.run(ask())


# -- state --------------------------------------------------------------------------------------
def test_what_is_explored_is_what_zones_say():
    state, ways, wrong = explored(SQUARE, torch.ones(4), alpha=1.0, solver="adams", steps=20, draws=5, time=0.5, ways=True)
    zones = LatentZones(SQUARE, steps=20)
    z = zones.encode(torch.arange(4).repeat_interleave(5), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(state.latents, z) and torch.equal(state.belong, zones.decode(z)) and wrong == float((zones.decode(z) != torch.arange(4).repeat_interleave(5)).float().mean())
    assert torch.allclose(ways.positions[0], z, atol=1e-5) and explored(SQUARE, torch.ones(4), alpha=1.0, solver="adams", steps=20, draws=5, time=0.5, ways=False)[1] is None


@pytest.mark.parametrize("n, draws", [(4, 40), (4, 200), (50, 1), (50, 40), (2, 3)])
def test_ways_are_shown_of_all_zones(n, draws):
    anchors = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    state, ways, _ = explored(anchors, torch.ones(n), alpha=1.0, solver="adams", steps=30, draws=draws, time=0.5, ways=True, side=4)
    assert len(ways.owner) == min(120, n * draws) and {tuple(place) for place in ways.positions[0].tolist()} <= {tuple(place) for place in state.latents.tolist()}
    per_zone = torch.bincount(torch.arange(n * draws)[[int((state.latents - place).norm(dim=1).argmin()) for place in ways.positions[0]]] // draws, minlength=n)
    assert per_zone.min() >= 1 and per_zone.max() - per_zone.min() <= 1


MANY = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("anchors, draws, steps", [(SQUARE, 40, 20), (SQUARE, 40, 60), (MANY, 40, 20), (MANY, 200, 10)])
def test_what_takes_long_is_done_in_parts_that_are_bounded(anchors, draws, steps, monkeypatch):
    settings = {"alpha": 1.0, "solver": "adams", "steps": steps, "draws": draws, "time": 0.5, "ways": False}
    *shares, (state, _, wrong) = explored_parts(anchors, torch.ones(len(anchors)), **settings)
    each = (2 * draws * len(anchors) + 80**2) * steps * (len(anchors) + 30)  # points, evaluations and anchors of the whole
    assert shares == sorted(shares) and all(each * (b - a) <= 1.26 * PART for a, b in zip([0, *shares], [*shares, 1]))
    assert (len(shares) == 0) == (anchors is SQUARE and steps == 20)  # the usual settings are there at once
    monkeypatch.setattr(widgets, "PART", 10**12)
    (whole, _, same), = explored_parts(anchors, torch.ones(len(anchors)), **settings)
    assert torch.allclose(whole.latents, state.latents, atol=1e-5) and torch.equal(whole.owner, state.owner) and torch.equal(whole.belong, state.belong) and wrong == same


def test_long_work_shows_how_far_it_is_and_can_be_left_and_the_last_request_wins():
    async def until(true):
        end = time.time() + 60
        while not true() and time.time() < end: await asyncio.sleep(0.005)
        assert true()

    async def ask():
        explorer = ZoneExplorer(MANY, draws=4)
        before, others = explorer.figure.layout.images[0].source, []
        explorer.state.steps = 60
        await until(lambda: "computed" in explorer.said.value)
        assert re.search(r'role="status">\d+% computed', explorer.said.value) and explorer.parts.busy and not explorer.stop_button.disabled and explorer.figure.layout.images[0].source == before
        explorer.stop_button.click()
        assert not explorer.parts.busy and explorer.stop_button.disabled and "stopped: the picture is an earlier one" in explorer.said.value
        await asyncio.sleep(0.1)
        assert explorer.figure.layout.images[0].source == before and not explorer.parts.busy
        explorer.state.steps = 59
        await until(lambda: explorer.parts.busy)
        explorer.state.anchors, explorer.state.weights = SQUARE.tolist(), [1.0] * 4
        assert not explorer.parts.busy  # at once, not when the next is begun
        await until(lambda: "16 latents" in explorer.said.value)
        assert torch.allclose(shown(explorer), SQUARE) and explorer.stop_button.disabled
        explorer.stop_button.click()  # there is nothing to leave
        assert "16 latents" in explorer.said.value

    asyncio.run(ask())


def test_zones_without_weight_draw_no_latents():
    state, _, _ = explored(SQUARE, torch.tensor([1.0, 0, 1, 1]), alpha=1.0, solver="adams", steps=20, draws=5, time=0.5, ways=False)
    assert len(state.latents) == 15 and 1 not in state.owner


def test_one_evaluation_of_euler_puts_all_into_one_zone():
    assert explored(SQUARE, torch.ones(4), alpha=1.0, solver="euler", steps=1, draws=20, time=0.5, ways=False)[2] > 0.3
    assert explored(SQUARE, torch.ones(4), alpha=1.0, solver="adams", steps=40, draws=20, time=0.5, ways=False)[2] == 0


# -- the widget ---------------------------------------------------------------------------------
def test_the_figure_follows_the_state_and_the_state_the_figure():
    explorer = ZoneExplorer(SQUARE, draws=5)
    assert torch.allclose(shown(explorer), SQUARE) and len(explorer.figure.data[1].x) == 20
    before = explorer.figure.layout.images[0].source
    explorer.state.anchors = [[0.5, 2.0], *SQUARE[1:].tolist()]
    assert shown(explorer)[0].tolist() == pytest.approx([0.5, 2.0]) and explorer.figure.layout.images[0].source != before
    explorer.dragged(None, circles([0.5, 2.0], [-2.0, 0.0], *SQUARE[2:].tolist()))
    assert explorer.state.chosen == 1 and explorer.state.anchors[1] == pytest.approx([-2.0, 0.0]) and shown(explorer)[1].tolist() == pytest.approx([-2.0, 0.0])
    number, x, y, weight = explorer.fields
    assert (number.value, x.value, y.value, weight.value) == (1, -2.0, 0.0, 1.0)
    explorer.figure.layout.shapes[2].update(x0=1.0, x1=1.2, y0=0.0, y1=0.2)
    assert explorer.state.anchors[2] == pytest.approx([1.1, 0.1])


def drawn_late(act):
    "An explorer after `act(explorer)`, all of whose requests come before the first of them is drawn."
    async def ask():
        explorer = ZoneExplorer(SQUARE, draws=2)
        await act(explorer)
        await asyncio.sleep(0.2)
        return explorer

    explorer = asyncio.run(ask())
    assert 'role="status"' in explorer.said.value and torch.allclose(shown(explorer), torch.tensor(explorer.state.anchors), atol=1e-6)
    return explorer


def test_a_drag_moves_what_was_dragged_and_nothing_else():
    "Before the redraw that is under way shows what somebody has typed."
    async def typed(explorer):
        explorer.fields[0].value = 2
        explorer.fields[1].value = 2.5
        explorer.dragged(None, circles(SQUARE[0].tolist(), [-2.0, 0.5], *SQUARE[2:].tolist()))

    explorer = drawn_late(typed)
    assert explorer.state.anchors == [[1.0, 1.0], pytest.approx([-2.0, 0.5]), [2.5, -1.0], [1.0, -1.0]] and explorer.state.chosen == 1

    async def twice(explorer):
        first = [0.5, 2.0], *SQUARE[1:].tolist()
        explorer.dragged(None, circles(*first))
        explorer.fields[1].value = -0.5  # of the same anchor, which is chosen now
        explorer.dragged(None, circles(*first[:3], [2.0, -2.0]))

    assert drawn_late(twice).state.anchors == [pytest.approx([-0.5, 2.0]), [-1.0, 1.0], [-1.0, -1.0], pytest.approx([2.0, -2.0])]


def test_a_drag_is_not_taken_where_anchors_have_come_and_gone():
    "As many as before, but not the same."
    async def both(explorer):
        explorer.delete(); explorer.add(2.0, 2.0)
        explorer.dragged(None, circles(SQUARE[0].tolist(), [0.3, -2.5], *SQUARE[2:].tolist()))

    assert drawn_late(both).state.anchors == [*SQUARE[1:].tolist(), [2.0, 2.0]]


@pytest.mark.parametrize("what, anchors", [("add", 5), ("delete", 3)])
def test_a_drag_of_an_older_figure_breaks_nothing(what, anchors):
    async def act(explorer):
        getattr(explorer, what)()
        explorer.dragged(None, circles(SQUARE[0].tolist(), [2.0, 2.0], *SQUARE[2:].tolist()))

    explorer = drawn_late(act)
    assert len(explorer.state.anchors) == len(explorer.state.weights) == anchors and [2.0, 2.0] not in explorer.state.anchors
    explorer.fields[1].value = 0.7
    explorer.delete()
    assert len(explorer.state.anchors) == len(explorer.state.weights) == anchors - 1 and 'role="status"' in explorer.said.value


def test_fields_and_sliders_change_the_state():
    explorer = ZoneExplorer(SQUARE, draws=5)
    number, x, y, weight = explorer.fields
    number.value, x.value, y.value, weight.value = 3, 2.0, -0.5, 4.0
    assert explorer.state.anchors[3] == [2.0, -0.5] and explorer.state.weights == [1.0, 1.0, 1.0, 4.0] and explorer.state.anchors[:3] == SQUARE[:3].tolist()
    alpha, draws, solver, steps, time, ways = explorer.controls
    alpha.value, draws.value, solver.value, steps.value, time.value, ways.value = 0.0, 3, "euler", 7, 0.9, True
    s = explorer.state
    assert (s.alpha, s.draws, s.solver, s.steps, s.time, s.ways) == (0.0, 3, "euler", 7, 0.9, True) and len(explorer.figure.data[1].x) == 12 and len(explorer.figure.data[0].x) > 12
    s.steps = 9
    assert steps.value == 9 and "12 latents" in explorer.said.value


def test_anchors_come_and_go():
    explorer = ZoneExplorer(SQUARE[:2], draws=2)
    explorer.add(0.3, -0.2)
    assert len(explorer.state.anchors) == 3 == len(explorer.state.weights) and explorer.state.chosen == 2 and explorer.fields[0].value == 2 and len(shown(explorer)) == 3
    explorer.delete(); explorer.delete()
    assert explorer.state.anchors == SQUARE[:1].tolist() and explorer.state.chosen == 0 and "100" not in explorer.said.value
    explorer.delete()
    assert len(explorer.state.anchors) == 1 and 'role="alert"' in explorer.denied.value and "one is left" in explorer.denied.value
    explorer.state.alpha = 0.5
    assert explorer.denied.value == ""
    full = ZoneExplorer(torch.randn(50, 2, generator=torch.Generator().manual_seed(0)), draws=1)
    full.add()
    assert len(full.state.anchors) == 50 and "50 are there" in full.denied.value


def test_where_weights_and_anchors_are_not_as_many_none_comes_or_goes():
    explorer = ZoneExplorer(SQUARE, draws=2)
    explorer.state.anchors = SQUARE[:1].tolist()
    explorer.delete()
    assert "one is left" in explorer.denied.value and len(explorer.state.anchors) == 1 and "weights: got 4" in explorer.said.value.replace("shape [4]", "4")
    explorer.state.anchors = SQUARE[:2].tolist()
    for act in (explorer.add, explorer.delete):
        explorer.denied.value = ""
        act()
        assert "weights: got 4, wanted 2, one for each anchor" in explorer.denied.value and len(explorer.state.anchors) == 2 and len(explorer.state.weights) == 4
    explorer.fields[1].value = 0.3  # the fields still say what they mean
    explorer.state.weights = [1.0, 2.0]
    explorer.add()
    assert len(explorer.state.anchors) == 3 == len(explorer.state.weights) and 'role="status"' in explorer.said.value


@pytest.mark.parametrize("weights, whole", [([1.0, 0.0], 0), ([0.0, 1.0], 1), ([0.0, 0.0, 2.0], 2)])
def test_who_alone_weighs_something_is_not_deleted(weights, whole):
    "Those that are left would own nothing, and neither would anybody."
    explorer = ZoneExplorer(SQUARE[:len(weights)], weights, draws=2, ways=True)
    assert set(explorer.seen.belong.tolist()) == {whole} == set(explorer.seen.owner.unique().tolist()) and "2 latents, 0.0%" in explorer.said.value
    explorer.state.chosen = whole
    explorer.delete()
    assert "the others weigh nothing, and somebody must own the space" in explorer.denied.value and explorer.state.weights == weights and 'role="status"' in explorer.said.value
    explorer.state.chosen = (whole + 1) % len(weights)
    explorer.delete()
    assert explorer.denied.value == "" and len(explorer.state.anchors) == len(weights) - 1 == len(shown(explorer)) and max(explorer.state.weights) > 0


def test_what_is_denied_stays_there_while_something_else_is_drawn():
    async def ask():
        explorer = ZoneExplorer(SQUARE[:1], draws=2)
        explorer.state.alpha = 0.5
        explorer.delete()
        await asyncio.sleep(0.2)
        assert "one is left" in explorer.denied.value and 'role="status"' in explorer.said.value
        explorer.add()
        assert explorer.denied.value == ""

    asyncio.run(ask())


def test_what_is_wrong_is_said_in_the_widget_and_the_last_picture_stays():
    explorer = ZoneExplorer(SQUARE, draws=2)
    before = explorer.figure.layout.images[0].source
    explorer.state.weights = [0.0] * 4
    assert 'role="alert"' in explorer.said.value and "weights" in explorer.said.value and explorer.figure.layout.images[0].source == before
    explorer.state.weights = [1.0, 2.0, 1.0, 1.0]
    assert 'role="status"' in explorer.said.value
    explorer.state.anchors = [[float("nan"), 0.0], *SQUARE[1:].tolist()]
    assert 'role="alert"' in explorer.said.value
    for name, value in (("alpha", -1.0), ("steps", 0), ("solver", "rk4"), ("anchors", [[1.0]])):
        with pytest.raises(TraitError): explorer.state.set_trait(name, value)
    assert "<b>" not in sentence(ValueError("<b>"))


@pytest.mark.parametrize("anchors, what", [(torch.ones(3, 5), r"anchors: got shape \[3, 5\], wanted \[n,2\]"), (torch.ones(3), "anchors: got shape")])
def test_anchors_that_are_not_in_the_plane_are_refused(anchors, what):
    with pytest.raises(ValueError, match=what): in_plane(anchors)
    for kind in (ZoneExplorer, FlowExplorer): assert re.search(what, str(said(kind(anchors))))


def test_without_ipywidgets_it_is_said_what_is_missing(monkeypatch):
    whole = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", lambda name, *more: (_ for _ in ()).throw(ImportError(name)) if name == "ipywidgets" else whole(name, *more))
    with pytest.raises(ImportError, match=r"wanted: pip install lzn_nb\[lab\]"): ZoneExplorer(SQUARE)


# -- FlowExplorer -------------------------------------------------------------------------------
def test_the_posterior_is_bayes():
    "P(a | s, t) is proportional to weight · N(s; t a, (1-t)²)."
    zones, s = LatentZones(SQUARE, torch.tensor([1.0, 2.0, 3.0, 0.0])), torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    for time in (0.0, 0.3, 0.8):
        density = torch.tensor([1.0, 2.0, 3.0, 0.0]) * (-(torch.cdist(s, time * SQUARE) / (1 - time)).square() / 2).exp()
        assert torch.allclose(posterior(zones, s, time), density / density.sum(1, keepdim=True), atol=1e-5)
    assert torch.equal(posterior(zones, SQUARE[:2] * 0.9, 1.0).argmax(1), torch.tensor([0, 1]))


def test_a_finer_solver_is_nearer_to_the_truth():
    index, noise = torch.arange(12) % 4, torch.randn(12, 2, generator=torch.Generator().manual_seed(2))
    errors = [solved(SQUARE, noise, index, solver, steps)[1] for solver, steps in (("adams", 40), ("adams", 5), ("euler", 5))]
    assert errors == sorted(errors) and errors[0] < 0.01 < errors[2]


def test_moments_samples_and_solvers():
    flow = FlowExplorer(SQUARE, samples=8)
    lines, dotted, anchors, points = flow.ways.data
    assert torch.allclose(torch.stack([torch.as_tensor(anchors.x), torch.as_tensor(anchors.y)]).T, SQUARE) and len(points.x) == 8 and len(dotted.x) == 0 and flow.bars.data[0].y == pytest.approx([0.25] * 4)
    start = torch.stack([torch.as_tensor(points.x), torch.as_tensor(points.y)]).T
    flow.state.frame = 40
    assert torch.allclose(torch.stack([torch.as_tensor(points.x), torch.as_tensor(points.y)]).T.float(), SQUARE[torch.arange(8) % 4], atol=1e-4) and not torch.allclose(start, torch.stack([torch.as_tensor(points.x), torch.as_tensor(points.y)]).T)
    flow.state.chosen = 6
    assert flow.bars.data[0].y == pytest.approx([0, 0, 1, 0]) and points.marker.size[6] > points.marker.size[5]
    flow.state.compare = True
    assert len(dotted.x) == len(lines.x) and flow.said.value.count("latents off by") == 2
    flow.state.other, flow.state.other_steps = "euler", 5  # the first solver's ways are kept, the second's are new
    for ways, ask in ((flow.paths, ("adams", 20)), (flow.second, ("euler", 5))):
        fresh, error = solved(SQUARE, flow.noise, flow.index, *ask)
        assert torch.equal(ways.positions, fresh.positions) and f"{', '.join(map(str, ask))} evaluations: latents off by {error:.2%}" in flow.said.value
    flow.state.other, flow.state.other_steps = "adams", 7
    assert "adams, 7 evaluations" in flow.said.value and flow.controls[-1].value == 7
    flow.controls[1].value = 3
    assert flow.state.frame == 3 and flow.ways.layout.title.text == "t = 0.075"


def test_no_two_controls_have_the_same_label():
    for controls in (FlowExplorer(SQUARE, samples=4).controls, [*(zones := ZoneExplorer(SQUARE, draws=2)).controls, *zones.fields, zones.add_button, zones.delete_button]):
        labels = [control.description for control in controls]
        assert all(labels) and len(set(labels)) == len(labels), labels


def test_it_plays_there_and_back_until_it_is_stopped():
    async def ask():
        flow, seen = FlowExplorer(SQUARE, samples=4, frame=38), []
        flow.state.observe(lambda change: seen.append(change.new), "frame")
        flow.controls[0].value = True
        for _ in range(200):
            if len(seen) > 3: break
            await asyncio.sleep(0.05)
        flow.controls[0].value = False
        assert seen[:4] == [39, 40, 39, 38] and not flow.state.playing
        last = len(seen)
        await asyncio.sleep(0.3)
        assert len(seen) == last
        begun = FlowExplorer(SQUARE, samples=4, playing=True)
        for _ in range(200):
            if begun.state.frame > 2: break
            await asyncio.sleep(0.05)
        assert begun.state.frame > 2 and begun.controls[0].value
        begun.state.playing = False

    asyncio.run(ask())
    assert FlowExplorer(SQUARE, samples=4, playing=True).state.frame == 0
    still = FlowExplorer(SQUARE, samples=4)
    still.state.playing = True
    assert still.state.frame == 0  # nobody to play for


@pytest.mark.parametrize("call, what", [(lambda: FlowExplorer(torch.ones(3, 4)), r"anchors: got shape \[3, 4\], wanted \[n,2\]"), (lambda: FlowExplorer(SQUARE, samples=0), "samples: got 0"), (lambda: FlowExplorer(SQUARE * float("nan")), "anchors: got nan in row 0, wanted finite"),
                                        (lambda: ZoneExplorer(SQUARE * float("nan")), "anchors: got nan in row 0, wanted finite"), (lambda: ZoneExplorer(SQUARE, torch.zeros(4)), "weights"), (lambda: ZoneExplorer(SQUARE, torch.ones(3)), "weights"), (lambda: ZoneExplorer(torch.randn(51, 2)), "anchors: got 51"),
                                        (lambda: ZoneExplorer(SQUARE, [1, 1, 1, 10.0]), "weights: got 10, wanted 0 to 5"), (lambda: ZoneExplorer(SQUARE, "abc"), "weights: got 'abc', wanted real numbers"), (lambda: ZoneExplorer([[1, 2], [3]]), r"anchors: got \[\[1, 2\], \[3\]\], wanted real numbers"), (lambda: ZoneExplorer(SQUARE * 1j), "anchors: got torch.complex64"),
                                        *[(lambda kind=kind, half=half: kind(SQUARE, half=half), f"half: got {half!r}, wanted a number above 0") for kind in (ZoneExplorer, FlowExplorer) for half in (-1.0, 0, float("nan"), "x", True, 10**400)], (lambda: ZoneExplorer(SQUARE, half=1e300), "half: got 1e.300, wanted a number above 0 and below 1e.18"),
                                        (lambda: ZoneExplorer(SQUARE, alpha=9.0), "alpha: got 9.0, wanted a number from 0 to 2"), (lambda: ZoneExplorer(SQUARE, solver="rk4"), r"solver: got 'rk4', wanted one of \['adams', 'euler'\]"), (lambda: ZoneExplorer(SQUARE, alhpa=1.0), "alhpa: got an option that there is none of, wanted some of .*'alpha'"),
                                        (lambda: FlowExplorer(SQUARE, frame=41), "frame: got 41, wanted an integer from 0 to 40"), (lambda: FlowExplorer(SQUARE, frame=True), "frame: got True, wanted an integer from 0 to 40"), (lambda: ZoneExplorer(SQUARE, alpha=10**400), "alpha: got 1000.*, wanted a number from 0 to 2"), (lambda: ZoneExplorer(SQUARE, alpha=float("nan")), "alpha: got nan, wanted a number from 0 to 2"), (lambda: ZoneExplorer(SQUARE, time=True), "time: got True, wanted a number from 0 to 1"),
                                        (lambda: FlowExplorer(SQUARE, seed="x"), "seed: got 'x'"), (lambda: FlowExplorer(SQUARE, seed=True), "seed: got True, wanted an integer of 64 bits"), (lambda: FlowExplorer(SQUARE, seed=2**70), f"seed: got {2**70}, wanted an integer of 64 bits"), (lambda: FlowExplorer(SQUARE, 4, 3.5, 0, "more"), "positional arguments")])
def test_anchors_that_make_no_zones_are_named(call, what): assert re.search(what, str(said(call())))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_named_and_what_was_there_stays(value):
    "Also where a slider is linked, which would take the number, and break its link."
    explorer = ZoneExplorer(SQUARE, draws=2)
    for k, name, before, limits in ((0, "alpha", 1.0, "from 0 to 2"), (4, "time", 0.5, "from 0 to 1")):
        with pytest.raises(TraitError, match=f"^{name}: got {value}, wanted a number {limits}$"): explorer.state.set_trait(name, value)
        assert getattr(explorer.state, name) == before == explorer.controls[k].value and 'role="status"' in explorer.said.value
        explorer.state.set_trait(name, 0.25)
        assert explorer.controls[k].value == 0.25
        assert re.fullmatch(f"{name}: got {value}, wanted a number {limits}", str(said(ZoneExplorer(SQUARE, **{name: value}))))
    with pytest.raises(TraitError, match=rf"^weights: got \[{value}, 1.0, 1.0, 1.0\], wanted a list, each a number from 0 to 5$"): explorer.state.weights = [value, 1.0, 1.0, 1.0]
    for beyond in (6.0, -1, 10**400):
        with pytest.raises(TraitError, match=r"^weights: got \[.*, 1.0, 1.0, 1.0\], wanted a list, each a number from 0 to 5$"): explorer.state.weights = [beyond, 1.0, 1.0, 1.0]
        with pytest.raises(TraitError, match=f"^alpha: got {beyond}, wanted a number from 0 to 2$"): explorer.state.alpha = beyond
    for few in ([], [[10**400, 0.0]]):
        with pytest.raises(TraitError, match=r"^anchors: got \[.*, wanted a list of 1 to 50, each a list of 2, each a number$"): explorer.state.anchors = few
    assert explorer.state.weights == [1.0] * 4


def test_a_widget_that_was_not_made_is_a_sentence_and_says_so_again():
    widget = ZoneExplorer(torch.zeros(2, 3))
    assert "model_id" in widget._repr_mimebundle_()["application/vnd.jupyter.widget-view+json"] and not hasattr(widget, "state")
    with pytest.raises(AttributeError, match=r"ZoneExplorer has no 'state', for it was not made: anchors: got shape \[2, 3\]"): widget.state
    with pytest.raises(AttributeError, match="ZoneExplorer has no 'nothing'$"): ZoneExplorer(SQUARE, draws=2).nothing


def test_what_a_solver_cannot_do_is_said(monkeypatch):
    "Complaints of PyTorch are RuntimeErrors."
    explorer = ZoneExplorer(SQUARE, draws=2)
    monkeypatch.setattr(widgets, "explored_parts", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no kernel for <this>")))
    explorer.state.alpha = 0.3
    assert 'role="alert"' in explorer.said.value and "no kernel for &lt;this&gt;" in explorer.said.value


@pytest.mark.parametrize("make", [lambda: ZoneExplorer(SQUARE, draws=2), lambda: FlowExplorer(SQUARE, samples=4)])
def test_a_notebook_gets_the_widget_and_a_picture(make):
    "Who cannot run it sees the picture; nothing of the widget's insides is in the output."
    import base64
    bundle = make()._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG") and "model_id" in bundle["application/vnd.jupyter.widget-view+json"]


def test_the_picture_of_an_explorer_shows_what_the_widget_shows():
    explorer = ZoneExplorer(SQUARE, draws=3)
    axis, = explorer.picture().axes
    assert len(axis.lines) == 0 and len(axis.images) == 1
    explorer.state.ways = True
    axis, = explorer.picture().axes
    assert torch.allclose(torch.as_tensor(axis.lines[0].get_xydata()[:21]), explorer.ways.positions[:, 0].double()) and len(axis.lines[0].get_xydata()) == 22 * 12


def test_the_picture_of_a_flow_shows_its_moment_its_posterior_and_a_second_solver():
    flow = FlowExplorer(SQUARE, samples=8, frame=20, chosen=3)
    ways, bars = flow.picture().axes
    points = [line for line in ways.lines if line.get_marker() == "o" and not isinstance(line.get_markerfacecolor(), str)]
    assert torch.allclose(torch.tensor([line.get_xydata()[0].tolist() for line in points]), flow.paths.positions[20]) and [line.get_markersize() == 9 for line in points] == [k == 3 for k in range(8)]
    assert ways.get_title() == "t = 0.500" and bars.get_title() == "posterior of sample 3" and [bar.get_height() for bar in bars.patches] == pytest.approx(list(flow.bars.data[0].y))
    dotted = lambda axis: [line for line in axis.lines if line.get_linestyle() == ":"]
    assert not dotted(ways)
    flow.state.compare, flow.state.other_steps = True, 5
    line, = dotted(flow.picture().axes[0])
    assert torch.allclose(torch.as_tensor(line.get_xydata()[:41]), flow.second.positions[:, 0].double()) and not torch.allclose(flow.second.positions, flow.paths.positions, atol=1e-2)


def test_choosing_an_anchor_moves_none(monkeypatch):
    explorer, changes = ZoneExplorer(SQUARE * 1.23456, draws=2), []
    explorer.state.observe(lambda change: changes.append(change.name), ["anchors", "weights"])
    for k in (2, 3, 0): explorer.fields[0].value = k
    assert explorer.state.chosen == 0 and not changes and explorer.state.anchors == (SQUARE * 1.23456).tolist()
    explorer.state.chosen = 99
    assert explorer.fields[0].value == 3
    explorer.delete()
    assert len(explorer.state.anchors) == 3
    with pytest.raises(TraitError): explorer.state.chosen = -1
    explorer.state.weights = [1.0]
    assert 'role="alert"' in explorer.said.value
    assert "anchors: got 0" in str(said(FlowExplorer(torch.zeros(0, 2))))


def test_sliders_reach_as_far_as_traits():
    explorer, flow = ZoneExplorer(SQUARE, alpha=2.0, steps=60, draws=200), FlowExplorer(SQUARE, steps=60, other_steps=60)
    assert [control.value for control in explorer.controls[:2]] == [2.0, 200] and explorer.controls[3].value == 60 == explorer.state.steps == flow.state.steps == flow.controls[4].value


def test_requests_from_a_thread_with_a_loop_of_its_own_are_served_where_the_widget_was_made():
    "JupyterLab hands them to such threads; two loops in one generator would stop each other."
    served, done = [], []

    def parts():
        for k in range(20): served.append((threading.get_ident(), k)); time.sleep(0.002); yield

    async def ask():
        work, latest = InParts(parts, done.append), Latest(lambda: done.append(threading.get_ident()))

        async def elsewhere():
            for _ in range(5): work(); latest(); await asyncio.sleep(0.01)

        work()
        other = threading.Thread(target=lambda: asyncio.run(elsewhere()))
        other.start()
        until = time.time() + 10
        while (other.is_alive() or work.busy or not done) and time.time() < until: await asyncio.sleep(0.005)

    asyncio.run(ask())
    assert {thread for thread, _ in served} == {threading.get_ident()} == set(done)
    assert [k for _, k in served][-20:] == list(range(20))


def test_what_somebody_plays_from_a_thread_with_a_loop_of_its_own_goes_on_where_the_widget_was_made():
    moved = []

    async def ask():
        flow = FlowExplorer(SQUARE, samples=4)
        flow.state.observe(lambda _: moved.append(threading.get_ident()), "frame")
        async def elsewhere(): flow.state.playing = True
        other = threading.Thread(target=lambda: asyncio.run(elsewhere()))  # its loop ends with the request
        other.start()
        until = time.time() + 60
        while (other.is_alive() or len(moved) < 3) and time.time() < until: await asyncio.sleep(0.02)
        flow.state.playing = False

    asyncio.run(ask())
    assert len(moved) >= 3 and set(moved) == {threading.get_ident()}


# -- how long a hand waits --------------------------------------------------------------------------
def test_waits_are_counted_by_the_processor_and_by_the_clock():
    "A nap costs the processor nothing; the change before the work is not counted."
    changed = []
    core, clock = waits(changed.append, lambda: time.sleep(0.03), lambda: time.sleep(0.02), times=3)
    assert changed == [0, 1, 2] and core < 20 and clock >= 50
    core, clock = waits(lambda k: time.sleep(0.2), lambda: None, times=3)
    assert clock < 100
    head, _, row, _, machine = waits_table({"a nap": (lambda k: None, lambda: time.sleep(0.02))}).split("\n")
    assert head == "| control | ms of a core | ms on the clock |" and re.fullmatch(r"\| a nap \| 1?\d \| \d{2,} \|", row), row
    assert f"{os.cpu_count()} cores" in machine
