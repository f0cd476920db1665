"""The flow: against closed forms, against the published form written out, against itself in other frames, blocks and precisions."""
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lzn_nb.flow as flow
from lzn_nb.flow import (
    Adams, Course, Euler, adams_weights, block_size, check_memory, free_memory, half_square_distances, integrate, lam_from_time,
    make_solver, nearest_distances, plan_ahead, plan_course, posterior_logits, posterior_mean, time_from_lam, time_nodes,
)

torch.set_num_threads(1)
quick = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 10_000)


def randn(*shape, seed, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def log_shares(n, seed):
    "Logarithms of n weights that add up to 1 and differ by a factor of twenty at most."
    weights = 0.05 + torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (weights / weights.sum()).log()


@pytest.fixture(params=[True, False])
def tables(request, monkeypatch):
    "Tables kept for the way back, or not."
    monkeypatch.setattr(flow, "keeps_tables", lambda n, q: request.param)


def uniform(anchors):
    return anchors.new_full((len(anchors),), -math.log(len(anchors)))


def spread(anchors):
    return (2 * (anchors - anchors.mean(0)).square().sum(1).mean()).sqrt().item()


def nearest(anchors, own=None, active=None):
    own = torch.arange(len(anchors)) if own is None else own
    return nearest_distances(half_square_distances(anchors, own), 1e-7 * anchors.norm(dim=1).max().item(), active)


def encode(anchors, noise, solver, own=None, log_weights=None):
    own = torch.arange(len(anchors)) if own is None else own
    log_weights = uniform(anchors) if log_weights is None else log_weights
    fixed, active = anchors.detach(), log_weights.detach() > -math.inf
    course = solver.inverse_course(nearest(fixed, own, active), spread(fixed[active]))
    z = integrate(noise, course, anchors, log_weights, own=own).state
    return z + course.end_weight * (log_weights.exp() @ anchors - anchors[own])


def begin(anchors, z, log_weights, lam):
    "State at λ by slope and curvature at 0, and the slopes at 0 and -λ."
    mean = log_weights.exp() @ anchors
    bend = z @ ((anchors - mean).T * log_weights.exp()) @ (anchors - mean)
    return z + lam * mean + lam**2 / 2 * bend, torch.stack([mean.expand_as(z), mean - lam * bend])


def flow_along(course, anchors, z, log_weights, **options):
    "The forward flow of a solver that knows its start."
    y, past = begin(anchors, z, log_weights, course.lams[0])
    return integrate(y, course, anchors, log_weights, past=past, **options)


def decode(anchors, z, solver):
    course = solver.forward_course(nearest(anchors).min().item(), spread(anchors))
    if solver.knows_start: return flow_along(course, anchors, z, uniform(anchors)).top
    return torch.cdist(integrate(z, course, anchors, uniform(anchors)).slope, anchors).argmin(1)


def relative(x, truth):
    return ((x.double() - truth.double()).norm() / truth.norm()).item()


# -- the published form, written out ----------------------------------------------------------
def published_velocity(s, t, anchors, log_weights):
    "(Σ_l P(a_l | s, t) a_l - s) / (1 - t), number by number."
    m, (n, q) = len(s), anchors.shape
    velocity = torch.zeros_like(s)
    for i in range(m):
        exponents = [float(log_weights[l]) - sum(float(s[i, k] - t * anchors[l, k]) ** 2 for k in range(q)) / (2 * (1 - t) ** 2) for l in range(n)]
        top = max(exponents)
        shares = [math.exp(x - top) for x in exponents]
        for k in range(q):
            mean = sum(p * float(anchors[l, k]) for l, p in enumerate(shares)) / sum(shares)
            velocity[i, k] = (mean - s[i, k]) / (1 - t)
    return velocity


def published_euler(s, times, anchors, log_weights):
    for t, after in zip(times, times[1:]):
        s = s + (after - t) * published_velocity(s, t, anchors, log_weights)
    return s


@pytest.mark.parametrize("steps, gap", [(1, 0.3), (7, 1e-2), (12, 1e-4)])
@pytest.mark.parametrize("switched_off", [False, True])
def test_euler_is_the_published_inverse_flow(steps, gap, switched_off):
    anchors, noise, log_weights, own = randn(5, 3, seed=0), randn(6, 3, seed=1), log_shares(5, 2), torch.tensor([0, 1, 2, 3, 4, 0])
    if switched_off:
        log_weights, own = log_weights.index_fill(0, torch.tensor([3]), -math.inf), torch.tensor([0, 1, 2, 2, 4, 0])
    times = [(1 - gap) * (1 - k / steps) for k in range(steps + 1)]
    expected = published_euler((1 - gap) * anchors[own] + gap * noise, times, anchors, log_weights)
    torch.testing.assert_close(encode(anchors, noise, Euler(steps, gap), own, log_weights), expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_euler_is_the_published_forward_flow_up_to_the_anchors(steps):
    anchors, z, log_weights = randn(5, 3, seed=3), randn(6, 3, seed=4), log_shares(5, 5)
    expected = published_euler(z, [k / steps for k in range(steps + 1)], anchors, log_weights)
    course = Euler(steps).forward_course(0.0, spread(anchors))
    assert len(course.lams) == steps and len(course.weights) == steps - 1
    torch.testing.assert_close(integrate(z, course, anchors, log_weights).slope, expected, rtol=1e-9, atol=1e-9)


# -- closed forms -------------------------------------------------------------------------------
@st.composite
def lines(draw):
    "Anchors on a line that need not meet the origin, at distances of 0.4 and more; weights; noise."
    n, seed = draw(st.integers(1, 5)), draw(seeds)
    steps = draw(st.lists(st.floats(0.4, 3), min_size=n, max_size=n))
    places = torch.tensor(steps, dtype=torch.float64).cumsum(0) - draw(st.floats(0, 5))
    along = torch.nn.functional.normalize(randn(3, seed=seed), dim=0)
    aside = randn(3, seed=seed + 1)
    aside = aside - (aside @ along) * along
    return places, along, aside, log_shares(n, seed + 2), randn(2 * n, 3, seed=seed + 3), torch.arange(2 * n) % n


@quick
@given(lines())
def test_on_a_line_every_point_keeps_its_quantile(line):
    places, along, aside, log_weights, noise, own = line
    z = encode(places[:, None] * along + aside, noise, Adams(400, window=30.0), own, log_weights)
    start = noise @ along
    quantile = torch.special.ndtr((start + 30 * places[own])[:, None] - 30 * places) @ log_weights.exp()
    expected = noise + (torch.special.ndtri(quantile) - start)[:, None] * along
    torch.testing.assert_close(z, expected, rtol=0, atol=2e-3)


@quick
@given(seeds, st.integers(1, 20), st.sampled_from([Euler, Adams]))
def test_one_anchor_owns_the_whole_gaussian(seed, steps, kind):
    anchors, noise, alone, solver = randn(1, 4, seed=seed), randn(5, 4, seed=seed + 1), torch.zeros(5, dtype=torch.long), kind(steps)
    torch.testing.assert_close(encode(anchors, noise, solver, alone), noise)
    course = solver.forward_course(math.inf if solver.knows_start else 0.0, 0.0)
    way = flow_along(course, anchors, noise, uniform(anchors)) if solver.knows_start else integrate(noise, course, anchors, uniform(anchors))
    torch.testing.assert_close(way.slope, anchors.expand(5, 4))
    assert not way.top.any()


def test_opposite_halves_at_two_anchors():
    "Two anchors at ±1, equal weights: each sample's latents fill its half-line, with the half-normal distribution function."
    anchors, noise = torch.tensor([[-1.0], [1.0]], dtype=torch.float64), randn(2000, 1, seed=6)
    z = encode(anchors, noise, Adams(100, reach=12.0), torch.ones(2000, dtype=torch.long))[:, 0]
    assert (z > 0).all()
    torch.testing.assert_close(z, torch.special.ndtri((1 + torch.special.ndtr(noise[:, 0])) / 2), rtol=0, atol=2e-2)


# -- order --------------------------------------------------------------------------------------
def slope_between(error, few, many):
    return math.log(error(few) / error(many)) / math.log(many / few)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_the_inverse_flow(order):
    anchors, noise = randn(12, 3, seed=7), randn(12, 3, seed=8)
    window = 14 / nearest(anchors).min().item()  # wide enough that the state is at rest where it begins
    truth = encode(anchors, noise, Adams(6000, window=window))
    assert order - 0.25 < slope_between(lambda steps: relative(encode(anchors, noise, Adams(steps, order, window=window)), truth), 200, 800) < order + 0.25


@pytest.mark.parametrize("order", [1, 2, 3])
def test_order_of_the_forward_flow(order):
    "The known start keeps the third order third: an Euler step to begin with would leave an error of second order."
    anchors, z, log_weights = randn(12, 3, seed=9), randn(12, 3, seed=10), log_shares(12, 11)

    def follow(steps, order):
        return flow_along(Adams(steps, order, window=2.0).forward_course(1.0, spread(anchors)), anchors, z, log_weights).state

    truth = follow(6000, 3)
    assert order - 0.25 < slope_between(lambda steps: relative(follow(steps, order), truth), 100, 400) < order + 0.25


def test_there_and_back():
    anchors, z = randn(8, 3, seed=11), randn(50, 3, seed=12)
    solver = Adams(1000, window=15.0)
    way = flow_along(solver.forward_course(1.0, spread(anchors)), anchors, z, uniform(anchors))
    back = encode(anchors, way.state - 15 * anchors[way.top], solver, way.top)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-4)


# -- frames and precision -----------------------------------------------------------------------
@quick
@given(seeds, st.sampled_from([Euler(7), Adams(7)]))
def test_a_shift_of_all_anchors_changes_no_latent(seed, solver):
    anchors, noise, shift = randn(6, 3, seed=seed), randn(6, 3, seed=seed + 1), 5 * randn(3, seed=seed + 2)
    torch.testing.assert_close(encode(anchors + shift, noise, solver), encode(anchors, noise, solver), rtol=0, atol=1e-6)


@quick
@given(seeds, st.floats(1e-4, 1e4), st.sampled_from([1, 2, 3]))
def test_the_size_of_the_anchors_changes_no_latent_and_no_zone(seed, scale, order):
    anchors, noise, solver = randn(8, 3, seed=seed), randn(8, 3, seed=seed + 1), Adams(6, order)
    torch.testing.assert_close(encode(scale * anchors, noise, solver), encode(anchors, noise, solver), rtol=1e-6, atol=1e-6)
    assert torch.equal(decode(scale * anchors, noise, solver), decode(anchors, noise, solver))


@quick
@given(seeds, st.floats(0, 50))
def test_logits_from_the_own_anchor_are_the_same_probabilities(seed, lam):
    anchors, noise, log_weights, own = randn(6, 3, seed=seed), randn(9, 3, seed=seed + 1), log_shares(6, seed), torch.arange(9) % 6
    origin = posterior_logits(noise + lam * anchors[own], lam, anchors, log_weights)
    own_anchor = posterior_logits(noise, lam, anchors, log_weights, half_square_distances(anchors, own))
    torch.testing.assert_close(own_anchor.log_softmax(1), origin.log_softmax(1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_half_square_distances(exact, dtype):
    anchors, own = randn(7, 3, seed=13, dtype=dtype), torch.tensor([6, 0, 0, 3, 2, 5])
    found = half_square_distances(anchors, own, exact)
    assert found.dtype == dtype and (found >= 0).all() and not found[torch.arange(6), own].any()
    torch.testing.assert_close(found.double(), (anchors[own][:, None].double() - anchors.double()).square().sum(2) / 2, rtol=2e-7, atol=1e-14)


def test_exact_distances_tell_anchors_that_nearly_coincide():
    base, aside = 1e3 + randn(1, 3, seed=44), randn(1, 3, seed=45)
    anchors = torch.cat([base, base + 1e-7 * aside])
    right = ((anchors[1] - anchors[0]).square().sum() / 2).item()
    assert half_square_distances(anchors, torch.arange(2), True)[0, 1].item() == pytest.approx(right, rel=1e-12, abs=0)
    assert half_square_distances(anchors, torch.arange(2))[0, 1].item() != pytest.approx(right, rel=0.1, abs=0)  # what the option is for


def test_no_distance_is_negative_and_none_to_itself_above_zero():
    "Far from the origin, among neighbours that rounding cannot tell apart."
    anchors = 1e3 + 1e-7 * randn(100, 20, seed=78)
    found = half_square_distances(anchors, torch.arange(100))
    assert (found >= 0).all() and not found.diagonal().any()


def with_gradient(anchors, noise, solver):
    anchors = anchors.clone().requires_grad_()
    z = encode(anchors, noise, solver)
    (gradient,) = torch.autograd.grad((z * randn(*z.shape, seed=14).to(z)).sum(), anchors)
    return z.detach(), gradient


@pytest.mark.parametrize("solver", [Euler(20, 1e-4), Euler(20, 1e-6), Adams(10), Adams(20, window=1e5)])
def test_float32_keeps_its_digits_where_the_posterior_is_one_hot(solver):
    anchors, noise = randn(64, 16, seed=15).float(), randn(64, 16, seed=16).float()
    single, double = with_gradient(anchors, noise, solver), with_gradient(anchors.double(), noise.double(), solver)
    assert relative(single[0], double[0]) < 1e-5 and relative(single[1], double[1]) < 2e-5


def twins(distance):
    base, aside = randn(32, 16, seed=17), torch.nn.functional.normalize(randn(32, 16, seed=18))
    return torch.cat([base, base + distance * aside]).float(), randn(64, 16, seed=19).float()


@pytest.mark.parametrize("solver", [Euler(20), Adams(10), Adams(100)])
@pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4])
def test_float32_tells_twins_apart(solver, distance):
    anchors, noise = twins(distance)
    single, double = encode(anchors, noise, solver), encode(anchors.double(), noise.double(), solver)
    assert ((single - double).norm(dim=1) / double.norm(dim=1)).max() < 0.01


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("solver", [Euler(20), Adams(10)])
@pytest.mark.parametrize("distance, most", [(1e-2, 1e-3), (1e-3, 1e-2)])
def test_float32_gradient_at_twins(solver, distance, most):
    "Held by rows of derivatives that add up to exactly 0; without that the error is a hundred times larger."
    anchors, noise = twins(distance)
    assert relative(with_gradient(anchors, noise, solver)[1], with_gradient(anchors.double(), noise.double(), solver)[1]) < most


def test_nothing_moves_where_the_posterior_is_one_hot():
    anchors, noise = randn(8, 4, seed=20, dtype=torch.float32).requires_grad_(), randn(8, 4, seed=21, dtype=torch.float32)
    state = integrate(noise, plan_course([1e5, 1e4], 1e3), anchors, uniform(anchors), own=torch.arange(8)).state
    (gradient,) = torch.autograd.grad(state.square().sum(), anchors)
    assert torch.equal(state, noise) and not gradient.any()


def test_an_anchor_switched_off_is_not_there():
    anchors, noise, own = randn(6, 3, seed=22).requires_grad_(), randn(5, 3, seed=23), torch.tensor([0, 1, 2, 4, 5])
    log_weights = torch.full((6,), -math.log(5), dtype=torch.float64).index_fill(0, torch.tensor([3]), -math.inf)
    z = encode(anchors, noise, Adams(9), own, log_weights)
    torch.testing.assert_close(z, encode(anchors[own], noise, Adams(9)))
    (gradient,) = torch.autograd.grad(z.sum(), anchors)
    assert gradient.isfinite().all() and not gradient[3].any()


# -- the engine is the formula ------------------------------------------------------------------
def plain(state, course, anchors, log_weights, own=None, past=(), target=None):
    "The course in positions y, by plain autograd: last state, last slope, log-probabilities."
    slopes, log_probs, home = [*past], [], 0.0 if own is None else anchors[own]
    for k, lam in enumerate(course.lams):
        y = state + lam * home
        logits = lam * (y @ anchors.T) - lam**2 / 2 * anchors.square().sum(1) + log_weights
        if target is not None: log_probs.append(logits.log_softmax(1)[torch.arange(len(state)), target])
        slopes.insert(0, logits.softmax(1) @ anchors - home)
        if k < len(course.weights): state = state + sum(w * slope for w, slope in zip(course.weights[k], slopes))
    return state, slopes[0], torch.stack(log_probs) if log_probs else None


def columns(m, seed, r=4):
    "λ `[m,1]` from 3 or so down to 0 for each sample, and a course over them with a past at rest."
    far = 2 + torch.rand(m, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    nodes = [far * (1 - k / r) ** 1.5 for k in range(r + 1)]
    return plan_course(nodes[:-1], nodes[-1], 3, before=[1.5 * far, 2 * far])


NUMBERS = plan_course([0.3, 0.7, 1.2, 1.9], 2.2, 3, before=[0.0, -0.3])
NO_LAST_STEP = plan_course([0.3, 0.7, 1.2], None, 2, before=[0.0])
CASES = [("own", columns(9, 46), 0), ("own", NUMBERS, 2), ("free", NUMBERS, 2), ("free", columns(9, 47), 0), ("own", NO_LAST_STEP, 1), ("free", NO_LAST_STEP, 0),
         ("free", plan_course([0.5], None), 0), ("own", plan_course([0.5], 0.0), 0)]  # fmt: skip


def up_to_here(r, m):
    "`[r,m]`: a sample is watched up to an evaluation of its own, some not at all."
    return (torch.arange(r)[:, None] < torch.arange(m) % (r + 1)).double()


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("part", ["state", "slope", "log_prob", "early", "all"])
@pytest.mark.parametrize("frame, course, p", CASES)
def test_values_and_gradients_are_those_of_plain_autograd(frame, course, p, part, kept, monkeypatch):
    "For each result alone, for log-probabilities that count up to an evaluation only, and for all together; with tables kept and computed again."
    monkeypatch.setattr(flow, "keeps_tables", lambda n, q: kept)
    anchors, state, log_weights = randn(7, 3, seed=48).requires_grad_(), randn(9, 3, seed=49).requires_grad_(), log_shares(7, 50).requires_grad_()
    own, target, past = None if frame == "free" else torch.arange(9) % 7, torch.arange(9).flip(0) % 7, randn(p, 9, 3, seed=51).requires_grad_()
    way = integrate(state, course, anchors, log_weights, own=own, past=past if p else None, target=target)
    expected = plain(state, course, anchors, log_weights, own, past, target)
    for got, wanted in zip((way.state, way.slope, way.log_prob), expected):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    names = ("state", "slope", "log_prob") if part == "all" else ("log_prob",) if part == "early" else (part,)
    counts = up_to_here(*way.log_prob.shape) if part == "early" else 1.0
    leaves = (anchors, state, log_weights) + ((past,) if p else ())

    def pulled(results):
        scalar = sum((counts * x * randn(*x.shape, seed=52)).sum() for name, x in zip(("state", "slope", "log_prob"), results) if name in names)
        return torch.autograd.grad(scalar, leaves, allow_unused=True, materialize_grads=True)

    for got, wanted in zip(pulled((way.state, way.slope, way.log_prob)), pulled(expected)):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


def test_the_way_back_begins_where_a_sample_was_last_watched(monkeypatch):
    "Of nine samples those are pulled back that were watched there or later, and an evaluation that nobody needs is left out."
    pulled, pull = [], flow.Adjoint.pull
    monkeypatch.setattr(flow.Adjoint, "pull", lambda self, state, *rest: pulled.append(len(state)) or pull(self, state, *rest))
    way = integrate(randn(9, 3, seed=49), NUMBERS, randn(7, 3, seed=48).requires_grad_(), log_shares(7, 50), target=torch.arange(9) % 7)
    (up_to_here(4, 9)[:, :4] * way.log_prob[:, :4]).sum().backward(retain_graph=True)
    assert pulled == [1, 2, 3]
    pulled.clear()
    (way.log_prob.sum() + way.slope.sum()).backward()
    assert pulled == [9, 9, 9, 9]


def test_weights_of_each_sample_are_those_of_its_row():
    anchors, noise, own, course = randn(5, 3, seed=53).requires_grad_(), randn(4, 3, seed=54), torch.tensor([3, 0, 4, 1]), columns(4, 55)
    rows = torch.stack([log_shares(5, seed) for seed in range(4)])
    way, expected = integrate(noise, course, anchors, rows, own=own).state, plain(noise, course, anchors, rows, own)[0]
    torch.testing.assert_close(way, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(*(torch.autograd.grad(x.square().sum(), anchors)[0] for x in (way, expected)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [1, 4, 13, 100])
def test_blocks_of_any_size_give_the_same(size):
    anchors, noise, own, course, log_weights = randn(7, 3, seed=56).requires_grad_(), randn(13, 3, seed=57), torch.arange(13) % 7, columns(13, 58), log_shares(7, 59)

    def block(rows):
        part = Course([lam[rows] for lam in course.lams], [[w[rows] for w in row] for row in course.weights])
        return integrate(noise[rows], part, anchors, log_weights, own=own[rows]).state

    whole = integrate(noise, course, anchors, log_weights, own=own).state
    parts = torch.cat([block(rows) for rows in torch.arange(13).split(size)])
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(x.sin().sum(), anchors)[0] for x in (parts, whole)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n, calls", [(12, 1), (13, 1), (16, 1), (17, 2), (60, 2)])
def test_distances_are_kept_while_small_and_computed_again_when_large(n, calls):
    "With 8 evaluations in 2 dimensions, 12 anchors' tables are kept, 16 anchors' distances. Either way the gradient is that of plain autograd."
    anchors, noise, own, course, log_weights = randn(n, 2, seed=60).requires_grad_(), randn(6, 2, seed=61), torch.arange(6), columns(6, 62, 8), log_shares(n, 63)
    asked = []

    def distances():
        asked.append(1)
        return half_square_distances(anchors.detach(), own)

    way = integrate(noise, course, anchors, log_weights, own=own, distances=distances).state
    expected = plain(noise, course, anchors, log_weights, own)[0]
    torch.testing.assert_close(*(torch.autograd.grad(x.sin().sum(), anchors)[0] for x in (way, expected)), rtol=1e-10, atol=1e-10)
    assert len(asked) == calls


def test_distances_that_are_given_are_not_computed():
    anchors, noise, own, course = randn(6, 2, seed=60), randn(6, 2, seed=61), torch.arange(6), columns(6, 62)
    squares = half_square_distances(anchors, own)
    given_them = integrate(noise, course, anchors, uniform(anchors), own=own, half_squares=squares, distances=lambda: pytest.fail("asked for")).state
    assert torch.equal(given_them, integrate(noise, course, anchors, uniform(anchors), own=own).state)


@pytest.mark.parametrize("n, tables", [(200, 0), (24, 1)])
@pytest.mark.parametrize("frame", ["own", "free"])
def test_what_is_kept_for_the_way_back_does_not_grow_with_the_square(frame, n, tables):
    "States and slopes, and a few more numbers for each sample and dimension; tables only where they are few times as much."
    q, r = 4, 5
    anchors, noise, kept = randn(n, q, seed=64).requires_grad_(), randn(n, q, seed=65), {}

    def pack(x):
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        way = integrate(noise, columns(n, 66, r), anchors, uniform(anchors), own=torch.arange(n) if frame == "own" else None, target=torch.arange(n))
        loss = way.state.sum() + way.log_prob.sum()
    always, more = 8 * n * q * 2 * r, 8 * tables * r * n * n
    assert always + more <= sum(kept.values()) <= always + more + 8 * n * q * 4 and more <= 3 * always
    loss.backward()
    assert anchors.grad.isfinite().all()


def test_no_tables_are_kept_where_nobody_goes_back(monkeypatch):
    monkeypatch.setattr(flow, "KeptBlock", lambda *_: pytest.fail("kept"))
    anchors, noise = randn(6, 2, seed=60), randn(6, 2, seed=61)
    integrate(noise, NUMBERS, anchors, uniform(anchors))
    with torch.no_grad(): integrate(noise, NUMBERS, anchors.requires_grad_(), uniform(anchors))


# -- gradients ----------------------------------------------------------------------------------
@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("solver", [Euler(1), Euler(5, 1e-3), *(Adams(5, order, window=6.0, unit=0.3) for order in (1, 2, 3)), Adams(1, window=3.0, unit=1.0)])
def test_gradient_of_the_inverse_flow(solver):
    anchors, noise = randn(4, 2, seed=24).requires_grad_(), randn(5, 2, seed=25).requires_grad_()
    own, log_weights = torch.tensor([0, 1, 2, 3, 1]), log_shares(4, 26).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, u, w: encode(a, u, solver, own, w), (anchors, noise, log_weights))


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("target", [torch.arange(5) % 4, torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1]]).bool()])
@pytest.mark.parametrize("solver", [Euler(5), Adams(5, window=4.0, unit=0.3)])
def test_gradient_of_the_forward_flow_and_its_log_probabilities(solver, target):
    anchors, z, log_weights = randn(4, 2, seed=27).requires_grad_(), randn(5, 2, seed=28).requires_grad_(), log_shares(4, 29).requires_grad_()
    walk = flow_along if solver.knows_start else lambda course, anchors, z, *rest, **options: integrate(z, course, anchors, *rest, **options)

    def watched(anchors, z, log_weights):
        way = walk(solver.forward_course(1.0, 1.0), anchors, z, log_weights, target=target)
        return way.log_prob, way.state, way.slope

    assert torch.autograd.gradcheck(watched, (anchors, z, log_weights))


@pytest.mark.usefixtures("tables")
def test_gradient_of_past_slopes():
    anchors, z, past = randn(4, 2, seed=67).requires_grad_(), randn(5, 2, seed=68).requires_grad_(), randn(2, 5, 2, seed=69).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, z, p: integrate(z, NUMBERS, a, uniform(a), past=p).state, (anchors, z, past))


@pytest.mark.usefixtures("tables")
def test_gradient_at_twins_is_finite():
    anchors = torch.cat([randn(1, 3, seed=29)] * 2 + [randn(2, 3, seed=30)]).requires_grad_()
    for solver in (Euler(10), Adams(10)):
        (gradient,) = torch.autograd.grad(encode(anchors, randn(4, 3, seed=31), solver).sum(), anchors)
        assert gradient.isfinite().all()


def test_a_second_derivative_is_refused_and_not_wrong():
    anchors = randn(4, 2, seed=70).requires_grad_()
    state = integrate(randn(4, 2, seed=71), NUMBERS, anchors, uniform(anchors)).state
    (gradient,) = torch.autograd.grad(state.square().sum(), anchors, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"): gradient.sum().backward()


# -- weights of the steps -----------------------------------------------------------------------
@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.05, 3), min_size=2, max_size=4), st.floats(-20, 20), st.sampled_from([-1, 1]), st.booleans())
def test_adams_weights_integrate_polynomials_exactly(widths, start, direction, at_end):
    "With all nodes behind the step, and with one of them at its end."
    places = [start]
    for width in widths: places.append(places[-1] + direction * width)
    *behind, begin, stop = places
    nodes = [stop, begin, *behind[::-1]][0 if at_end else 1:][:3]
    weights = adams_weights(nodes, begin, stop)
    assert len(weights) == len(nodes)
    for power in range(len(nodes)):  # around the current node, where the numbers are small
        total = sum(w * (lam - begin) ** power for w, lam in zip(weights, nodes))
        scale = sum(abs(w * (lam - begin) ** power) for w, lam in zip(weights, nodes))
        assert math.isclose(total, (stop - begin) ** (power + 1) / (power + 1), rel_tol=1e-9, abs_tol=1e-9 * scale)


def test_adams_weights_by_columns():
    "Tensors of nodes, one for each sample, give what each sample's numbers give."
    rows = torch.tensor([[4.0, 3.0, 1.0, 6.0], [1.0, 2.0, 4.0, 0.5]], dtype=torch.float64)
    columns = adams_weights([rows[:, :1], rows[:, 1:2], rows[:, 2:3]], rows[:, :1], rows[:, 3:])
    for i, row in enumerate(rows.tolist()):
        assert [w[i].item() for w in columns] == pytest.approx(adams_weights(row[:3], row[0], row[3]))


@pytest.mark.parametrize("nodes", [[], [4, 3, 2, 1]])
def test_adams_weights_for_too_few_or_many_nodes(nodes):
    with pytest.raises(ValueError, match=f"nodes: got {len(nodes)} of them"): adams_weights(nodes, 4, 5)


def test_course_with_known_ends():
    course = plan_course([4.0, 2.0], 0.0, 3, before=[5.0, 6.0], known_end=True)
    assert course.lams == [4.0, 2.0]
    assert course.weights[0] == adams_weights([4.0, 5.0, 6.0], 4.0, 2.0)
    assert [course.end_weight, *course.weights[1]] == adams_weights([0.0, 2.0, 4.0], 2.0, 0.0)
    assert plan_course([4.0, 2.0], 0.0, 1, known_end=True).end_weight == 0  # Euler's step looks at its beginning only


def test_long_steps_forget():
    plan = lambda *nodes: plan_ahead(torch.tensor(nodes, dtype=torch.float64), 3, before=torch.tensor([0.0, -1.0]).double(), growth=1.5)
    rows = plan(1.0, 2.0, 3.5, 5.1).weights
    assert [len(row) for row in rows] == [3, 3, 3]
    rows = plan(1.0, 2.0, 3.6, 5.0).weights
    assert [len(row) for row in rows] == [3, 1, 2] and rows[1] == [pytest.approx(1.6)]  # Euler, and then two slopes to go on


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("before", [[], [0.0], [0.0, -0.3]])
@pytest.mark.parametrize("nodes", [[0.4], [0.4, 1.0], [0.4, 1.0, 1.5, 1.9, 2.4]])
def test_steps_planned_at_once_are_those_planned_one_by_one(order, before, nodes):
    found = plan_ahead(torch.tensor(nodes, dtype=torch.float64), order, torch.tensor(before, dtype=torch.float64))
    wanted = plan_course(nodes, None, order, before=before)
    assert found.lams == wanted.lams and len(found.weights) == len(wanted.weights) == len(nodes) - 1
    for row, other in zip(found.weights, wanted.weights): assert row == pytest.approx(other, rel=1e-12)


def test_a_course_of_tensors_is_a_course_of_numbers():
    "As a GPU has it: λ and weights as tensors, zeros for what is forgotten."
    leaves = anchors, z, log_weights = randn(9, 3, seed=0), randn(7, 3, seed=1), log_shares(9, 2)
    for x in leaves: x.requires_grad_()
    numbers = plan_ahead(torch.tensor([0.2, 0.5, 2.0, 2.6, 3.3], dtype=torch.float64), 3, before=torch.tensor([0.0, -0.2], dtype=torch.float64), growth=1.5)
    padded = [[*row, *[0.0] * (3 - len(row))] for row in numbers.weights]
    assert [len(row) for row in numbers.weights] == [3, 1, 2, 3]
    tensors = replace(numbers, lams=[*torch.tensor(numbers.lams, dtype=torch.float64)], weights=[[*torch.tensor(row, dtype=torch.float64)] for row in padded])
    ways = [flow_along(course, anchors, z, log_weights, target=torch.arange(7)) for course in (numbers, tensors)]
    torch.testing.assert_close(ways[0].state, ways[1].state, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(way.state.sum() + way.log_prob.amax(0).sum(), leaves) for way in ways]
    for one, other in zip(*gradients): torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


# -- nodes --------------------------------------------------------------------------------------
@quick
@given(st.floats(1e-6, 100), st.integers(1, 30), st.floats(1e-3, 1e3))
def test_time_nodes_are_even_in_the_time_of_their_unit_and_end_where_they_should(gap, steps, unit):
    lams = time_nodes(gap, steps, unit)
    assert lams.shape == (steps + 1,) and lams[0] == 0 and lams[-1].item() == pytest.approx(1 / gap)
    torch.testing.assert_close(time_from_lam(lams * unit), torch.linspace(0, unit / (unit + gap), steps + 1, dtype=torch.float64))


def test_time_nodes_all_the_way():
    lams = time_nodes(0.0, 5)
    assert lams[-1] == math.inf
    torch.testing.assert_close(lams[:-1], lam_from_time(torch.arange(5, dtype=torch.float64) / 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_nodes_by_columns(dtype):
    gaps = torch.tensor([[0.5], [0.0], [1e-4]], dtype=dtype)
    lams = time_nodes(gaps, 4, 0.2)
    assert lams.shape == (5, 3, 1) and lams.dtype == dtype
    for i, gap in enumerate(gaps[:, 0].tolist()):
        torch.testing.assert_close(lams[:, i, 0], time_nodes(gap, 4, 0.2).to(dtype), rtol=1e-5, atol=0)


# -- distances ----------------------------------------------------------------------------------
@quick
@given(seeds, st.integers(1, 12))
def test_nearest_distances_with_copies_and_inactive_anchors(seed, n):
    generator = torch.Generator().manual_seed(seed)
    anchors = randn(n, 3, seed=seed)[torch.randint(n, (n,), generator=generator)]  # some repeated
    active, own = torch.rand(n, generator=generator) < 0.7, torch.randint(n, (5,), generator=generator)
    squares = half_square_distances(anchors, own, exact=True)
    for switch in (None, active) if active.any() else (None,):
        others = [l for l in range(n) if switch is None or switch[l]]
        expected = [min((d for l in others if (d := math.dist(anchors[i], anchors[l])) > 1e-5), default=math.inf) for i in own]
        assert nearest_distances(squares, 1e-5, switch).tolist() == pytest.approx(expected)


def test_copies_up_to_rounding_are_copies():
    anchors = randn(40, 8, seed=44)
    copies = torch.cat([anchors, anchors * (1 + 1e-8), anchors.float().double()])
    squares = half_square_distances(copies, torch.arange(120), exact=True)
    torch.testing.assert_close(nearest_distances(squares, 1e-5), nearest(anchors).repeat(3), rtol=1e-5, atol=0)


# -- integrate ----------------------------------------------------------------------------------
def test_what_integrate_saw():
    anchors, z, log_weights, target = randn(4, 2, seed=33), randn(6, 2, seed=34), log_shares(4, 35), torch.tensor([0, 1, 2, 3, 3, 0])
    lams = [0.0, 0.5, 1.25]
    way = integrate(z, plan_course(lams, 2.0), anchors, log_weights, target=target, keep=True)
    states, log_probs = [z], []
    for lam, after in zip(lams, [*lams[1:], 2.0]):
        prob = posterior_logits(states[-1], lam, anchors, log_weights).softmax(1)
        log_probs.append(prob[torch.arange(6), target].log())
        states.append(states[-1] + (after - lam) * prob @ anchors)
    torch.testing.assert_close(way.log_prob, torch.stack(log_probs))
    torch.testing.assert_close(way.log_prob[0], log_weights[target])
    torch.testing.assert_close(way.states, torch.stack(states[:-1]))
    torch.testing.assert_close(way.state, states[-1])
    torch.testing.assert_close(way.slope, posterior_mean(states[-2], 1.25, anchors, log_weights))
    assert torch.equal(way.top, prob.argmax(1))


def test_integrate_without_extras_or_a_last_step():
    anchors, z = randn(4, 2, seed=36).requires_grad_(), randn(6, 2, seed=37)
    way = integrate(z, plan_course([0.0], None, 3), anchors, uniform(anchors))
    assert torch.equal(way.state, z) and way.log_prob is None and way.states is None
    torch.testing.assert_close(way.slope, anchors.mean(0).expand(6, 2))


def test_what_carries_no_gradient_says_so():
    anchors = randn(4, 2, seed=36).requires_grad_()
    way = integrate(randn(6, 2, seed=37), NUMBERS, anchors, uniform(anchors), keep=True)
    assert way.state.requires_grad and way.slope.requires_grad and not way.top.requires_grad and not way.states.requires_grad


def test_the_arguments_are_left_as_they_were():
    anchors, state, past = randn(5, 2, seed=72).requires_grad_(), randn(6, 2, seed=73), randn(2, 6, 2, seed=74)
    squares, log_weights, own = half_square_distances(anchors.detach(), torch.arange(6) % 5), log_shares(5, 75), torch.arange(6) % 5
    given_them = (anchors.detach(), state, past, squares, log_weights)
    before = [x.clone() for x in given_them]
    way = integrate(state, NUMBERS, anchors, log_weights, own=own, half_squares=squares, past=past, target=own, keep=True)
    (way.state.sum() + way.slope.sum() + way.log_prob.sum()).backward()
    assert all(torch.equal(x, y) for x, y in zip(given_them, before))


def test_log_probabilities_survive_where_probabilities_do_not():
    anchors = torch.tensor([[-50.0], [50.0]], requires_grad=True)
    z = torch.tensor([[-3.0], [3.0]])
    way = integrate(z, plan_course([0.0, 1.0, 4.0]), anchors, uniform(anchors), target=torch.tensor([1, 0]))
    (gradient,) = torch.autograd.grad(way.log_prob.sum(), anchors)
    assert way.log_prob.isfinite().all() and way.log_prob.min() < -200 and gradient.isfinite().all()


# -- how much at a time -------------------------------------------------------------------------
def test_block_size_shrinks_with_the_number_of_anchors():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    sizes = [block_size(n, cpu) for n in (1, 100, 10_000, 1_000_000)]
    assert sizes == sorted(sizes, reverse=True) and min(sizes) >= 1 and block_size(10_000, gpu) >= block_size(10_000, cpu)


def test_check_memory_refuses_what_does_not_fit_and_says_what_to_lower(monkeypatch):
    monkeypatch.setattr(flow, "free_memory", lambda device: 10e9)
    check_memory(torch.device("cpu"), {"fewer samples": 6e9, "fewer steps": 4e9})
    with pytest.raises(MemoryError, match=r"this needs 11 GB and cpu has 10 GB left; fewer steps would lower it"):
        check_memory(torch.device("cpu"), {"fewer samples": 5e9, "fewer steps": 6e9})


def test_free_memory_is_something():
    assert free_memory(torch.device("cpu")) > 1e6


# -- solvers ------------------------------------------------------------------------------------
def test_each_sample_has_its_own_window():
    anchors = torch.tensor([[0.0], [0.5], [4.5], [8.5]])
    course = Adams(3, reach=6.0).inverse_course(nearest(anchors, torch.tensor([3, 0, 2])), 5.0)
    assert len(course.lams) == len(course.weights) == 3 and course.lams[0].shape == (3, 1)
    assert course.lams[0][:, 0].tolist() == pytest.approx([1.5, 12, 1.5])
    course = Adams(3, reach=6.0).forward_course(nearest(anchors).min().item(), 5.0)
    assert len(course.lams) == 3 and len(course.weights) == 2 and course.lams[-1] == pytest.approx(12)
    assert Adams(3, window=7.0).forward_course(0.5, 5.0).lams[-1] == pytest.approx(7)
    assert Adams(3).inverse_course(torch.tensor([math.inf]), 0.0).lams[0].item() == 1  # alone


def test_the_forward_flow_of_adams_knows_two_slopes_before_its_first_evaluation():
    course = Adams(8, 3, window=6.0, unit=0.3).forward_course(1.0, 1.0)
    first, second = course.lams[:2]
    assert course.lams == pytest.approx(time_nodes(1 / 6, 8, 0.3)[1:].tolist())
    assert second - first < 1.5 * first and course.weights[0] == adams_weights([first, 0.0, -first], first, second)


@pytest.mark.parametrize("order, end, here", [(1, 0, 1), (2, 1 / 2, 1 / 2), (3, 5 / 12, 8 / 12)])
def test_one_step_of_adams_knows_both_ends(order, end, here):
    "At rest before, the mean of all anchors as the slope of y at λ = 0: Adams–Moulton of one step."
    anchors, noise, own = randn(5, 3, seed=40), randn(5, 3, seed=41), torch.arange(5)
    slope = posterior_mean(noise + 2 * anchors, 2.0, anchors, uniform(anchors)) - anchors
    expected = noise - 2 * (here * slope + end * (anchors.mean(0) - anchors))
    torch.testing.assert_close(encode(anchors, noise, Adams(1, order, window=2.0), own), expected)


def test_accuracy_of_few_evaluations():
    anchors, noise = randn(100, 16, seed=42), randn(100, 16, seed=43)
    truth = encode(anchors, noise, Adams(1000, reach=14.0))
    errors = [relative(encode(anchors, noise, solver), truth) for solver in (Adams(1000), Adams(10), Euler(20))]
    assert errors[0] < 1e-3 and errors[1] < 0.01 < errors[2] < 0.06


@pytest.mark.parametrize("n, q", [(12, 2), (64, 2), (64, 4), (128, 8)])
def test_in_a_crowd_no_more_latents_go_astray_than_with_euler(n, q):
    anchors = randn(n, q, seed=76)
    z = torch.cat([encode(anchors, randn(n, q, seed=seed), Adams(200, reach=12.0)) for seed in range(77, 77 + 512 // n)])
    own = torch.arange(n).repeat(512 // n)
    for steps in (10, 20):
        euler, adams = ((decode(anchors, z, solver) != own).double().mean().item() for solver in (Euler(steps), Adams(steps)))
        assert adams <= 0.75 * euler


def test_make_solver():
    assert make_solver("euler", 7, gap=1e-3) == Euler(7, 1e-3) and make_solver("adams", 7) == Adams(7, 3, 8.0, None, None)
    assert make_solver("adams", 7, unit=0.5, window=3.0).nodes(torch.tensor(1.0), 99.0).tolist() == pytest.approx(time_nodes(1 / 3, 7, 0.5).tolist())


@pytest.mark.parametrize("name, steps, options, message", [
    ("rk4", 10, {}, "solver: got 'rk4', wanted one of"),
    (None, 10, {}, "solver: got None"),
    (["adams"], 10, {}, "solver: got"),
    ("adams", 0, {}, "steps: got 0, wanted an integer ≥ 1"),
    ("euler", -3, {}, "steps: got -3"),
    ("euler", 2.0, {}, "steps: got 2.0"),
    ("adams", True, {}, "steps: got True"),
    ("adams", "10", {}, "steps: got '10'"),
    ("adams", 10, {"gap": 0.1}, r"adams: unknown option \['gap'\], wanted some of"),
    ("euler", 10, {"order": 2}, r"euler: unknown option \['order'\]"),
    ("euler", 10, {"gap": 0.0}, "gap: got 0.0"),
    ("euler", 10, {"gap": 1.0}, "gap: got 1.0"),
    ("euler", 10, {"gap": math.nan}, "gap: got nan"),
    ("adams", 10, {"order": 4}, "order: got 4, wanted an integer ≥ 1 and ≤ 3"),
    ("adams", 10, {"order": 0}, "order: got 0"),
    ("adams", 10, {"reach": -1.0}, "reach: got -1.0"),
    ("adams", 10, {"reach": math.inf}, "reach: got inf, wanted a number above 0, finite"),
    ("adams", 10, {"window": 0}, "window: got 0"),
    ("adams", 10, {"window": "wide"}, "window: got 'wide'"),
    ("adams", 10, {"unit": 0.0}, "unit: got 0.0"),
    ("adams", 10, {"knows_start": False}, "adams: unknown option"),
])  # fmt: skip
def test_make_solver_refuses(name, steps, options, message):
    with pytest.raises(ValueError, match=message): make_solver(name, steps, **options)
