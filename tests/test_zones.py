"Zones: golden numbers, closed forms, symmetries, guests, blocks, precision, gradients, and every bad request by name."
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lzn_nb import flow
from lzn_nb.zones import LatentZones, kept_numbers, samples_of

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


def test_a_far_anchor_that_weighs_nothing_takes_no_precision():
    near, noise = randn(20, 8, seed=0).float(), randn(20, 8, seed=1).float()
    zones = LatentZones(near)
    alone = zones.encode(noise=noise)
    beside = LatentZones(torch.cat([near, torch.full((1, 8), 1e6)]), torch.tensor([1.0] * 20 + [0.0]))
    close(beside.encode(torch.arange(20), noise), alone.numpy(), 2e-6)
    assert beside.decode(alone).tolist() == zones.decode(alone).tolist() and beside.radius == zones.radius


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
@given(n=st.integers(2, 20), q=st.integers(1, 8), power=st.integers(-16, 16), seed=st.integers(0, 99))
@example(n=5, q=3, power=-16, seed=0)
@example(n=5, q=3, power=16, seed=0)
def test_adams_does_not_feel_the_unit_of_length(n, q, power, seed):
    "A common factor of all anchors changes no latent, over 32 orders of magnitude and in float32: nodes scale with the anchors."
    anchors, noise = randn(n, q, seed=seed), randn(n, q, seed=seed + 1)
    z = LatentZones(anchors).encode(noise=noise)
    close(LatentZones(anchors * 2.0**power).encode(noise=noise), z.numpy(), 1e-9)  # powers of 2 round nothing
    far = LatentZones((anchors * 10.0**power).float())
    same_in_float64 = LatentZones(far.anchors.double()).encode(noise=noise)
    close(far.encode(noise=noise.float()), same_in_float64.numpy(), 1e-3)
    assert far.flow(z.float(), torch.arange(n)).log_prob.isfinite().all()


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
    assert (zones.decode(z) != torch.arange(n)).sum() <= max(1, n / 20)
    centres = zones.encode(alpha=0.0)
    assert torch.equal(zones.decode(centres), torch.arange(n))


@pytest.mark.parametrize("q", [2, 4, 8])
@pytest.mark.parametrize("n", [6, 64])
def test_default_steps_decode_far_better_than_euler(n, q):
    index = torch.arange(n).repeat(1200 // n)
    anchors, noise = randn(n, q, seed=q), randn(len(index), q, seed=1)

    def strays(solver):
        zones = LatentZones(anchors, solver=solver)
        return float((zones.decode(zones.encode(index, noise)) != index).double().mean())

    adams, euler = strays("adams"), strays("euler")
    assert adams < 0.7 * euler
    assert adams < (0.5 if n == 64 and q == 2 else 0.08)


def test_latents_are_gaussian():
    from lzn_nb.metrics import gaussianity
    assert gaussianity(LatentZones(3 * randn(2000, 16), steps=15).encode(noise=randn(2000, 16, seed=1))).passed


# -- guests ----------------------------------------------------------------------------------------

SOLVERS = [dict(), dict(solver="euler", steps=20)]


def town(n=40, q=5):
    "Anchors, uneven weights, and six guests: ordinary ones, one beside an anchor, a copy of one, one far out; float64."
    anchors, weights = 2 * randn(n, q), randn(n, seed=1).exp()
    guests = torch.cat([randn(3, q, seed=2), anchors[:1] + 1e-6, anchors[1:2], 40 * randn(1, q, seed=3)])
    return anchors, weights / weights.sum(), guests, randn(6, q, seed=4)


@pytest.mark.parametrize("options", SOLVERS)
@pytest.mark.parametrize("dtype, within", [(torch.float64, 1e-7), (torch.float32, 1e-4)])
def test_a_guest_is_one_anchor_more_and_sees_no_other_guest(options, dtype, within):
    anchors, weights, guests, noise = (x.to(dtype) for x in town())
    n = len(anchors)
    zones = LatentZones(anchors, weights, **options)
    together = zones.encode(points=guests, noise=noise)
    for i, (guest, e) in enumerate(zip(guests.split(1), noise.split(1))):
        close(zones.encode(points=guest, noise=e), together[i:i + 1].double().numpy(), within)
        enlarged = LatentZones(torch.cat([anchors, guest]), torch.cat([weights, weights.new_tensor([1 / n])]), **options)
        close(enlarged.encode([n], e), together[i:i + 1].double().numpy(), within)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_gradients_through_guests(block):
    anchors, _, guests, noise = town()
    direction = randn(*noise.shape, seed=5)

    def gradients(latents):
        a, g = anchors.clone().requires_grad_(), guests.clone().requires_grad_()
        return torch.autograd.grad((latents(a, g) * direction).sum(), (a, g))

    joined = gradients(lambda a, g: LatentZones(a, block=block).encode(points=g, noise=noise))
    appended = gradients(lambda a, g: torch.cat([LatentZones(torch.cat([a, g[i:i + 1]])).encode([len(a)], noise[i:i + 1]) for i in range(6)]))
    for x, y in zip(joined, appended): close(x, y.numpy(), 1e-9, 1e-7)


def test_many_guests_of_few_anchors_do_not_multiply():
    "Logits among guests are as many as guests squared: the blocks have to be small enough."
    zones = LatentZones(randn(3, 2))
    with torch.no_grad(): sizes = [len(z) for _, z in zones.encode_blocks(points=randn(5000, 2, seed=1), noise=randn(5000, 2, seed=2))]
    assert sum(sizes) == 5000 and all(b * (3 + b) <= 3 * zones.block for b in sizes)
    assert [len(z) for _, z in LatentZones(randn(3, 2), block=1).encode_blocks(points=randn(4, 2))] == [1] * 4


# -- blocks and memory -----------------------------------------------------------------------------

@pytest.mark.parametrize("options", SOLVERS)
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_the_size_of_a_block_changes_nothing(options, block):
    anchors, z, index = randn(30, 4), randn(50, 4, seed=1), torch.arange(30).repeat(2)

    def everything(**more):
        a = anchors.clone().requires_grad_()
        zones = LatentZones(a, **options, **more)
        result = zones.flow(z, torch.arange(50) % 30, keep_path=True)
        latents = zones.encode(index, generator=torch.Generator().manual_seed(0))
        gradient, = torch.autograd.grad(latents.square().sum() + result.log_prob[-2].sum() + result.end.sum(), a)
        return latents, result.log_prob, result.end, result.path.positions, gradient, zones.decode(z)

    for x, y in zip(everything(block=block), everything()): close(x, y.detach().double().numpy(), 1e-9, 1e-9)


def test_stream_is_encode_and_keeps_what_is_done():
    zones, noise = LatentZones(randn(50, 4), block=8), randn(50, 4, seed=1)
    whole, kept = zones.encode(noise=noise), torch.zeros(50, 4, dtype=torch.float64)
    assert torch.equal(torch.cat([z for _, z in zones.encode_blocks(noise=noise)]), whole)
    rows = [rows for rows, _ in zones.encode_blocks(points=randn(5, 4, seed=2), generator=torch.Generator().manual_seed(0))]
    assert rows[0].start == 0 and rows[-1].stop == 5 and all(a.stop == b.start for a, b in zip(rows, rows[1:]))
    with pytest.raises(KeyboardInterrupt):
        for rows, z in zones.encode_blocks(noise=noise):
            kept[rows] = z
            if rows.stop >= 24: raise KeyboardInterrupt
    assert torch.equal(kept[:24], whole[:24]) and (kept[24:] == 0).all()


def test_progress_shows_and_changes_nothing(capsys):
    zones, z = LatentZones(randn(20, 3), block=5), randn(20, 3, seed=1)
    assert torch.equal(zones.encode(noise=z, progress=True), zones.encode(noise=z))
    assert torch.equal(zones.decode(z, progress=True), zones.decode(z))
    assert "4/4" in capsys.readouterr().err


def test_nothing_in_nothing_out():
    zones, none = LatentZones(randn(4, 3)), torch.zeros(0, 3)
    assert zones.encode(torch.zeros(0, dtype=torch.long)).shape == zones.encode(points=none).shape == (0, 3)
    assert zones.decode(none).shape == (0,) and zones.flow(none, torch.zeros(0, dtype=torch.long)).log_prob.shape == (10, 0)


def test_what_cannot_fit_is_refused_before_it_is_tried(monkeypatch):
    zones, wide = LatentZones(randn(2000, 8), block=250), LatentZones(randn(2000, 8), block=2000)
    monkeypatch.setattr(flow, "free_memory", lambda device: 50e6)
    with torch.no_grad():
        zones.encode()
        zones.decode(randn(3000, 8))
        with pytest.raises(MemoryError, match="smaller `block`"): wide.encode()
    with pytest.raises(MemoryError, match=r"needs .* GB and cpu has 0.05 GB left; fewer samples at a time, fewer `steps` or torch.no_grad\(\)"):
        zones.encode(torch.arange(2000).repeat(40))
    monkeypatch.setattr("lzn_nb.zones.latents_of_block", lambda *_: pytest.fail("computed"))
    monkeypatch.setattr("lzn_nb.zones.scaled_noise", lambda *_: pytest.fail("drawn"))
    monkeypatch.setattr(flow, "free_memory", lambda device: 1e3)
    for call in (lambda: zones.encode(), lambda: zones.encode(points=randn(9, 8)), lambda: zones.encode_blocks(), lambda: zones.flow(randn(9, 8))):
        with pytest.raises(MemoryError, match="cpu has 1e-06 GB left"): call()


def test_anchors_and_distances_that_cannot_fit_are_refused(monkeypatch):
    wide = LatentZones(randn(2000, 8), block=2000)
    monkeypatch.setattr(flow, "free_memory", lambda device: 50e6)
    for call in (lambda: wide.distances, lambda: wide.flow(randn(3, 8)), lambda: wide.decode(randn(3, 8))):  # few latents, but the distances of all anchors
        with pytest.raises(MemoryError, match="this needs 0.096 GB .* a smaller `block` would lower it"): call()
    monkeypatch.setattr(flow, "free_memory", lambda device: 1e5)
    with pytest.raises(MemoryError, match="fewer anchors would lower it"): LatentZones(torch.zeros(1, 1).expand(1000, 100))
    monkeypatch.setattr(flow, "free_memory", lambda device: 3e6)
    twins = torch.cat([randn(100, 8), randn(100, 8) + 1e-7]).float().requires_grad_()
    assert LatentZones(randn(200, 8).float().requires_grad_(), block=50).encode().shape == (200, 8)  # there is room for this
    monkeypatch.setattr(flow, "free_memory", lambda device: 4e5)
    with pytest.raises(MemoryError): LatentZones(twins, block=50).encode()


@pytest.mark.parametrize("n, q", [(10, 50), (100, 50), (2, 100), (1, 16), (500, 20), (2, 2), (10, 4), (50, 16), (200, 64)])
@pytest.mark.parametrize("guests", [False, True])
def test_the_estimate_of_what_is_kept_is_no_less_than_what_is(n, q, guests):
    "Numbers that autograd keeps for each latent, against those the check of the memory reckons with."
    zones = LatentZones(randn(n, q).float().requires_grad_(), block=64)
    m = 3000 if guests else n  # many blocks
    points, noise = (randn(m, q, seed=seed).float().requires_grad_() for seed in (1, 2))
    samples, sizes = samples_of(zones, None, points if guests else None), {}

    def pack(x): sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(); return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x): z = zones.encode(noise=noise, points=points if guests else None)
    assert z.requires_grad and sum(sizes.values()) <= 4 * (m * kept_numbers(samples) + 4 * n * q)  # and a few times the anchors


# -- gradients and precision -----------------------------------------------------------------------

@pytest.mark.parametrize("options", [dict(solver="euler", steps=5, gap=0.05), dict(solver="adams", steps=6, window=4.0, unit=0.2)])
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


def spots(radius, size): return radius * torch.nn.functional.normalize(randn(8, 16)).repeat(12, 1) + size * randn(96, 16, seed=1)


HARD = {f"pairs, radius {radius:g}, distance {d:g}": torch.cat([(b := radius * torch.nn.functional.normalize(randn(40, 16))), b + d * torch.nn.functional.normalize(randn(40, 16, seed=1))])
        for radius in (1.0, 30.0, 1e3) for d in (1e-4, 1e-2, 0.1, 1.0)}
HARD |= {f"clusters of size {size:g} at 1000": spots(1e3, size) for size in (1e-4, 1.0, 5.0)}
HARD |= {"copies and far ones": torch.cat([spots(1e3, 0.0)[:8], randn(30, 16, seed=2), randn(30, 16, seed=2)]), "crowded": randn(200, 2), "off the origin": randn(100, 2) + 1e3}


@pytest.mark.parametrize("options", SOLVERS)
@pytest.mark.parametrize("case", HARD)
def test_float32_holds_for_wide_close_and_equal_anchors(case, options):
    anchors = HARD[case].float()
    noise, direction = randn(*anchors.shape, seed=3), randn(*anchors.shape, seed=4)

    def latents_and_gradient(dtype):
        a = anchors.to(dtype).requires_grad_()
        z = LatentZones(a, **options).encode(noise=noise.to(dtype))
        return z.detach(), torch.autograd.grad((z * direction.to(dtype)).sum(), a)[0]

    for x, exact, rtol in zip(latents_and_gradient(torch.float32), latents_and_gradient(torch.float64), (0, 1e-3)):
        close(x, exact.numpy(), 1e-3 if rtol == 0 else 1e-6, rtol)


def test_no_grad_first_takes_no_gradient_away():
    "Close anchors walk in float64, whose copy of the anchors must not be one made without a gradient."
    anchors = torch.cat([randn(10, 4), randn(10, 4) + 1e-5]).float()
    noise = randn(20, 4, seed=1).float()

    def gradient(before):
        a = anchors.clone().requires_grad_()
        zones = LatentZones(a)
        before(zones)
        return torch.autograd.grad(zones.encode(noise=noise).square().sum(), a)[0]

    assert torch.equal(gradient(lambda zones: zones.decode(noise)), gradient(lambda zones: None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype):
    anchors, noise = randn(20, 4).to(dtype).requires_grad_(), randn(20, 4, seed=1).to(dtype)
    full = anchors.detach().float().requires_grad_()
    z, wanted = LatentZones(anchors).encode(noise=noise), LatentZones(full).encode(noise=noise.float())
    assert z.dtype == torch.float32 and torch.equal(z, wanted)
    (half_gradient,), (gradient,) = (torch.autograd.grad(x.square().sum(), a) for x, a in ((z, anchors), (wanted, full)))
    assert half_gradient.dtype == dtype and torch.equal(half_gradient, gradient.to(dtype))
    assert LatentZones(60_000 * torch.eye(3).half()).encode(noise=torch.zeros(3, 3)).isfinite().all()  # its squares leave float16


@pytest.mark.parametrize("options", SOLVERS)
def test_autocast_has_no_say(options):
    anchors, noise, points = randn(30, 8).float(), randn(30, 8, seed=1).float(), randn(6, 8, seed=2).float()

    def everything():
        zones = LatentZones(anchors, torch.arange(1, 31), **options)
        result = zones.flow(noise, torch.arange(30), keep_path=True)
        return zones.encode(noise=noise), zones.encode(points=points, noise=noise[:6]), result.log_prob, result.end, result.path.positions, zones.decode(noise)

    with torch.autocast("cpu", dtype=torch.bfloat16): inside = everything()
    for x, y in zip(inside, everything()): assert torch.equal(x, y)


def test_lower_precision_becomes_that_of_the_anchors_and_higher_is_refused():
    zones, noise = LatentZones(randn(5, 3)), randn(5, 3, seed=1).float()
    assert torch.equal(zones.encode(noise=noise), zones.encode(noise=noise.double()))
    single = LatentZones(randn(5, 3).float())
    assert single.encode(noise=noise.bfloat16()).dtype == torch.float32
    for name, call in (("noise", lambda x: single.encode(noise=x)), ("points", lambda x: single.encode(points=x)), ("z", single.flow), ("z", single.decode)):
        with pytest.raises(ValueError, match=f"{name}: got torch.float64, wanted torch.float32 as the anchors"): call(noise.double())


def test_sparse_tensors_are_refused_and_empty_lists_are_not():
    zones = LatentZones(randn(5, 3))
    for name, call in (("weights", lambda x: LatentZones(randn(5, 3), x)), ("index", lambda x: zones.encode(x.long()))):
        with pytest.raises(ValueError, match=f"{name}: got a tensor of layout torch.sparse_coo"): call(torch.ones(5).to_sparse())
    assert zones.encode([]).shape == (0, 3)


def test_assignments_come_block_by_block():
    zones, z = LatentZones(randn(9, 3), block=4), randn(10, 3, seed=1)
    parts = list(zones.decode_blocks(z))
    with pytest.raises(ValueError, match="z: got"): zones.decode_blocks(z[:, :2])  # at once, not when the first block is asked for
    assert [rows for rows, _ in parts] == [slice(0, 4), slice(4, 8), slice(8, 10)] and torch.equal(torch.cat([index for _, index in parts]), zones.decode(z))
    stream = zones.decode_blocks(z.requires_grad_())
    next(stream)
    assert torch.is_grad_enabled() and torch.equal(zones.flow(z).index, zones.decode(z))


def test_noise_comes_from_the_callers_generator():
    zones = LatentZones(randn(5, 3))
    draw = lambda seed: zones.encode(generator=torch.Generator().manual_seed(seed))
    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))


def test_paths_begin_and_end_where_they_should():
    anchors = randn(6, 4)
    zones = LatentZones(anchors, steps=40)
    z = randn(50, 4, seed=3)
    result = zones.flow(z, torch.zeros(50, dtype=torch.long), keep_path=True)
    assert result.log_prob.shape == (40, 50) and result.path.positions.shape == (41, 50, 4)
    close(result.path.positions[0], z.numpy(), 1e-12)
    close(result.end, anchors[result.index].numpy(), 1e-2)
    assert result.first == 1 and result.path.times[0] == 0


# -- bad requests ----------------------------------------------------------------------------------

BAD_ANCHORS = [(torch.randn(3), r"anchors: got shape \[3\]"), (torch.randn(2, 3, 4), "anchors: got shape"), (torch.randn(0, 3), "anchors: got shape"),
               (torch.randn(3, 0), "anchors: got shape"), (torch.ones(3, 2, dtype=torch.long), "anchors: got torch.int64"),
               (torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), "anchors: .*row 1"), (torch.tensor([[float("inf"), 1.0]]), "anchors: .*row 0"),
               ([[1.0, 2.0]], "anchors: got list"), (torch.ones(3, 2, dtype=torch.complex64), "anchors: got torch.complex64"),
               (torch.tensor([[1.0, 0.0], [3e18, 4e18]]), r"anchors: got a norm of 5e\+18 in row 1, wanted at most 1e\+18"),
               (torch.full((2, 3), 1e38), "anchors: got a norm of 1.73e.38 in row 0"), (torch.empty(3, 2, device="meta"), "anchors: got a tensor on meta"),
               (torch.eye(3).to_sparse(), "anchors: got a tensor of layout")]
BAD_WEIGHTS = [(torch.tensor([1.0, -1.0, 1.0]), "weights: got"), (torch.ones(2), r"weights: got shape \[2\]"), (torch.zeros(3), "weights: got only zeros"),
               (torch.ones(3, dtype=torch.complex64), "weights: got .* torch.complex64"), ("equal", "weights: got str"), ([1, 2, "x"], "weights: got list"),
               (torch.ones(3, device="meta"), "weights: got a tensor on meta"), (torch.tensor([1.0, float("nan"), 1.0]), "weights: got"), (torch.tensor([1.0, float("inf"), 1.0]), "weights: got")]


@pytest.mark.parametrize("anchors, message", BAD_ANCHORS)
def test_bad_anchors(anchors, message):
    with pytest.raises(ValueError, match=message): LatentZones(anchors)


@pytest.mark.parametrize("weights, message", BAD_WEIGHTS)
def test_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message): LatentZones(torch.eye(3), weights)


@pytest.mark.parametrize("options, message", [
    (dict(steps=0), "steps: got 0"), (dict(steps=2.5), "steps: got 2.5"), (dict(solver="runge"), "solver: got 'runge'"), (dict(gapp=1), "gapp"),
    (dict(block=0), "block: got 0"), (dict(block=2.0), "block: got 2.0"), (dict(block="all"), "block: got 'all'"), (dict(solver=None), "solver: got None"),
    (dict(solver="euler", gap=0.0), "gap"), (dict(reach=-1.0), "reach"), (dict(order=4), "order"), (dict(window=0.0), "window")])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message): LatentZones(torch.eye(3), **options)


@pytest.mark.parametrize("request_, message", [
    (dict(index=torch.tensor([3])), "index: got"), (dict(index=torch.tensor([-1])), "index: got"), (dict(index=torch.tensor([0.5])), "index: got"),
    (dict(alpha=-0.1), "alpha: got -0.1"), (dict(alpha=float("nan")), "alpha: got nan"), (dict(noise=torch.zeros(2, 3)), r"noise: got .*\[2, 3\]"),
    (dict(noise=torch.full((3, 3), float("nan"))), "noise"), (dict(noise=torch.zeros(3, 3, device="meta")), "noise: .* on meta, wanted .* on cpu"),
    (dict(noise=torch.zeros(3, 3).long()), "noise: got torch.int64"), (dict(noise=torch.zeros(3, 3).cfloat()), "noise: got torch.complex64"), (dict(noise=0.0), "noise: got float"),
    (dict(noise=torch.full((3, 3), 1e30)), "noise: got a norm"), (dict(index="a"), "index: got str"), (dict(index=3), "index: got"), (dict(index=[[0]]), "index: got"),
    (dict(index=torch.arange(3, device="meta")), "index: got a tensor on meta"), (dict(index=[True]), "index: got torch.bool"), (dict(alpha="1"), "alpha: got '1'"),
    (dict(alpha=True), "alpha: got True"), (dict(generator=0), "generator: got int"), (dict(points=torch.zeros(1, 3), index=[0]), "points: got them and index"),
    (dict(points=torch.zeros(2, 4)), r"points: got .*\[2, 4\]"), (dict(points=[[0.0] * 3]), "points: got list"), (dict(points=torch.full((1, 3), 1e30)), "points: got a norm"),
    (dict(points=torch.zeros(2, 3, device="meta")), "points: .* on meta"), (dict(points=torch.zeros(2, 3), noise=torch.zeros(3, 3)), r"noise: got .*\[3, 3\]")])
def test_bad_encode(request_, message):
    with pytest.raises(ValueError, match=message): LatentZones(torch.eye(3)).encode(**request_)


@pytest.mark.parametrize("z, target, message", [
    (torch.zeros(2, 4), None, r"z: got .*\[2, 4\]"), (torch.zeros(3), None, r"z: got .*\[3\]"), (torch.full((1, 3), float("nan")), None, "z"),
    (torch.zeros(2, 3), torch.tensor([0]), "target: got 1"), (torch.zeros(1, 3), torch.tensor([3]), "target: got"),
    (torch.zeros(1, 3), torch.tensor([1.5]), "target: got"), (torch.zeros(1, 3, device="meta"), None, "z: .* on meta, wanted .* on cpu"), (3, None, "z: got int"),
    (torch.zeros(1, 3).long(), None, "z: got torch.int64"), (torch.zeros(1, 3), "one", "target: got str"), (torch.zeros(1, 3), torch.zeros(1, device="meta").long(), "target: .*meta"),
    (torch.zeros(2, 3), torch.ones(2, 4).bool(), r"target: got torch.bool of shape .2, 4., wanted bool .m,3."), (torch.zeros(2, 3), torch.ones(1, 3).bool(), "target: got 1 entries, wanted 2"),
    (torch.zeros(2, 3), torch.tensor([[True, False, False], [False] * 3]), "target: got number 1 without any anchor"), (torch.zeros(2, 3), torch.ones(2, 3), "target: got torch.float32")])
def test_bad_flow(z, target, message):
    with pytest.raises(ValueError, match=message): LatentZones(torch.eye(3)).flow(z, target)


@pytest.mark.parametrize("options", [{"solver": "adams"}, {"solver": "euler", "steps": 9}, {"solver": "adams", "block": 4}])
def test_the_probability_of_a_set_is_the_sum_of_its_members(options):
    "At each evaluation; of one anchor it is that of the anchor as a target, and of all it is 1."
    zones, z = LatentZones(2 * randn(6, 3), randn(6, seed=3).exp(), **options), randn(11, 3, seed=1)
    chosen = torch.rand(11, 6, generator=torch.Generator().manual_seed(2)) < 0.4
    chosen[:, 2] = True
    alone = torch.stack([zones.flow(z, torch.full((11,), k)).log_prob for k in range(6)], 2)
    found = zones.flow(z, chosen)
    torch.testing.assert_close(found.log_prob, alone.masked_fill(~chosen, -torch.inf).logsumexp(2))
    torch.testing.assert_close(zones.flow(z, torch.arange(6)[None] == found.index[:, None]).log_prob, zones.flow(z, found.index).log_prob)
    torch.testing.assert_close(zones.flow(z, torch.ones(11, 6).bool()).log_prob, torch.zeros_like(found.log_prob))


def test_no_zone_without_weight():
    zones = LatentZones(torch.eye(3), torch.tensor([0.0, 1.0, 1.0]))
    for call in (lambda: zones.encode(torch.tensor([0])), lambda: zones.flow(torch.zeros(1, 3), torch.tensor([0]))):
        with pytest.raises(ValueError, match="weight 0"): call()
    with pytest.raises(ValueError, match="number 0 without any anchor that owns a zone"): zones.flow(torch.zeros(1, 3), torch.tensor([[True, False, False]]))


def test_only_the_proportions_of_weights_count_at_any_size():
    anchors = torch.eye(3)
    wanted = LatentZones(anchors, [1.0, 3.0, 3.0]).log_weights
    for weights in (torch.tensor([1e38, 3e38, 3e38]), torch.tensor([1e-60, 3e-60, 3e-60], dtype=torch.float64), torch.tensor([1, 3, 3])):
        assert torch.allclose(LatentZones(anchors, weights).log_weights, wanted)


@pytest.mark.parametrize("steps", [5, 10])
def test_what_is_kept_for_the_way_back_does_not_grow_with_the_square(steps):
    "States and slopes, 2 r q numbers a sample, and a few more: nothing of the size [n,n], and no copy of the anchors for each block."
    q = 16
    for n in (256, 1024):
        anchors, z = (torch.randn(n, q, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in (0, 1))
        zones = LatentZones(anchors, steps=steps, block=64)
        for name, function in (("encode", lambda: zones.encode(noise=z)), ("flow", lambda: zones.flow(z, range(n)).log_prob),
                               ("guests", lambda: zones.encode(points=z, alpha=0.5))):
            sizes = {}

            def pack(x): sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes(); return x

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x): kept = function()
            assert kept.requires_grad and 2 * steps <= sum(sizes.values()) / (4 * n * q) < 2 * steps + 8, name


@pytest.mark.parametrize("solver", ["adams", "euler"])
def test_gradient_with_guests_reaches_everything(solver):
    "Anchors, weights, points and noise, in two blocks; the window is fixed, as gradients do not run through it."
    options = {"window": 6.0, "unit": 0.5} if solver == "adams" else {"gap": 0.2}
    anchors, points, noise = (randn(k, 3, seed=seed).requires_grad_() for k, seed in ((5, 0), (4, 1), (4, 2)))
    weights = torch.tensor([0.5, 1.0, 2.0, 1.0, 0.7], dtype=torch.float64, requires_grad=True)

    def encode(*x): return LatentZones(x[0], x[1], solver=solver, steps=4, block=6, **options).encode(points=x[2], noise=x[3])

    assert torch.autograd.gradcheck(encode, (anchors, weights, points, noise))


def test_a_weight_of_zero_has_no_gradient_and_spoils_no_other():
    weights = torch.tensor([0.0, 1, 1, 2, 1, 1], dtype=torch.float64, requires_grad=True)
    zones = LatentZones(randn(6, 3), weights, window=5.0)
    (found,) = torch.autograd.grad(zones.encode([1, 2], randn(2, 3, seed=1)).sum(), weights)
    without = weights.detach()[1:].requires_grad_()
    (wanted,) = torch.autograd.grad(LatentZones(randn(6, 3)[1:], without, window=5.0, unit=float(zones.spread) / 10).encode([0, 1], randn(2, 3, seed=1)).sum(), without)
    assert found[0] == 0 and found.isfinite().all()
    close(found[1:], wanted.numpy(), 1e-9)


def test_index_of_any_integer_type():
    zones, noise = LatentZones(randn(5, 3)), randn(2, 3, seed=1)
    wanted = zones.encode([1, 4], noise)
    for dtype in (torch.uint8, torch.int16, torch.uint16, torch.uint32, torch.uint64):
        assert torch.equal(zones.encode(torch.tensor([1, 4], dtype=dtype), noise), wanted)
        with pytest.raises(ValueError, match="index: got values from 1 to 5, wanted 0 to 4"): zones.encode(torch.tensor([1, 5], dtype=dtype))


# -- unchecked ----------------------------------------------------------------------------------
@pytest.mark.parametrize("weights", [None, [1.0, 2, 3, 1, 1, 2], [1.0, 2, 0, 1, 1, 2]])
@pytest.mark.parametrize("solver", ["adams", "euler"])
def test_unchecked_zones_are_the_same(weights, solver):
    anchors, noise, z, target = randn(6, 3), randn(6, 3, seed=1), randn(20, 3, seed=2), torch.arange(20) % 2
    one, other = (LatentZones(anchors, weights, solver=solver, checked=checked) for checked in (True, False))
    index = [0, 1, 3, 4, 5, 0]
    assert torch.equal(one.encode(index, noise), other.encode(torch.tensor(index), noise)) and torch.equal(one.decode(z), other.decode(z))
    assert torch.equal(one.encode(points=z[:6], noise=noise), other.encode(points=z[:6], noise=noise))
    assert torch.equal(one.flow(z, target).log_prob, other.flow(z, target).log_prob) and torch.equal(one.distances, other.distances)


def test_unchecked_zones_give_nan_for_nan_and_still_refuse_shapes():
    anchors = randn(6, 3).index_fill(0, torch.tensor([2]), torch.nan)
    zones = LatentZones(anchors, checked=False)
    assert zones.encode(noise=randn(6, 3)).isnan().any() and zones.flow(randn(4, 3), torch.zeros(4, dtype=torch.long)).log_prob.isnan().any()
    with pytest.raises(ValueError, match="noise: got .* wanted a floating tensor"): zones.encode(noise=randn(6, 4))
    with pytest.raises(ValueError, match="anchors: got shape"): LatentZones(randn(6), checked=False)


def test_unchecked_close_neighbours_keep_the_anchors_precision():
    anchors, noise = randn(40, 8), randn(80, 8, seed=1)
    anchors = torch.cat([anchors, anchors + 1e-4 * randn(40, 8, seed=2)]).float()
    wanted = LatentZones(anchors.double()).encode(noise=noise)
    errors = [float((LatentZones(anchors, checked=checked).encode(noise=noise.float()) - wanted).abs().max()) for checked in (True, False)]
    assert errors[0] < 1e-5 < errors[1] < 1e-2
