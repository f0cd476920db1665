"""The flow: against closed forms, against the published form written out, against itself in other frames and precisions."""
import math
import weakref
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lzn_nb.flow as flow
from lzn_nb.flow import (
    Adams, Euler, adams_weights, half_square_distances, integrate, lam_from_time, make_solver, nearest_distances,
    posterior_logits, posterior_mean, posterior_slope, time_from_lam, time_nodes,
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


def uniform(anchors):
    return anchors.new_full((len(anchors),), -math.log(len(anchors)))


def zones_of(anchors, active=None):
    "What a solver asks of zones."
    return SimpleNamespace(anchors=anchors, distances=nearest_distances(anchors, active))


def encode(anchors, noise, solver, own=None, log_weights=None):
    own = torch.arange(len(anchors)) if own is None else own
    log_weights = uniform(anchors) if log_weights is None else log_weights
    lams = solver.inverse_lams(zones_of(anchors, log_weights > -math.inf), own)
    return integrate(noise, lams[:-1], lams[-1], anchors, log_weights, own=own, order=solver.order, settled=solver.settled).state


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
    lams, stop = Euler(steps).forward_lams(zones_of(anchors))
    assert stop is None and len(lams) == steps
    way = integrate(z, lams, stop, anchors, log_weights)
    torch.testing.assert_close(way.slope, expected, rtol=1e-9, atol=1e-9)


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
    anchors, noise, alone = randn(1, 4, seed=seed), randn(5, 4, seed=seed + 1), torch.zeros(5, dtype=torch.long)
    torch.testing.assert_close(encode(anchors, noise, kind(steps), alone), noise)
    lams, stop = kind(steps).forward_lams(zones_of(anchors))
    torch.testing.assert_close(integrate(noise, lams, stop, anchors, uniform(anchors), order=kind(steps).order).slope, anchors.expand(5, 4))


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
    window = 14 / nearest_distances(anchors).min().item()  # wide enough that the state is at rest where it begins
    truth = encode(anchors, noise, Adams(6000, window=window))

    def error(steps):
        return relative(encode(anchors, noise, Adams(steps, order, window=window)), truth)

    assert order - 0.25 < slope_between(error, 200, 800) < order + 0.25


@pytest.mark.parametrize("order", [1, 2])
def test_order_of_the_forward_flow(order):
    anchors, z, nodes = randn(12, 3, seed=9), randn(12, 3, seed=10), lambda steps: time_nodes(1 / 2, steps)

    def follow(steps, order):
        return integrate(z, nodes(steps)[:-1], nodes(steps)[-1], anchors, uniform(anchors), order=order).state

    truth = follow(6000, 3)
    assert order - 0.25 < slope_between(lambda steps: relative(follow(steps, order), truth), 100, 400) < order + 0.25


def test_third_order_forwards_is_no_worse_than_second():
    "Its start-up steps keep it from order 3, but must not make it worse than order 2."
    anchors, z = randn(12, 3, seed=9), randn(12, 3, seed=10)
    follow = lambda steps, order: integrate(z, time_nodes(0.5, steps)[:-1], 2.0, anchors, uniform(anchors), order=order).state
    truth = follow(6000, 3)
    assert relative(follow(200, 3), truth) < relative(follow(200, 2), truth)


def test_there_and_back():
    anchors, z = randn(8, 3, seed=11), randn(50, 3, seed=12)
    lams = time_nodes(1 / 15, 2000)
    y = integrate(z, lams[:-1], lams[-1], anchors, uniform(anchors), order=2).state
    own = posterior_logits(y, lams[-1], anchors, uniform(anchors)).argmax(1)
    back = lams.flip(0)
    way = integrate(y - lams[-1] * anchors[own], back[:-1], back[-1], anchors, uniform(anchors), own=own, order=2)
    torch.testing.assert_close(way.state, z, rtol=0, atol=1e-4)


# -- frames and precision -----------------------------------------------------------------------
@quick
@given(seeds, st.sampled_from([Euler(7), Adams(7)]))
def test_a_shift_of_all_anchors_changes_no_latent(seed, solver):
    anchors, noise, shift = randn(6, 3, seed=seed), randn(6, 3, seed=seed + 1), 5 * randn(3, seed=seed + 2)
    torch.testing.assert_close(encode(anchors + shift, noise, solver), encode(anchors, noise, solver), rtol=0, atol=1e-6)


@quick
@given(seeds, st.floats(0, 50))
def test_logits_from_the_own_anchor_are_the_same_probabilities(seed, lam):
    anchors, noise, log_weights, own = randn(6, 3, seed=seed), randn(9, 3, seed=seed + 1), log_shares(6, seed), torch.arange(9) % 6
    origin = posterior_logits(noise + lam * anchors[own], lam, anchors, log_weights)
    own_anchor = posterior_logits(noise, lam, anchors, log_weights, half_square_distances(anchors, own))
    torch.testing.assert_close(own_anchor.log_softmax(1), origin.log_softmax(1), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("block", [1, 4, 100])
def test_half_square_distances(block):
    anchors, own = randn(7, 3, seed=13), torch.tensor([6, 0, 0, 3, 2, 5])
    expected = (anchors[own][:, None] - anchors).square().sum(2) / 2
    torch.testing.assert_close(half_square_distances(anchors, own, block), expected)


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


@pytest.mark.parametrize("solver", [Euler(20), Adams(10), Adams(100)])
@pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4])
def test_float32_tells_twins_apart(solver, distance):
    base, aside = randn(32, 16, seed=17), torch.nn.functional.normalize(randn(32, 16, seed=18))
    anchors, noise = torch.cat([base, base + distance * aside]).float(), randn(64, 16, seed=19).float()
    single, double = encode(anchors, noise, solver), encode(anchors.double(), noise.double(), solver)
    assert ((single - double).norm(dim=1) / double.norm(dim=1)).max() < 0.01


def test_nothing_moves_where_the_posterior_is_one_hot():
    anchors, noise = randn(8, 4, seed=20, dtype=torch.float32).requires_grad_(), randn(8, 4, seed=21, dtype=torch.float32)
    state = integrate(noise, [1e5, 1e4], 1e3, anchors, uniform(anchors), own=torch.arange(8)).state
    (gradient,) = torch.autograd.grad(state.square().sum(), anchors)
    assert torch.equal(state, noise) and not gradient.any()


def test_an_anchor_switched_off_is_not_there():
    anchors, noise, own = randn(6, 3, seed=22).requires_grad_(), randn(5, 3, seed=23), torch.tensor([0, 1, 2, 4, 5])
    log_weights = uniform(anchors).index_fill(0, torch.tensor([3]), -math.inf)
    z = encode(anchors, noise, Adams(9), own, log_weights)
    torch.testing.assert_close(z, encode(anchors[own], noise, Adams(9)))
    (gradient,) = torch.autograd.grad(z.sum(), anchors)
    assert gradient.isfinite().all() and not gradient[3].any()


# -- gradients ----------------------------------------------------------------------------------
@pytest.mark.parametrize("solver", [Euler(1), Euler(5, 1e-3), *(Adams(5, order, window=6.0) for order in (1, 2, 3)), Adams(1, window=3.0)])
def test_gradient_of_the_inverse_flow(solver):
    anchors, noise = randn(4, 2, seed=24).requires_grad_(), randn(5, 2, seed=25).requires_grad_()
    own, log_weights = torch.tensor([0, 1, 2, 3, 1]), log_shares(4, 26)
    assert torch.autograd.gradcheck(lambda a, u: encode(a, u, solver, own, log_weights), (anchors, noise))


@pytest.mark.parametrize("solver", [Euler(5), Adams(5, window=4.0)])
def test_gradient_of_the_forward_flow_and_its_log_probabilities(solver):
    anchors, z = randn(4, 2, seed=27).requires_grad_(), randn(5, 2, seed=28).requires_grad_()

    def watched(anchors, z):
        lams, stop = solver.forward_lams(zones_of(anchors))
        way = integrate(z, lams, stop, anchors, uniform(anchors), target=torch.arange(5) % 4, order=solver.order)
        return way.log_prob, way.state, way.slope

    assert torch.autograd.gradcheck(watched, (anchors, z))


def test_gradient_at_twins_is_finite():
    anchors = torch.cat([randn(1, 3, seed=29)] * 2 + [randn(2, 3, seed=30)]).requires_grad_()
    for solver in (Euler(10), Adams(10)):
        (gradient,) = torch.autograd.grad(encode(anchors, randn(4, 3, seed=31), solver).sum(), anchors)
        assert gradient.isfinite().all()


# -- weights of the steps -----------------------------------------------------------------------
@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.05, 3), min_size=2, max_size=4), st.floats(-20, 20), st.sampled_from([-1, 1]))
def test_adams_weights_integrate_polynomials_exactly(widths, start, direction):
    places = [start]
    for width in widths[:-1]: places.append(places[-1] + direction * width)
    stop, lams = places[-1] + direction * widths[-1], places[::-1][:3]
    weights = adams_weights(lams, stop)
    assert len(weights) == len(lams)
    for power in range(len(lams)):  # around the current node, where the numbers are small
        total = sum(w * (lam - lams[0]) ** power for w, lam in zip(weights, lams))
        scale = sum(abs(w * (lam - lams[0]) ** power) for w, lam in zip(weights, lams))
        assert math.isclose(total, (stop - lams[0]) ** (power + 1) / (power + 1), rel_tol=1e-9, abs_tol=1e-9 * scale)


def test_adams_weights_by_columns():
    "Tensors of nodes, one for each sample, give what each sample's numbers give."
    rows = torch.tensor([[4.0, 3.0, 1.0, 6.0], [1.0, 2.0, 4.0, 0.5]], dtype=torch.float64)
    columns = adams_weights([rows[:, :1], rows[:, 1:2], rows[:, 2:3]], rows[:, 3:])
    for i, row in enumerate(rows.tolist()):
        assert [w[i].item() for w in columns] == pytest.approx(adams_weights(row[:3], row[3]))


@pytest.mark.parametrize("lams", [[], [4, 3, 2, 1]])
def test_adams_weights_for_too_few_or_many_nodes(lams):
    with pytest.raises(ValueError, match=f"lams: got {len(lams)} nodes"): adams_weights(lams, 5)


# -- nodes --------------------------------------------------------------------------------------
@quick
@given(st.floats(1e-6, 100), st.integers(1, 30))
def test_time_nodes_are_even_in_time_and_end_where_they_should(gap, steps):
    lams = time_nodes(gap, steps)
    assert lams.shape == (steps + 1,) and lams[0] == 0 and lams[-1].item() == pytest.approx(1 / gap)
    torch.testing.assert_close(time_from_lam(lams), torch.linspace(0, 1 / (1 + gap), steps + 1, dtype=torch.float64))


def test_time_nodes_all_the_way():
    lams = time_nodes(0.0, 5)
    assert lams[-1] == math.inf
    torch.testing.assert_close(lams[:-1], lam_from_time(torch.arange(5, dtype=torch.float64) / 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_time_nodes_by_columns(dtype):
    gaps = torch.tensor([[0.5], [0.0], [1e-4]], dtype=dtype)
    lams = time_nodes(gaps, 4)
    assert lams.shape == (5, 3, 1) and lams.dtype == dtype
    for i, gap in enumerate(gaps[:, 0].tolist()):
        torch.testing.assert_close(lams[:, i, 0], time_nodes(gap, 4).to(dtype), rtol=1e-5, atol=0)


# -- distances ----------------------------------------------------------------------------------
def brute_force_distances(anchors, active):
    def distance(i, l): return math.dist(anchors[i].tolist(), anchors[l].tolist())
    others = [l for l in range(len(anchors)) if active[l]]
    return [min((d for l in others if (d := distance(i, l)) > 1e-5), default=math.inf) if active[i] else math.inf for i in range(len(anchors))]


@quick
@given(seeds, st.integers(1, 12), st.sampled_from([1, 3, 2048]))
def test_nearest_distances_with_copies_and_inactive_anchors(seed, n, block):
    generator = torch.Generator().manual_seed(seed)
    anchors = randn(n, 3, seed=seed)[torch.randint(n, (n,), generator=generator)]  # some repeated
    active = torch.rand(n, generator=generator) < 0.7
    active[0] = True
    assert nearest_distances(anchors, active, block).tolist() == pytest.approx(brute_force_distances(anchors, active.tolist()))
    assert nearest_distances(anchors, None, block).tolist() == pytest.approx(brute_force_distances(anchors, [True] * n))


@pytest.mark.parametrize("dtype, shift", [(torch.float32, 1e3), (torch.float64, 1e6)])
def test_nearest_distances_far_from_the_origin(dtype, shift):
    anchors = torch.tensor([[0.0, 0.0], [0.25, 0.0], [1.0, 0.0]], dtype=dtype) + shift
    found = nearest_distances(anchors.requires_grad_())
    assert found.dtype == dtype and not found.requires_grad
    assert found.tolist() == pytest.approx([0.25, 0.25, 0.75])


def test_copies_up_to_rounding_are_copies():
    anchors = randn(40, 8, seed=44)
    copies = torch.cat([anchors, anchors * (1 + 1e-8), anchors.float().double()])
    torch.testing.assert_close(nearest_distances(copies), nearest_distances(anchors).repeat(3), rtol=1e-5, atol=0)


def test_nearest_distances_keeps_one_block_at_a_time(monkeypatch):
    cdist, alive = torch.cdist, []

    def watched(rows, columns):
        assert len(rows) <= 5 and not any(ref() is not None for ref in alive[:-1])
        result = cdist(rows, columns)
        alive.append(weakref.ref(result))
        return result

    monkeypatch.setattr(flow.torch, "cdist", watched)
    nearest_distances(randn(23, 2, seed=32), block=5)
    assert len(alive) == 5


# -- integrate ----------------------------------------------------------------------------------
def test_what_integrate_saw():
    anchors, z, log_weights, target = randn(4, 2, seed=33), randn(6, 2, seed=34), log_shares(4, 35), torch.tensor([0, 1, 2, 3, 3, 0])
    lams = [0.0, 0.5, 1.25]
    way = integrate(z, lams, 2.0, anchors, log_weights, target=target, keep=True)
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


def test_integrate_without_extras_or_a_last_step():
    anchors, z = randn(4, 2, seed=36), randn(6, 2, seed=37)
    way = integrate(z, [0.0], None, anchors, uniform(anchors), order=3)
    assert torch.equal(way.state, z) and way.log_prob is None and way.states is None
    torch.testing.assert_close(way.slope, anchors.mean(0).expand(6, 2))
    with_past = integrate(z, [2.0], None, anchors, uniform(anchors), own=torch.arange(6) % 4, order=3, settled=True)
    assert torch.equal(with_past.state, z)


def test_log_probabilities_survive_where_probabilities_do_not():
    anchors = torch.tensor([[-50.0], [50.0]], requires_grad=True)
    z = torch.tensor([[-3.0], [3.0]])
    way = integrate(z, [0.0, 1.0, 4.0], None, anchors, uniform(anchors), target=torch.tensor([1, 0]))
    (gradient,) = torch.autograd.grad(way.log_prob.sum(), anchors)
    assert way.log_prob.isfinite().all() and way.log_prob.min() < -200 and gradient.isfinite().all()


def test_slope_subtracts_the_own_anchor():
    anchors, logits, own = randn(4, 2, seed=38), randn(6, 4, seed=39), torch.tensor([0, 1, 2, 3, 3, 0])
    torch.testing.assert_close(posterior_slope(logits, anchors, own), posterior_slope(logits, anchors, None) - anchors[own])


# -- solvers ------------------------------------------------------------------------------------
def test_each_sample_has_its_own_window():
    anchors = torch.tensor([[0.0], [0.5], [4.5], [8.5]])
    zones, solver = zones_of(anchors), Adams(3, reach=6.0)
    lams = solver.inverse_lams(zones, torch.tensor([3, 0, 2]))
    assert lams.shape == (4, 3, 1) and lams[0, :, 0].tolist() == pytest.approx([1.5, 12, 1.5]) and not lams[-1].any()
    lams, stop = solver.forward_lams(zones)
    assert len(lams) == 3 and lams[0] == 0 and stop.item() == pytest.approx(12)
    lams, stop = Adams(3, window=7.0).forward_lams(zones)
    assert stop.item() == pytest.approx(7)
    assert Adams(3).inverse_lams(zones_of(anchors[:1]), torch.tensor([0]))[0].item() == 1  # alone


@pytest.mark.parametrize("order, share", [(1, 1), (2, 3 / 2), (3, 23 / 12)])
def test_one_step_of_adams_remembers_the_state_at_rest(order, share):
    anchors, noise, own = randn(5, 3, seed=40), randn(5, 3, seed=41), torch.arange(5)
    slope = posterior_mean(noise + 2 * anchors, 2.0, anchors, uniform(anchors)) - anchors
    torch.testing.assert_close(encode(anchors, noise, Adams(1, order, window=2.0), own), noise - 2 * share * slope)


def test_accuracy_of_few_evaluations():
    anchors, noise = randn(100, 16, seed=42), randn(100, 16, seed=43)
    truth = encode(anchors, noise, Adams(1000, reach=14.0))
    errors = [relative(encode(anchors, noise, solver), truth) for solver in (Adams(1000), Adams(10), Euler(20))]
    assert errors[0] < 1e-3 and errors[1] < 0.01 < errors[2] < 0.06


def test_make_solver():
    assert make_solver("euler", 7, gap=1e-3) == Euler(7, 1e-3) and make_solver("adams", 7) == Adams(7, 3, 8.0, None)


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
])  # fmt: skip
def test_make_solver_refuses(name, steps, options, message):
    with pytest.raises(ValueError, match=message): make_solver(name, steps, **options)
