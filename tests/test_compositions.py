"Compositions: shares, margins, places inside zones and moves between them, against what can be known without the library."
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lzn_nb.compositions import accepted, arc, entropy, inside, moved
from lzn_nb.data import load_data
from lzn_nb.latent_views import label_shares
from lzn_nb.saved import load_pretrained
from lzn_nb.zones import LatentZones

seeded = lambda seed=0: torch.Generator().manual_seed(seed)


def some_zones(n=5, q=6, seed=0, steps=40, **options):
    return LatentZones(2 * torch.randn(n, q, generator=seeded(seed), dtype=torch.float64), steps=steps, **options)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 8), st.integers(1, 10), st.integers(0, 99))
@example(3, 1, 56)  # two anchors that are 0.003 apart
def test_a_latent_is_a_zone_and_a_place_in_it(n, q, seed):
    zones = some_zones(n, q, seed, steps=2000 if q == 1 else 480)  # anchors that crowd on a line leave few steps much to err
    noise = torch.randn(30, q, generator=seeded(seed + 1), dtype=torch.float64)
    index = torch.arange(30) % n
    owner, found = inside(zones, zones.encode(index, noise=noise))
    arrived = owner == index  # near a border the solver's error decides
    assert arrived.double().mean() > 0.85
    assert (found - noise)[arrived].norm(dim=1).median() < 0.02 * math.sqrt(q)


def test_two_anchors_are_told_apart_by_a_plane_and_moves_cross_it():
    zones = LatentZones(torch.tensor([[-3.0, 0.0], [3.0, 0.0]], dtype=torch.float64), steps=60)
    z = torch.randn(500, 2, generator=seeded(), dtype=torch.float64)
    there = moved(zones, z, 1 - zones.decode(z))
    assert torch.equal(zones.decode(z), (z[:, 0] > 0).long()) and torch.equal(zones.decode(there), 1 - zones.decode(z))
    # across the plane each zone is half a normal, unrolled along x by its distribution function; y stays
    torch.testing.assert_close(there[:, 1], z[:, 1], atol=2e-3, rtol=0)
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    wanted = normal.icdf((normal.cdf(z[:, 0]) + 0.5) % 1.0)
    clear = (normal.cdf(z[:, 0]) % 0.5 - 0.25).abs() < 0.22
    torch.testing.assert_close(there[clear, 0], wanted[clear], atol=0.02, rtol=0)


def test_what_is_moved_home_is_where_it_was():
    zones = some_zones()
    z = torch.randn(200, 6, generator=seeded(), dtype=torch.float64)
    owner = zones.decode(z)
    back = moved(zones, moved(zones, z, (owner + 1) % 5), owner)
    assert (back - z).norm(dim=1).median() < 0.01


def test_zones_that_never_decide_are_refused():
    for zones in (some_zones(window=2.0), LatentZones(torch.randn(3, 4), solver="euler")):
        with pytest.raises(ValueError, match="zones: got some whose flow does not reach its end"): inside(zones, torch.zeros(2, zones.anchors.shape[1], dtype=zones.anchors.dtype))


def test_all_of_an_arc_is_normal():
    a, b = torch.randn(2, 4000, 8, generator=seeded())
    way = arc(a, b, 5)
    torch.testing.assert_close(way[0], a)
    torch.testing.assert_close(way[-1], b, atol=1e-6, rtol=1e-6)
    assert (way.var((1, 2)) - 1).abs().max() < 0.03
    for bad, words in (((a, b[:5], 3), "b: got shape"), ((a, b, 1), "points: got 1"), ((a[0], b[0], 3), "a: got torch.float32 of shape")):
        with pytest.raises(ValueError, match=words): arc(*bad)


def test_entropy_of_known_shares():
    torch.testing.assert_close(entropy(torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])), torch.tensor([0.0, 1.0, 2.0]))
    for bad in ([[0.5, 0.4]], [[1.5, -0.5]], [[float("nan"), 1.0]]):
        with pytest.raises(ValueError, match="shares"): entropy(torch.tensor(bad))


def test_shares_of_the_shipped_network():
    network, (images, labels) = load_pretrained(), load_data("digits").test.tensors()
    shares = label_shares(network, images, draws=8, generator=seeded())
    assert shares.shape == (359, 10) and torch.allclose(shares.sum(1), torch.ones(359)) and (shares.argmax(1) == labels).double().mean() > 0.95
    assert torch.equal(shares, label_shares(network, images, draws=8, generator=seeded()))
    middle = label_shares(network, images, alpha=0.0, draws=1)
    assert entropy(middle).max() < 1e-6 and torch.equal(middle.argmax(1), network.classify(images))
    assert float(entropy(shares).mean()) > 0.1
    with pytest.raises(ValueError, match="draws: got 0"): label_shares(network, images[:5], draws=0)


def test_shares_among_ready_zones_are_those_of_draw_after_draw():
    "All draws at once and one after the other: the same noise, so the same shares."
    network, images = load_pretrained(), load_data("digits").test.images[:32]
    company = network.zones_of("image", load_data("digits").train.images[:200])
    shares, generator = label_shares(network, images, draws=6, among=company, generator=seeded(3)), seeded(3)
    each = [network.decode("label", network.latents("image", images, among=company, generator=generator)) for _ in range(6)]
    assert torch.allclose(shares, sum(torch.nn.functional.one_hot(label, 10) for label in each) / 6)


@pytest.mark.parametrize("asked, words", [
    (lambda zones, z: entropy(None), "shares: got NoneType"), (lambda zones, z: entropy(torch.ones(3)), r"shares: got torch.float32 of shape \[3\]"), (lambda zones, z: entropy(torch.ones(2, 1, dtype=torch.complex64)), r"shares: got torch.complex64 of shape \[2, 1\], wanted real"), (lambda zones, z: entropy(torch.tensor([[1, 0]])), "shares: got torch.int64"),
    (lambda zones, z: arc(z, z, 10**12), "points: got 1,000,000,000,000, for which .* GB are needed and .* GB are free"), (lambda zones, z: arc(z, z, 2.5), "points: got 2.5, wanted an integer"), (lambda zones, z: label_shares(None, z), "network: got NoneType, wanted a LatentZoningNetwork"), (lambda zones, z: label_shares(load_pretrained(), None), "image: got NoneType"),
    (lambda zones, z: arc(None, z), "a: got NoneType"),
    (lambda zones, z: arc(z.long(), z), "a: got torch.int64 of shape"), (lambda zones, z: arc(z, z / 0), "b: .* NaN or infinity"), (lambda zones, z: inside(None, z), "zones: got NoneType"),
    (lambda zones, z: moved(zones, z, None), "to: got NoneType"), (lambda zones, z: moved(zones, z, torch.zeros(9).long()), r"to: got torch.int64 of shape \[9\]"), (lambda zones, z: moved(zones, z, torch.full((5,), 12)), "to: got .* from 12 to 12, wanted integers"),
    (lambda zones, z: inside(zones.at_sharpness(2.0), z), "wanted solver='adams' without window and sharpness")])
def test_what_is_wrong_is_named(asked, words):
    g = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match=words): asked(LatentZones(torch.randn(4, 3, generator=g)), torch.randn(5, 3, generator=g))


def test_latents_in_two_zones_at_once_are_those_of_one_that_lie_in_the_other():
    "Against the definition: the first n of one stream that fit, in their order, with the distribution of the draws that fit."
    generator, same = seeded(3), seeded(3)
    stream = torch.cat([torch.randn(7, 2, generator=same) for _ in range(64)])
    found = accepted(lambda n: torch.randn(n, 2, generator=generator), lambda z: z[:, 0] > 1, 7)
    assert torch.equal(found, stream[stream[:, 0] > 1][:7])
    two, other = some_zones(5, 6, 0), some_zones(4, 6, 1)
    z = accepted(lambda n: two.encode([2] * n, generator=generator), lambda z: other.decode(z) == 3, 20)
    assert z.shape == (20, 6) and (other.decode(z) == 3).all() and (two.decode(z) == 2).double().mean() > 0.8


def test_zones_that_do_not_meet_are_said_to():
    draws = []
    draw = lambda n: draws.append(n) or torch.zeros(n, 2)
    with pytest.raises(ValueError, match="fits: 0 of 30 latents do, wanted 10"): accepted(draw, lambda z: z[:, 0] > 0, 10, tries=3)
    assert draws == [10] * 3
    for bad in (lambda z: True, lambda z: z[:, 0], lambda z: z > 0):
        with pytest.raises(ValueError, match=r"fits: got .*, wanted true or false for each of 4 latents"): accepted(draw, bad, 4)
    with pytest.raises(ValueError, match="fits: 0 of 8 latents do, wanted 10"): accepted(lambda n: torch.zeros(4, 2), lambda z: z[:, 0] > 0, 10, tries=2)  # counted is what came
    with pytest.raises(ValueError, match="fits: 0 of 0 latents do, wanted 3"): accepted(lambda n: torch.zeros(0, 2), lambda z: z[:, 0] > 0, 3)
    for name in ("n", "tries"):
        with pytest.raises(ValueError, match=f"{name}: got 0"): accepted(draw, lambda z: z[:, 0] == 0, **({"n": 4} | {name: 0}))


def widening():
    "Draws that become one wider each time."
    widths = iter(range(2, 9))
    return lambda n: torch.zeros(n, next(widths))


@pytest.mark.parametrize("call, words", [
    (lambda zones, z: accepted(None, len, 3), "draw: got NoneType, wanted a function"), (lambda zones, z: accepted(len, "x", 3), "fits: got str, wanted a function"),
    (lambda zones, z: accepted(lambda n: z[:n], lambda z: z[:, 0] > -9, 10**12), "n: got 1,000,000,000,000, for which"),
    (lambda zones, z: accepted(widening(), lambda z: z.new_zeros(len(z), dtype=torch.bool), 3), r"draw: got torch.float32 of shape \[3, 3\], wanted latents \[3,q\]"),
    (lambda zones, z: accepted(lambda n: [0.0] * n, len, 3), r"draw: got list, wanted latents \[3,q\]"), (lambda zones, z: accepted(lambda n: z[:n], lambda z: None, 3), "fits: got NoneType, wanted true or false"),
    (lambda zones, z: moved(None, z, torch.zeros(4).long()), "zones: got NoneType"), (lambda zones, z: moved(zones, None, torch.zeros(4).long()), "z: got"), (lambda zones, z: moved(zones, z, torch.zeros(4, dtype=torch.complex64)), r"to: got torch.complex64 of shape \[4\]"),
    (lambda zones, z: moved(zones, z, torch.tensor(1)), r"to: got torch.int64 of shape \[\]"), (lambda zones, z: load_pretrained().translate(z, ["image"], "label"), r"data type: got \['image'\], wanted one of"),
])
def test_what_can_be_no_argument_is_named(call, words):
    with pytest.raises(ValueError, match=words): call(some_zones(), torch.zeros(4, 6, dtype=torch.float64))
