"Alignment: golden numbers of both published uses, gradients, extremes, and bad requests."
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lzn_nb.alignment import alignment_loss, best_log_prob
from lzn_nb.zones import LatentZones

FOLDER = Path(__file__).parent / "goldens"
LABELS, VIEWS = (np.load(FOLDER / name, allow_pickle=False) for name in ("label_flow.npz", "contrastive.npz"))
DTYPES = [torch.float64, torch.float32]


def randn(*shape, seed=0): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(x, ref, atol, rtol=0.0):
    x = x.detach().double().numpy()
    error, bound = np.abs(x - ref).max(), atol + rtol * np.abs(ref).max()
    assert error <= bound, f"off by {error:.2e}, allowed {bound:.2e}"


@pytest.mark.parametrize("case", LABELS["cases"])
@pytest.mark.parametrize("kind", ["unw", "w"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_published_label_flow(case, kind, dtype):
    get = lambda name: LABELS[f"{case}__{name}"]
    truth = lambda name: get(f"{name}_{kind}_f64")
    exact = dtype == torch.float64
    tolerance = lambda atol, rtol=0.0: (1e-12, 1e-6) if exact else (atol, rtol)
    z, anchors = (torch.tensor(get(name), dtype=dtype, requires_grad=True) for name in ("z", "anchors"))
    labels = torch.tensor(get("label"))
    zones = LatentZones(anchors, torch.tensor(get("weights")) if kind == "w" else None, solver="euler", steps=int(get("steps")))
    result = zones.flow(z, labels)
    close(result.end, truth("final"), *tolerance(2e-5))
    wanted = np.take_along_axis(truth("prob"), get("label")[None, :, None], 2)[..., 0]
    close(result.log_prob.exp(), wanted, *tolerance(1e-4))
    assert (result.index.numpy() == truth("pred")).all()
    loss = alignment_loss(z, zones, labels, cutoff=float(get("cutoff")), log=False)
    close(loss, truth("loss"), *tolerance(1e-6))
    for name, gradient in zip(("grad_z", "grad_anchors"), torch.autograd.grad(loss, (z, anchors))):
        close(gradient, truth(name), *tolerance(1e-6, 5e-5))


@pytest.mark.parametrize("case", VIEWS["cases"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_published_contrastive_loss(case, dtype):
    get = lambda name: VIEWS[f"{case}__{name}"]
    exact, under = dtype == torch.float64, case == "underflow"
    tolerance = lambda atol, rtol=0.0: (1e-12, 1e-6) if exact else (atol, rtol)
    a, b = (torch.tensor(get(f"anchors_{view}"), dtype=dtype, requires_grad=True) for view in "ab")
    steps, pairs = int(get("steps")), torch.arange(len(a))
    z = LatentZones(a, solver="euler", steps=steps).encode(noise=torch.tensor(get("noise")), alpha=float(get("prior_scale")))
    close(z, get("z_f64"), *tolerance(0.1 if under else 5e-3))
    zones = LatentZones(b, solver="euler", steps=steps)
    result = zones.flow(z, pairs)
    close(result.end, get("final_f64"), *tolerance(5e-3))
    close(result.log_prob.exp(), np.einsum("rii->ri", get("prob_f64")), *tolerance(3e-2))
    close(result.log_prob[-1].exp().mean(), get("assignment_acc_f64"), *tolerance(1e-4))
    for log, name, truth in ((True, "ce", get("loss_ce_logdomain_f64")), (False, "prob", get("loss_prob_f64"))):
        loss = alignment_loss(z, zones, pairs, cutoff=float(get("cutoff")), log=log)
        close(loss, truth, *(tolerance(0, 1e-2) if under and log else tolerance(1e-3)))
        gradients = torch.autograd.grad(loss, (a, b), retain_graph=True)
        for view, gradient in zip("ab", gradients):
            assert gradient.isfinite().all()
            if f"{case}__grad_{view}_{name}_f64" in VIEWS.files:
                close(gradient, get(f"grad_{view}_{name}_f64"), *tolerance(5e-4, 5e-3))
            if case == "saturated": close(gradient, np.zeros(gradient.shape), 1e-7)


@pytest.mark.parametrize("target", [torch.tensor([0, 1, 2, 1]), torch.tensor([[1, 1, 0], [0, 1, 0], [0, 1, 1], [1, 0, 1]]).bool()])
@pytest.mark.parametrize("log", [True, False])
def test_gradcheck(log, target):
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for options in (dict(solver="euler", steps=7), dict(steps=7, window=5.0, unit=0.2)):
        loss = lambda z, a: alignment_loss(z, LatentZones(a, weights, **options), target, log=log)
        assert torch.autograd.gradcheck(loss, (randn(4, 2).requires_grad_(), randn(3, 2, seed=1).requires_grad_()))


@settings(max_examples=30, deadline=None)
@given(scale=st.sampled_from([1e-3, 1.0, 30.0, 1e3]), n=st.integers(1, 8), q=st.integers(1, 12), seed=st.integers(0, 99),
       solver=st.sampled_from(["adams", "euler"]))
def test_finite_at_every_scale(scale, n, q, seed, solver):
    "Saturated or underflowing, near or far, in float32: loss and gradients are numbers."
    anchors = (scale * randn(n, q, seed=seed)).float().requires_grad_()
    z = (5 * randn(6, q, seed=seed + 1)).float().requires_grad_()
    for log in (True, False):
        loss = alignment_loss(z, LatentZones(anchors, solver=solver), torch.arange(6) % n, log=log)
        assert loss.isfinite() and all(g.isfinite().all() for g in torch.autograd.grad(loss, (z, anchors)))


def test_one_zone_costs_nothing_and_the_prior_bounds_nothing_else():
    assert alignment_loss(randn(5, 3), LatentZones(randn(1, 3)), torch.zeros(5, dtype=torch.long)) == 0
    loss = alignment_loss(randn(50, 3), LatentZones(randn(4, 3), solver="euler"), torch.zeros(50, dtype=torch.long), cutoff=0.0)
    assert loss <= np.log(4) + 1e-9  # without the cut-off the first step alone gives the prior, 1/4


def test_cutoff_leaves_out_the_first_steps():
    log_prob = torch.tensor([[0.0], [-3.0], [-2.0], [-4.0], [-5.0]])
    assert [float(best_log_prob(log_prob, cutoff)) for cutoff in (0.0, 0.2, 0.59, 0.6, 0.99)] == [0.0, -2.0, -2.0, -4.0, -5.0]


def test_cutoff_counts_steps_that_were_not_evaluated():
    "A solver that begins at step 1 leaves out one row less, and the same steps."
    log_prob = torch.tensor([[0.0], [-3.0], [-2.0], [-4.0], [-5.0], [-6.0]])
    for cutoff in (0.2, 0.4, 0.6, 0.8):
        assert best_log_prob(log_prob[1:], cutoff, first=1) == log_prob[int(5 * cutoff):].amax(0)


def test_a_latent_that_arrives_has_probability_one_and_no_gradient():
    "At the end of Adams' window a latent beside a border is not certain yet to the last digit, and its gradient would be huge."
    corners = 1.5 * torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
    zones, z = LatentZones(corners), randn(4000, 2).requires_grad_()
    home = zones.decode(z)
    for log in (True, False):
        loss = alignment_loss(z, zones, home, log=log)
        assert loss == (0 if log else -1) and torch.autograd.grad(loss, z)[0].abs().max() == 0
    target = home.clone()
    target[::2] = (home[::2] + 2) % 4
    wrong = alignment_loss(z[::2], zones, target[::2])
    assert torch.isclose(alignment_loss(z, zones, target), wrong / 2)
    gradient, = torch.autograd.grad(wrong, z)
    assert (gradient[::2].norm(dim=1) > 0).all() and gradient.norm(dim=1).max() * 2000 < 10


@settings(max_examples=30, deadline=None)
@given(scale=st.sampled_from([1e-3, 0.1, 10.0, 1e3]), n=st.integers(2, 8), q=st.integers(1, 12), seed=st.integers(0, 99), sharpness=st.sampled_from([0.5, 2.0, 6.0]))
def test_a_fixed_sharpness_costs_the_same_at_any_scale_and_place(scale, n, q, seed, sharpness):
    "Nothing is gained by larger anchors, nor by moving all of them."
    anchors, z, target = randn(n, q, seed=seed), randn(6, q, seed=seed + 1), torch.arange(6) % n
    cost = lambda a: alignment_loss(z, LatentZones(a), target, sharpness=sharpness)
    one = cost(anchors)
    assert torch.isclose(cost(scale * anchors), one, rtol=1e-6) and torch.isclose(cost(anchors + 3), one, rtol=1e-6)
    assert one > 0 and one.isfinite()


def test_at_a_fixed_sharpness_a_latent_that_arrives_still_wants_to_be_further_from_the_border():
    pair, line = torch.tensor([[-1.0], [1.0]], dtype=torch.float64), torch.linspace(0.05, 3, 30, dtype=torch.float64)[:, None].requires_grad_()
    zones = LatentZones(pair)
    for sharpness, falls in ((None, False), (2.0, True)):
        costs = torch.stack([alignment_loss(z[None], zones, [1], sharpness=sharpness) for z in line])
        pushed, = torch.autograd.grad(costs.sum(), line)
        assert bool((costs.diff() < 0).all() and (pushed < 0).all()) == falls and (zones.decode(line) == 1).all()


def test_zones_of_one_anchor_or_equal_ones_have_a_sharpness_too():
    for n, seed, dtype, size in [(1, 0, torch.float64, 1), *((n, seed, dtype, size) for n in (2, 7, 10) for seed in range(5) for dtype in DTYPES for size in (1, 3000))]:
        anchors = (size * randn(1, 3, seed=seed)).expand(n, 3).clone().to(dtype).requires_grad_()
        z = randn(5, 3, seed=1).to(dtype).requires_grad_()
        loss = alignment_loss(z, LatentZones(anchors), torch.zeros(5, dtype=torch.long), sharpness=2.0)
        assert torch.isclose(loss.detach().double(), torch.tensor(np.log(n)), atol=1e-4)
        for gradient in torch.autograd.grad(loss, (z, anchors)): assert gradient.isfinite().all() and gradient.norm() < 10 * size


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), "2", 1e30])
def test_a_sharpness_is_a_number_above_zero(value):
    with pytest.raises(ValueError, match="sharpness: got"): LatentZones(randn(3, 2), sharpness=value)
    with pytest.raises(ValueError, match="sharpness: got"): LatentZones(randn(3, 2)).at_sharpness(value)


def test_sharpness_is_for_zones_by_adams_and_leaves_the_zones_as_they_are():
    zones, z = LatentZones(randn(4, 2), torch.arange(1.0, 5)), randn(20, 2, seed=1)
    early = zones.at_sharpness(2.0)
    assert early.solver.sharpness == 2 and zones.solver.sharpness is None and early.anchors is zones.anchors and early.log_weights is zones.log_weights
    assert not early.flow(z).sure and zones.flow(z).sure
    way = early.flow(z, torch.zeros(20, dtype=torch.long), keep_path=True)
    assert torch.isclose(way.path.times[-1] / (1 - way.path.times[-1]) * zones.spread, torch.tensor(2.0, dtype=torch.float64))
    assert torch.equal(early.encode(noise=torch.ones(4, 2, dtype=torch.float64)), zones.encode(noise=torch.ones(4, 2, dtype=torch.float64)))  # only the way forwards ends early
    assert "sharpness=2.0" in repr(early) and "sharpness" not in repr(zones)
    other = LatentZones(randn(4, 2), torch.arange(1.0, 5), window=3.0).at_sharpness(2.0)
    assert torch.equal(other.flow(z, torch.zeros(20, dtype=torch.long)).log_prob, early.flow(z, torch.zeros(20, dtype=torch.long)).log_prob)
    with pytest.raises(ValueError, match="sharpness: got 2.0 beside window"): LatentZones(randn(4, 2), window=3.0, sharpness=2.0)
    with pytest.raises(ValueError, match="sharpness: got 2.0 with Euler"): LatentZones(randn(4, 2), solver="euler").at_sharpness(2.0)


@pytest.mark.parametrize("scale", [1, 1000])
@pytest.mark.parametrize("options", [dict(solver="adams"), dict(solver="euler")])
def test_a_set_of_one_is_that_one_and_of_all_costs_nothing(scale, options):
    "Loss and gradient, also where probabilities underflow; a member more never costs more."
    target, n = torch.arange(8) % 5, 5
    z, anchors = randn(8, 3).float().requires_grad_(), (scale * randn(n, 3, seed=1)).float().requires_grad_()
    loss = lambda target: alignment_loss(z, LatentZones(anchors, **options), target)
    one, set_of_one = loss(target), loss(torch.arange(n)[None] == target[:, None])
    torch.testing.assert_close(set_of_one, one)
    for found, wanted in zip(torch.autograd.grad(set_of_one, (z, anchors)), torch.autograd.grad(one, (z, anchors))):
        assert wanted.abs().max() > 0
        torch.testing.assert_close(found, wanted)
    assert float(loss(torch.ones(8, n).bool()).detach()) == pytest.approx(0, abs=1e-6)
    assert float(loss((torch.arange(n)[None] == target[:, None]) | (torch.arange(n) == 2)).detach()) <= float(one.detach()) + 1e-6


def test_lists_will_do_as_targets(): assert alignment_loss(randn(3, 2), LatentZones(randn(3, 2)), [0, 1, 2]) == alignment_loss(randn(3, 2), LatentZones(randn(3, 2)), torch.arange(3))


@pytest.mark.parametrize("options", [dict(), dict(solver="euler", steps=20)])
def test_autocast_has_no_say(options):
    def loss_and_gradient(inside):
        anchors = randn(12, 6).float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            zones = LatentZones(anchors, **options)
            loss = alignment_loss(zones.encode(noise=randn(12, 6, seed=1).float()), zones, torch.arange(12).roll(1))
        return loss, torch.autograd.grad(loss, anchors)[0]

    for x, y in zip(loss_and_gradient(True), loss_and_gradient(False)): assert x.dtype == torch.float32 and torch.equal(x, y)


@pytest.mark.parametrize("label_zones", [dict(solver="euler", steps=20), dict(steps=10)])
def test_training_on_it_brings_zones_inside(label_zones):
    "Anchors that start beside the next class's label move until their zones lie in their own label's zone."
    corners = 1.5 * torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    labels, zones = torch.arange(24) % 4, LatentZones(corners, **label_zones)
    anchors = (corners[(labels + 1) % 4] + 0.3 * randn(24, 2).float()).requires_grad_()
    generator, optimizer = torch.Generator().manual_seed(0), torch.optim.Adam([anchors], 0.2)
    right = lambda: float((zones.decode(LatentZones(anchors.detach(), steps=20).encode(alpha=0.0)) == labels).float().mean())
    assert right() < 0.2
    for _ in range(120):
        optimizer.zero_grad()
        alignment_loss(LatentZones(anchors, steps=10).encode(generator=generator), zones, labels, log=False).backward()
        optimizer.step()
    assert right() > 0.9


@pytest.mark.parametrize("change, message", [
    (dict(cutoff=1.0), "cutoff: got 1.0"), (dict(cutoff=-0.1), "cutoff: got -0.1"), (dict(target=torch.tensor([0, 5])), "target: got"),
    (dict(target=torch.tensor([0])), "target: got 1"), (dict(z=torch.zeros(2, 3)), r"z: got .*\[2, 3\]"), (dict(z=torch.zeros(0, 2), target=torch.zeros(0).long()), "z: got no"),
    (dict(z=torch.full((2, 2), float("nan"))), "z"), (dict(cutoff="0.2"), "cutoff: got '0.2'"), (dict(cutoff=True), "cutoff: got True"), (dict(z=0.0), "z: got float"),
    (dict(target=None), "target: got None"), (dict(zones=torch.eye(2)), "zones: got Tensor"), (dict(z=torch.zeros(2, 2, device="meta")), "z: .* on meta"),
    (dict(target=torch.zeros(2, device="meta").long()), "target: .* on meta")])
def test_bad_requests(change, message):
    arguments = dict(z=torch.zeros(2, 2), zones=LatentZones(torch.eye(2)), target=torch.tensor([0, 1])) | change
    with pytest.raises(ValueError, match=message): alignment_loss(arguments.pop("z"), arguments.pop("zones"), arguments.pop("target"), **arguments)
