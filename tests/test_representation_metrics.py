"""Figures of features: against scikit-learn, closed forms, and what must not change them."""
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from lzn_nb.representation_metrics import check_split, chosen_probe, effective_rank, fit_probes, nearest_class, standardised, top_accuracy, uniformity, view_distance
from lzn_nb.training import Tally


def seeded(seed): return torch.Generator().manual_seed(seed)


def clouds(n=900, f=6, classes=4, noise=1.0, seed=0):
    "Three splits of normal clouds around as many centres."
    g = seeded(seed)
    centres, y = 3 * torch.randn(classes, f, generator=g), torch.randint(classes, (n,), generator=g)
    x = centres[y] + noise * torch.randn(n, f, generator=g)
    return [(x[k::3], y[k::3]) for k in range(3)]


def test_probe_is_as_good_as_the_exact_minimum():
    train, valid, test = clouds(noise=3.0)
    a, b = standardised(train[0], test[0])
    exact = LogisticRegression(max_iter=2000).fit(a.numpy(), train[1].numpy()).score(b.numpy(), test[1].numpy())
    assert abs(chosen_probe(train, valid, test)["top1"] - exact) < 0.02 and 0.5 < exact < 0.95


def test_probe_reaches_the_minimum_of_its_loss():
    "Without decay, on classes that overlap: the loss of scikit-learn's unpenalised minimum."
    (x, y), _, _ = clouds(noise=4.0)
    x, = standardised(x)
    layer, = fit_probes(x.double(), y, 4, [(1e-2, 0.0)], 300, 64, 0)
    exact = LogisticRegression(C=1e8, max_iter=5000).fit(x.numpy(), y.numpy())
    best = torch.nn.functional.cross_entropy(torch.as_tensor(exact.decision_function(x.numpy())), y)
    assert torch.nn.functional.cross_entropy(layer(x.double()), y) - best < 1e-3


def test_probe_chooses_on_the_validation_split_alone():
    train, valid, test = clouds(noise=2.0)
    upside_down = (test[0], (test[1] + 1) % 4)
    a, b = (chosen_probe(train, valid, part) for part in (test, upside_down))
    assert (a["rate"], a["decay"], a["valid"]) == (b["rate"], b["decay"], b["valid"]) and a["top1"] > 0.8 > 0.2 > b["top1"]
    hopeless = ((1e-9, 0.0), (1e-2, 0.0))  # the first learns nothing
    assert chosen_probe(train, valid, test, settings=hopeless)["rate"] == 1e-2


def test_probe_is_the_same_twice_and_at_any_scale():
    train, valid, test = clouds(noise=2.0)
    before = torch.get_rng_state()
    assert chosen_probe(train, valid, test, epochs=20) == chosen_probe(train, valid, test, epochs=20) and torch.equal(torch.get_rng_state(), before)
    with_constant = lambda split: (torch.cat([1000 * split[0] + 7, torch.full((len(split[0]), 1), 3.0)], 1), split[1])
    assert abs(chosen_probe(*map(with_constant, (train, valid, test)))["top1"] - chosen_probe(train, valid, test)["top1"]) < 0.01


def test_top_five_contains_top_one():
    scores, labels = torch.randn(500, 12, generator=seeded(0)), torch.randint(12, (500,), generator=seeded(1))
    shares = [top_accuracy(scores, labels, k) for k in (1, 3, 5, 12, 50)]
    assert shares == sorted(shares) and shares[-1] == shares[-2] == 1 and abs(shares[2] - 5 / 12) < 0.06


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 60), m=st.integers(1, 20), f=st.integers(2, 5), k=st.integers(1, 25), seed=st.integers(0, 1000))
def test_neighbours_agree_with_scikit_learn(n, m, f, k, seed):
    g = seeded(seed)
    train, x, labels = torch.randn(n, f, generator=g).double(), torch.randn(m, f, generator=g).double(), torch.randint(3, (n,), generator=g)
    far, rows = NearestNeighbors(n_neighbors=min(k, n), metric="cosine", algorithm="brute").fit(train.numpy()).kneighbors(x.numpy())
    weights = ((1 - torch.as_tensor(far)) / 0.07).exp()
    votes = torch.zeros(m, 3, dtype=torch.float64).scatter_add_(1, labels[torch.as_tensor(rows)], weights)
    best = votes.max(1, keepdim=True).values
    named = nearest_class(train, labels, x, k=k, block=7)
    assert (votes.gather(1, named[:, None]) >= best * (1 - 1e-9)).all()


def test_neighbours_do_not_mind_scale_order_or_rotation():
    (x, y), _, (z, _) = clouds(noise=2.5)
    named, order, turn = nearest_class(x, y, z), torch.randperm(len(x), generator=seeded(1)), torch.linalg.qr(torch.randn(6, 6, generator=seeded(2))).Q
    assert torch.equal(nearest_class(x[order], y[order], z), named)
    assert (nearest_class(x @ turn * 3, y, z @ turn) == named).float().mean() > 0.99


def test_neighbours_among_many_classes_need_no_table_of_them():
    "Memory is for blocks: far less than one number for each training image and class, or for each pair of images."
    (n, f, classes), g = (20_000, 4, 2000), seeded(0)
    x, labels = torch.randn(n, f, generator=g), torch.randint(classes, (n,), generator=g)
    with Tally() as tally: named = nearest_class(x, labels, x[:2000], block=100, k=1)
    assert tally.most < 4 * n * classes / 5 and torch.equal(named, labels[:2000])


def test_neighbours_of_cold_votes_are_the_nearest():
    (x, y), _, (z, _) = clouds(noise=2.5)
    assert torch.equal(nearest_class(x.double(), y, z.double(), temperature=1e-5), nearest_class(x.double(), y, z.double(), k=1))


def test_uniformity_and_distance_in_closed_form():
    assert math.isclose(uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])), -8) and math.isclose(uniformity(torch.eye(5)), -4)
    assert math.isclose(uniformity(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])), math.log((2 * math.exp(-4) + math.exp(-8)) / 3))
    x = torch.randn(333, 7, generator=seeded(0))
    assert math.isclose(uniformity(x), uniformity(3 * x, block=10))
    assert math.isclose(view_distance(x, -x), 4) and view_distance(x, x) == 0 and abs(view_distance(x, x.roll(1, 0)) - 2) < 0.1


@settings(max_examples=20, deadline=None)
@given(f=st.integers(1, 8), rank=st.integers(1, 8), seed=st.integers(0, 100))
def test_effective_rank_counts_directions(f, rank, seed):
    rank, g = min(f, rank), seeded(seed)
    basis = torch.linalg.qr(torch.randn(f, f, generator=g).double()).Q[:rank]
    even = torch.cat([basis, -basis])  # as much in each direction
    assert math.isclose(effective_rank(even + 5), rank, rel_tol=1e-9) and math.isclose(effective_rank(0.1 * even), rank, rel_tol=1e-9)


def test_collapse_is_seen():
    assert effective_rank(torch.full((8, 3), 0.3)) == 0 and abs(uniformity(torch.full((8, 3), 0.3))) < 1e-9


NAN, (GOOD, _, _) = torch.tensor([[math.nan, 1.0]]), clouds(n=30)


@pytest.mark.parametrize("message, call", [
    ("train: 1 of 1 rows hold NaN", lambda: check_split("train", (NAN, torch.zeros(1, dtype=torch.long)))),
    ("train: got labels torch.float32", lambda: check_split("train", (torch.ones(2, 2), torch.ones(2)))),
    (r"train: got labels torch.int64 \[3\], wanted whole numbers ≥ 0 \[2\]", lambda: check_split("train", (torch.ones(2, 2), torch.zeros(3, dtype=torch.long)))),
    ("train: got features torch.int64", lambda: check_split("train", (torch.ones(2, 2).long(), torch.zeros(2, dtype=torch.long)))),
    (r"test: got features torch.float32 \[10, 5\], wanted floating \[n,6\]", lambda: chosen_probe(GOOD, GOOD, (GOOD[0][:, :5], GOOD[1]))),
    ("valid: got label 9, wanted those of train, 0 to 3", lambda: chosen_probe(GOOD, (GOOD[0], GOOD[1] * 0 + 9), GOOD)),
    ("epochs: got 0", lambda: chosen_probe(GOOD, GOOD, GOOD, epochs=0)), ("k: got 0", lambda: nearest_class(*GOOD, GOOD[0], k=0)),
    ("temperature: got 0", lambda: nearest_class(*GOOD, GOOD[0], temperature=0)),
    (r"x: got features torch.float32 \[10, 2\]", lambda: nearest_class(*GOOD, GOOD[0][:, :2])),
    (r"b: got shape \[3, 6\], wanted \[10, 6\]", lambda: view_distance(GOOD[0], GOOD[0][:3])),
    (r"x: got shape \[1, 2\], wanted \[n,f\], n ≥ 2", lambda: uniformity(torch.ones(1, 2))), ("x: got shape", lambda: effective_rank(torch.ones(1, 2))),
    ("x: 1 of 1 rows", lambda: effective_rank(NAN)), ("x: 1 of 1 rows", lambda: uniformity(NAN)), ("a: 1 of 1 rows", lambda: view_distance(NAN, NAN)),
])
def test_what_cannot_be_measured_is_refused(message, call):
    with pytest.raises(ValueError, match=message): call()
