"""Figures on cases with a known answer, and refusals where there is none."""
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import sqrtm

from lzn_nb.data import load_data
from lzn_nb.metrics import (Gaussianity, Judge, accuracy, class_entropy, frechet_distance, gaussianity, ks_distance, linear_probe,
                            reconstruction_error)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


# -- accuracy, entropy, reconstruction --------------------------------------------------------
def test_accuracy():
    assert accuracy(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 0])) == pytest.approx(2 / 3)
    assert accuracy(torch.tensor([1], dtype=torch.int32), torch.tensor([1])) == 1


@pytest.mark.parametrize("predicted, labels", [((2,), (3,)), ((0,), (0,)), ((3, 1), (3,)), ((3,), (1,)), ((), ())])
def test_accuracy_refuses_other_shapes(predicted, labels):
    with pytest.raises(ValueError, match="predicted: got shape"): accuracy(torch.zeros(predicted), torch.zeros(labels))


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_entropy_of_equal_classes(classes):
    assert class_entropy(torch.arange(classes * 7) % classes, classes) == pytest.approx(math.log2(classes))


def test_entropy_by_hand():
    assert class_entropy(torch.tensor([0, 0, 1, 2]), 5) == pytest.approx(1.5)  # 1/2, 1/4, 1/4
    assert math.copysign(1, class_entropy(torch.tensor([4, 4]), 5)) == 1 and class_entropy(torch.tensor([4]), 5) == 0


@pytest.mark.parametrize("labels", [[], [0, 5], [-1, 2], [[0], [1]]])
def test_entropy_refuses(labels):
    with pytest.raises(ValueError, match="labels: got"): class_entropy(torch.tensor(labels, dtype=torch.long), 5)


def test_reconstruction_error_is_a_mean_of_distances():
    x = torch.zeros(2, 3, 2, 2)
    y = x.clone()
    y[0, :, 0, 0] = torch.tensor([2.0, 3.0, 6.0])  # length 7; values beyond [-1, 1] count as they are
    assert reconstruction_error(x, y) == pytest.approx(3.5)
    for other, words in ((y[:1], "got shape"), (y * math.nan, "NaN"), (x[:, :1], "got shape")):
        with pytest.raises(ValueError, match=f"reconstructed: .*{words}"): reconstruction_error(x, other)


# -- linear probe -----------------------------------------------------------------------------
def probe(x, y, **change):
    arguments = dict(train=x[::2], train_labels=y[::2], test=x[1::2], test_labels=y[1::2]) | change
    return linear_probe(**arguments)


def test_probe_on_separable_and_inseparable_features():
    y = torch.arange(900) // 2 % 3
    apart, mixed = normal(900, 5) + 20 * torch.eye(5)[y], normal(900, 5)
    assert probe(apart, y) == 1
    assert abs(probe(mixed, y) - 1 / 3) < 0.09


def test_probe_does_not_care_about_units_or_constants():
    y = torch.arange(600) // 2 % 2
    x = normal(600, 3) + 1.5 * y[:, None]
    changed = torch.cat([x * torch.tensor([1e4, 1.0, 1e-4]) + 5, torch.full((600, 1), 7.0)], 1)
    assert 0.8 < probe(x, y) == probe(changed, y)
    assert probe(x.float(), y) == pytest.approx(probe(x, y), abs=0.01)


def test_probe_scores_the_test_split_only():
    y = torch.arange(40) // 2 % 2
    x = normal(40, 60)  # more coordinates than samples: the training split is learned by heart
    assert linear_probe(x[::2], y[::2], x[::2], y[::2]) == 1 > probe(x, y)


@pytest.mark.parametrize("change, words", [
    ({"train": torch.full((20, 2), math.nan)}, "train: 20 of 20 rows"), ({"test": torch.full((20, 2), math.inf)}, "test: 20 of 20"),
    ({"train": torch.zeros(20)}, "train: got shape"), ({"test": torch.zeros(20, 3)}, "test: got width 3"),
    ({"train_labels": torch.zeros(19)}, "train_labels: got 19"), ({"train_labels": torch.zeros(20)}, "train_labels: got one class")])
def test_probe_refuses(change, words):
    with pytest.raises(ValueError, match=words): probe(normal(40, 2), torch.arange(40) // 2 % 2, **change)


# -- Fréchet distance -------------------------------------------------------------------------
def with_moments(mean, cov, n=50, seed=0):
    "Points `[n,d]` whose mean and unbiased covariance are exactly these."
    x = normal(n, len(mean), seed=seed)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.atleast_2d(x.T.cov())), x.T, upper=False).T
    return white @ torch.linalg.cholesky(cov).T + mean


def test_frechet_in_one_dimension():
    a, b = (with_moments(torch.tensor([m]).double(), torch.tensor([[v]]).double()) for m, v in ((1.0, 4.0), (-2.0, 0.25)))
    assert frechet_distance(a, b) == pytest.approx(9 + 1.5**2)


@pytest.mark.parametrize("seed", range(5))
def test_frechet_between_gaussians(seed):
    means, factors = normal(2, 4, seed=seed), normal(2, 4, 4, seed=seed + 10)
    covs = factors @ factors.mT + 0.1 * torch.eye(4)
    a, b = (with_moments(means[k], covs[k], seed=seed + k) for k in (0, 1))
    root = sqrtm((covs[0] @ covs[1]).numpy())
    expected = float((means[0] - means[1]).square().sum() + covs[0].trace() + covs[1].trace()) - 2 * np.trace(root).real
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-6)
    turn = torch.linalg.qr(normal(4, 4, seed=seed + 20))[0]
    assert frechet_distance(a @ turn + 3, b @ turn + 3) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("n, d, scale", [(30, 5, 1.0), (10, 64, 1.0), (500, 64, 1e-4), (500, 64, 1e4), (2, 1, 1.0)])
def test_frechet_of_a_set_with_itself_is_zero(n, d, scale):
    x = scale * normal(n, d)
    x[:, 0] = 3 * scale if d > 1 else x[:, 0]  # a dead unit
    assert 0 <= frechet_distance(x, x) <= 1e-9 * scale**2 * d
    assert 0 <= frechet_distance(x.float(), x.flip(0).float()) <= 1e-9 * scale**2 * d


def test_frechet_of_two_points():
    dead = torch.zeros(5, 3)
    assert frechet_distance(dead, dead + torch.tensor([1.0, 2.0, 2.0])) == pytest.approx(9)


@pytest.mark.parametrize("a, b, words", [
    ((1, 3), (5, 3), "a: got shape"), ((5, 3), (1, 3), "b: got shape"), ((5, 3), (5, 2), "b: got width 2"), ((5,), (5, 2), "a: got shape"), ((5, 0), (5, 0), "a: got")])
def test_frechet_refuses_shapes(a, b, words):
    with pytest.raises(ValueError, match=words): frechet_distance(torch.ones(a), torch.ones(b))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_frechet_refuses_numbers(value):
    x = normal(10, 2)
    y = x.clone(); y[3, 1] = value
    with pytest.raises(ValueError, match="b: 1 of 10 rows"): frechet_distance(x, y)


# -- judge ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


@pytest.fixture(scope="module")
def judge(digits):
    return Judge(*digits.train.tensors())


def test_judge_reads_unseen_digits(digits, judge):
    for split in (digits.valid, digits.test):
        images, labels = split.tensors()
        assert accuracy(judge.labels(images), labels) >= 0.97


def test_features_are_the_hidden_layer(digits, judge):
    "The class probabilities of scikit-learn's network follow from them by its last layer."
    images, labels = digits.valid.tensors()
    features = judge.features(images)
    assert features.shape == (len(images), 64) and features.min() >= 0
    logits = features.numpy() @ judge.network.coefs_[1] + judge.network.intercepts_[1]
    assert np.allclose(torch.as_tensor(logits).softmax(1), judge.network.predict_proba(images.flatten(1).double().numpy()), atol=1e-9)
    assert accuracy(torch.as_tensor(logits).argmax(1), labels) > 0.95


def test_judge_is_a_function_of_the_training_images(digits, judge):
    images, _ = digits.valid.tensors()
    np.random.seed(1); torch.manual_seed(1)
    again = Judge(*digits.train.tensors())
    assert torch.equal(again.features(images), judge.features(images)) and torch.equal(again.labels(images), judge.labels(images))


def test_judge_sees_what_a_viewer_sees(digits, judge):
    "Overshoot is clipped, where the pixels are on the device and whether they carry gradients is of no account."
    images, labels = digits.valid.tensors()
    loud = torch.where(images > 0.99, images + 3, images).requires_grad_()
    assert torch.equal(judge.features(loud), judge.features(images)) and torch.equal(judge.labels(loud), judge.labels(images))


def test_judge_refuses_nan(digits, judge):
    images, labels = digits.valid.tensors()
    images[2, 0, 3, 3] = math.nan
    for call in (judge.labels, judge.features, lambda x: Judge(x, labels)):
        with pytest.raises(ValueError, match="images: 1 of 180 rows"): call(images)


# -- Gaussianity ------------------------------------------------------------------------------
@pytest.mark.parametrize("n, q", [(8, 1), (50, 3), (359, 32)])
def test_kolmogorov_smirnov_agrees_with_scipy(n, q):
    z = 1.2 * normal(n, q) + 0.1
    expected = [stats.kstest(column, "norm") for column in z.T.numpy()]
    assert np.allclose(ks_distance(z), [test.statistic for test in expected], atol=1e-12)
    found = gaussianity(z)
    assert found.rejected == pytest.approx(np.mean([test.pvalue < 0.05 for test in expected]))
    assert found.p_value == pytest.approx(1 - (1 - min(test.pvalue for test in expected)) ** q, rel=1e-6)


def test_figures_by_hand():
    z = torch.tensor([[1.0, 1.0], [-1.0, -1.0]]).repeat(8, 1) + 0.5
    found = gaussianity(z)
    assert found.mean == pytest.approx(0.5 * 16**0.5) and found.variance == pytest.approx(16 / 15)  # √(2 · 0.25) · √(16/2)
    assert found.correlation == pytest.approx(15**0.5)  # r = 1
    assert found.p_mean == pytest.approx(math.exp(-4)) and not found.passed  # χ² with 2 degrees of freedom beyond 8


def test_figures_of_true_draws_are_near_one():
    found = [gaussianity(normal(200, 16, seed=seed)) for seed in range(40)]
    for name, tolerance in (("mean", 0.06), ("variance", 0.01), ("correlation", 0.03)):
        assert np.mean([getattr(g, name) for g in found]) == pytest.approx(1, abs=tolerance), name
    assert np.mean([g.rejected for g in found]) == pytest.approx(0.05, abs=0.02)
    for name in ("p_mean", "p_variance", "p_correlation", "p_value", "p_one_variance"):  # uniform if the distributions are right
        assert np.mean([getattr(g, name) for g in found]) == pytest.approx(0.5, abs=0.16), name


@pytest.mark.parametrize("n, q", [(10, 2), (200, 1), (359, 32), (150, 300)])
def test_few_false_alarms(n, q):
    assert sum(not gaussianity(normal(n, q, seed=seed)).passed for seed in range(200)) <= 9  # 1 % expected; 4.5 % for one in 10,000 suites


@pytest.mark.parametrize("change", [
    lambda z: z + 0.1, lambda z: 1.06 * z, lambda z: 0.94 * z, lambda z: 0.95**0.5 * z + 0.05**0.5 * normal(len(z), 1, seed=99),
    lambda z: torch.cat([z[:, :-1], z[:, :1]], 1), lambda z: torch.cat([z[:, :-1], 1.5 * z[:, -1:]], 1), lambda z: torch.cat([1.3 * z[:, :16], 0.5 * z[:, 16:]], 1), lambda z: z.index_fill(1, torch.tensor(3), 0.0),
    lambda z: torch.special.ndtr(z) * 12**0.5 - 3**0.5, lambda z: z.sign() * z.abs().clamp(0.5), lambda z: z * 0, lambda z: z.clamp(-1.2, 1.2) * 1.2],
    ids=["shifted", "wider", "narrower", "correlated", "a coordinate twice", "one coordinate wide", "half wide, half narrow", "one dead", "uniform", "a hole", "collapsed", "cut"])
def test_departures_are_noticed(change):
    assert not any(gaussianity(change(normal(359, 32, seed=seed))).passed for seed in range(5))


def test_a_dead_coordinate_leaves_the_other_figures_whole():
    z = normal(359, 32)
    dead = gaussianity(z.index_fill(1, torch.tensor(3), 0.0))
    assert all(math.isfinite(value) for value in vars(dead).values()) and dead.p_one_variance == 0
    assert dead.correlation == pytest.approx(gaussianity(z).correlation, abs=0.1)


def test_tiny_error_of_scale_passes_in_large_sets():
    z = normal(40_000, 8)
    z = (z - z.mean(0)) / z.std(0)
    assert gaussianity(0.995 * z).p_variance < 1e-3 and gaussianity(0.995 * z).passed and not gaussianity(0.98 * z).passed


def test_reading_is_the_same_from_float32_with_gradients():
    z = normal(100, 4)
    assert gaussianity(z.float().requires_grad_()).p_value == pytest.approx(gaussianity(z).p_value, rel=1e-3)
    assert isinstance(gaussianity(z), Gaussianity)


@pytest.mark.parametrize("z, words", [(torch.zeros(7, 2), "z: got shape"), (torch.zeros(10), "z: got shape"), (torch.zeros(10, 0), "z: got shape"),
                                      (torch.full((9, 2), math.nan), "z: 9 of 9 rows"), (torch.full((9, 2), -math.inf), "z: 9 of 9")])
def test_gaussianity_refuses(z, words):
    with pytest.raises(ValueError, match=words): gaussianity(z)
