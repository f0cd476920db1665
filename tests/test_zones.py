"Zones: golden numbers, closed forms, symmetries, gradients, and every bad request by name."
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lzn_nb.zones import LatentZones

GOLDEN = np.load(Path(__file__).parent / "goldens" / "latent_euler.npz", allow_pickle=False)
THEOREM = np.load(Path(__file__).parent / "goldens" / "theorem1.npz", allow_pickle=False)
few = settings(max_examples=25, deadline=None)


def randn(*shape, seed=0, dtype=torch.float64): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(x, ref, atol, rtol=0.0):
    "Within atol + rtol times the largest entry of the truth, over the whole array."
    x = x.detach().double().numpy()
    error, bound = np.abs(x - ref).max(), atol + rtol * np.abs(ref).max()
    assert error <= bound, f"off by {error:.2e}, allowed {bound:.2e}"


# -- the published implementation ------------------------------------------------------------------

def golden_latents(case, dtype):
    get = lambda name: GOLDEN[f"{case}__{name}"]
    anchors = torch.tensor(get("anchors"), dtype=dtype, requires_grad=True)
    index = torch.tensor(get("query_index")) if f"{case}__query_index" in GOLDEN.files else None
    zones = LatentZones(anchors, solver="euler", steps=int(get("steps")), gap=float(GOLDEN["noise_weight_at_start"]))
    return get, anchors, zones.encode(index, torch.tensor(get("noise"), dtype=dtype))


@pytest.mark.parametrize("case", GOLDEN["cases"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_published_euler_latents_and_gradients(case, dtype):
    get, anchors, z = golden_latents(case, dtype)
    exact = dtype == torch.float64
    close(z, get("z_f64"), *((1e-9, 1e-6) if exact else (5e-3, 0)))
    for name, functional in (("grad_sumsq", z.square().sum()), ("grad_lin", (torch.tensor(get("w"), dtype=dtype) * z).sum())):
        gradient, = torch.autograd.grad(functional, anchors, retain_graph=True)
        close(gradient, get(f"{name}_f64"), *((1e-9, 1e-6) if exact else (5e-3, 1e-2)))


def test_float32_is_far_better_than_the_tolerance():
    "The state is the implied noise, so dividing it out of 1e-4 loses nothing: 1e-5 where the published float32 has 1e-3."
    for case in GOLDEN["cases"]:
        get, _, z = golden_latents(case, torch.float32)
        close(z, get("z_f64"), 1e-5)


def test_own_anchor_and_zones_carry_their_shares_of_the_gradient():
    "Queries of a subset: an anchor nobody asks for still shapes the zones, and gets the golden's gradient for that alone."
    get, anchors, z = golden_latents("subset", torch.float64)
    gradient, = torch.autograd.grad(z.square().sum(), anchors)
    asked = torch.zeros(len(anchors), dtype=torch.bool)
    asked[torch.tensor(get("query_index"))] = True
    close(gradient[~asked], get("grad_sumsq_anchors_only_f64")[~asked.numpy()], 1e-9, 1e-6)
    both = torch.tensor(get("grad_sumsq_anchors_only_f64")).index_add(0, torch.tensor(get("query_index")), torch.tensor(get("grad_sumsq_queries_only_f64")))
    close(gradient, both.numpy(), 1e-9, 1e-6)


@pytest.mark.parametrize("g, p_wrong", [(g, p) for g, p in zip(THEOREM["g"], THEOREM["p_wrong"]) if p > 1e-3])
def test_theorem_1(g, p_wrong):
    "Two anchors at -1 and +1: a latent that starts at gap g lands in the other's zone with probability Φ((g-1)/g)."
    n = 20_000
    zones = LatentZones(torch.tensor([[-1.0], [1.0]], dtype=torch.float64), steps=40, window=float((1 - g) / g))
    z = zones.encode(torch.ones(n, dtype=torch.long), randn(n, 1))
    measured, spread = float((z < 0).double().mean()), math.sqrt(p_wrong * (1 - p_wrong) / n)
    assert abs(measured - p_wrong) < 4 * spread
    assert abs(p_wrong - 0.5 * math.erfc((1 - g) / g / math.sqrt(2))) < 1e-9


# -- closed forms ----------------------------------------------------------------------------------

@few
@given(q=st.integers(1, 6), scale=st.floats(1e-3, 1e3), solver=st.sampled_from(["adams", "euler"]), seed=st.integers(0, 99))
def test_one_anchor_owns_the_whole_gaussian(q, scale, solver, seed):
    noise = randn(5, q, seed=seed)
    zones = LatentZones(scale * randn(1, q, seed=seed + 1), solver=solver, steps=3)
    close(zones.encode(torch.zeros(5, dtype=torch.long), noise), noise.numpy(), 1e-9)
    assert (zones.decode(noise) == 0).all()


@few
@given(distance=st.floats(0.3, 5), weight=st.floats(0.05, 0.95), q=st.integers(1, 5), seed=st.integers(0, 99))
def test_two_anchors_in_closed_form(distance, weight, q, seed):
    "Along the line through both, the flow keeps quantiles: Φ(z) = Σ w_l Φ(y - λ a_l); across it nothing moves."
    direction = randn(q, seed=seed)
    direction = direction / direction.norm()
    places, weights = torch.tensor([-distance, distance], dtype=torch.float64), torch.tensor([weight, 1 - weight], dtype=torch.float64)
    noise, lam = randn(40, q, seed=seed + 1), 8 / (2 * distance)
    index = torch.arange(40) % 2
    z = LatentZones(places[:, None] * direction, weights, steps=300).encode(index, noise)
    along = noise @ direction + lam * places[index]
    cdf = sum(w * torch.special.ndtr(along - lam * a) for w, a in zip(weights, places))
    close(z @ direction, torch.special.ndtri(cdf).numpy(), 2e-3)
    across = lambda x: x - (x @ direction)[:, None] * direction
    close(across(z), across(noise).numpy(), 1e-9)


def test_weights_are_the_zones_probabilities():
    weights = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    zones = LatentZones(randn(3, 2, seed=5), weights, steps=40)
    share = torch.bincount(zones.decode(randn(40_000, 2, seed=6)), minlength=3) / 40_000
    close(share, weights.numpy(), 0.012)  # five standard deviations and the solver


# -- symmetries ------------------------------------------------------------------------------------

@few
@given(n=st.integers(2, 20), q=st.integers(1, 8), scale=st.floats(0.1, 10), solver=st.sampled_from(["adams", "euler"]), seed=st.integers(0, 99))
def test_permutation_rotation_translation(n, q, scale, solver, seed):
    anchors, noise, weights = scale * randn(n, q, seed=seed), randn(n, q, seed=seed + 1), randn(n, seed=seed + 2).exp()
    encode = lambda a, w, e: LatentZones(a, w, solver=solver, steps=8).encode(noise=e)
    z = encode(anchors, weights, noise)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    close(encode(anchors[order], weights[order], noise[order]), z[order].numpy(), 1e-7)
    turn = torch.linalg.qr(randn(q, q, seed=seed + 3))[0]
    close(encode(anchors @ turn, weights, noise @ turn), (z @ turn).numpy(), 1e-7)
    close(encode(anchors + 7 * scale, weights, noise), z.numpy(), 1e-7)
    close(encode(anchors, 5 * weights, noise), z.numpy(), 1e-9)  # only the weights' proportions count


@few
@given(n=st.integers(2, 12), seed=st.integers(0, 99))
def test_zero_weight_is_absence(n, seed):
    anchors, noise = randn(n, 4, seed=seed), randn(n, 4, seed=seed + 1)
    weights = torch.ones(n, dtype=torch.float64)
    weights[0] = 0
    some, fewer = LatentZones(anchors, weights, steps=12), LatentZones(anchors[1:], steps=12)
    close(some.encode(torch.arange(1, n), noise[1:]), fewer.encode(noise=noise[1:]).numpy(), 1e-9)
    assert torch.equal(some.decode(noise), fewer.decode(noise) + 1)


@few
@given(seed=st.integers(0, 99), copies=st.integers(2, 5))
def test_copies_of_an_anchor_share_one_zone(seed, copies):
    anchors = randn(6, 3, seed=seed)
    repeated, noise = torch.cat([anchors, anchors[:1].repeat(copies - 1, 1)]), randn(6, 3, seed=seed + 1)
    weights = torch.tensor([copies, 1, 1, 1, 1, 1], dtype=torch.float64)
    index = torch.arange(6)
    close(LatentZones(repeated, steps=10).encode(index, noise), LatentZones(anchors, weights, steps=10).encode(index, noise).numpy(), 1e-8)


@few
@given(n=st.integers(2, 30), q=st.integers(8, 40), seed=st.integers(0, 99))
def test_encode_then_decode_finds_the_own_zone(n, q, seed):
    zones = LatentZones(randn(n, q, seed=seed), steps=60)
    z = zones.encode(noise=randn(n, q, seed=seed + 1))
    # the solver's error can carry a latent over a border that it all but touches
    assert (zones.decode(z) == torch.arange(n)).double().mean() > 0.95
    centres = zones.encode(alpha=0.0)
    assert torch.equal(zones.decode(centres), torch.arange(n))


def test_few_steps_do_not_overshoot():
    "The last step in λ is long: drawn out along a parabola it would carry most of these latents into another zone."
    anchors = torch.tensor([[-1.2, 0.9], [0.2, 1.3], [1.3, 0.4], [0.6, -0.9], [-0.7, -1.1], [-0.1, 0.1]], dtype=torch.float64)
    index = torch.arange(6).repeat(200)
    z = LatentZones(anchors, steps=300).encode(index, randn(1200, 2))
    assert (LatentZones(anchors, steps=5).decode(z) == index).double().mean() > 0.9


def test_latents_are_gaussian():
    from lzn_nb.metrics import gaussianity
    assert gaussianity(LatentZones(3 * randn(2000, 16), steps=15).encode(noise=randn(2000, 16, seed=1))).passed


# -- gradients and precision -----------------------------------------------------------------------

@pytest.mark.parametrize("options", [dict(solver="euler", steps=5, gap=0.05), dict(solver="adams", steps=6, window=4.0)])
def test_gradcheck(options):
    weights = torch.tensor([0.5, 0.1, 0.2, 0.2], dtype=torch.float64)
    encode = lambda a, e: LatentZones(a, weights, **options).encode(noise=e)
    assert torch.autograd.gradcheck(encode, (randn(4, 3).requires_grad_(), randn(4, 3, seed=1).requires_grad_()))
    flow = lambda a, z: LatentZones(a, weights, **options).flow(z, torch.arange(4)).log_prob
    assert torch.autograd.gradcheck(flow, (randn(4, 3).requires_grad_(), randn(4, 3, seed=2).requires_grad_()))


def test_float32_follows_float64():
    anchors, noise = randn(200, 16), randn(200, 16, seed=1)
    z = LatentZones(anchors, steps=20).encode(noise=noise)
    close(LatentZones(anchors.float(), steps=20).encode(noise=noise.float()), z.numpy(), 1e-4)


def test_noise_comes_from_the_callers_generator():
    zones = LatentZones(randn(5, 3))
    draw = lambda seed: zones.encode(generator=torch.Generator().manual_seed(seed))
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))


def test_paths_begin_and_end_where_they_should():
    anchors = randn(6, 4)
    zones = LatentZones(anchors, steps=40)
    z = randn(50, 4, seed=3)
    result = zones.flow(z, torch.zeros(50, dtype=torch.long), keep_path=True)
    assert result.log_prob.shape == (40, 50) and result.path.positions.shape == (40, 50, 4)
    close(result.path.positions[0], z.numpy(), 1e-12)
    close(result.end, anchors[result.index].numpy(), 1e-2)
    close(result.log_prob[0], np.full(50, -math.log(6)), 1e-9)


# -- bad requests ----------------------------------------------------------------------------------

BAD_ANCHORS = [(torch.randn(3), r"anchors: got shape \[3\]"), (torch.randn(2, 3, 4), "anchors: got shape"), (torch.randn(0, 3), "anchors: got shape"),
               (torch.randn(3, 0), "anchors: got shape"), (torch.ones(3, 2, dtype=torch.long), "anchors: got torch.int64"),
               (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), "anchors: .*row 1"), (torch.tensor([[float("inf"), 1.0]]), "anchors: .*row 0"),
               ([[1.0, 2.0]], "anchors: got list")]
BAD_WEIGHTS = [(torch.tensor([1.0, -1.0, 1.0]), "weights: got"), (torch.ones(2), r"weights: got shape \[2\]"), (torch.zeros(3), "weights: got only zeros"),
               (torch.tensor([1.0, float("nan"), 1.0]), "weights: got"), (torch.tensor([1.0, float("inf"), 1.0]), "weights: got")]


@pytest.mark.parametrize("anchors, message", BAD_ANCHORS)
def test_bad_anchors(anchors, message):
    with pytest.raises(ValueError, match=message): LatentZones(anchors)


@pytest.mark.parametrize("weights, message", BAD_WEIGHTS)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message): LatentZones(torch.eye(3), weights)


@pytest.mark.parametrize("options, message", [
    (dict(steps=0), "steps: got 0"), (dict(steps=2.5), "steps: got 2.5"), (dict(solver="runge"), "solver: got 'runge'"), (dict(gapp=1), "gapp"),
    (dict(solver="euler", gap=0.0), "gap"), (dict(reach=-1.0), "reach"), (dict(order=4), "order"), (dict(window=0.0), "window")])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message): LatentZones(torch.eye(3), **options)


@pytest.mark.parametrize("request_, message", [
    (dict(index=torch.tensor([3])), "index: got"), (dict(index=torch.tensor([-1])), "index: got"), (dict(index=torch.tensor([0.5])), "index: got"),
    (dict(alpha=-0.1), "alpha: got -0.1"), (dict(alpha=float("nan")), "alpha: got nan"), (dict(noise=torch.zeros(2, 3)), r"noise: got .*\[2, 3\]"),
    (dict(noise=torch.full((3, 3), float("nan"))), "noise")])
def test_bad_encode(request_, message):
    with pytest.raises(ValueError, match=message): LatentZones(torch.eye(3)).encode(**request_)


@pytest.mark.parametrize("z, target, message", [
    (torch.zeros(2, 4), None, r"z: got .*\[2, 4\]"), (torch.zeros(3), None, r"z: got .*\[3\]"), (torch.full((1, 3), float("nan")), None, "z"),
    (torch.zeros(2, 3), torch.tensor([0]), "target: got 1"), (torch.zeros(1, 3), torch.tensor([3]), "target: got"),
    (torch.zeros(1, 3), torch.tensor([1.5]), "target: got")])
def test_bad_flow(z, target, message):
    with pytest.raises(ValueError, match=message): LatentZones(torch.eye(3)).flow(z, target)


def test_no_zone_without_weight():
    zones = LatentZones(torch.eye(3), torch.tensor([0.0, 1.0, 1.0]))
    for call in (lambda: zones.encode(torch.tensor([0])), lambda: zones.flow(torch.zeros(1, 3), torch.tensor([0]))):
        with pytest.raises(ValueError, match="weight 0"): call()


def test_only_the_proportions_of_weights_count_at_any_size():
    anchors = torch.eye(3)
    wanted = LatentZones(anchors, [1.0, 3.0, 3.0]).log_weights
    for weights in (torch.tensor([1e38, 3e38, 3e38]), torch.tensor([1e-60, 3e-60, 3e-60], dtype=torch.float64), torch.tensor([1, 3, 3])):
        assert torch.allclose(LatentZones(anchors, weights).log_weights, wanted)
