"""Figures on cases with a known answer, and refusals where there is none."""
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import sqrtm

from lzn_nb.data import load_data
from lzn_nb.metrics import (Gaussianity, Judge, accuracy, as_seen, class_entropy, clip_distance, compare_images, frechet_distance, gaussianity, inception_score,
                            inside_share, kernel_distance, ks_distance, linear_probe, precision_recall,
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
    return Judge(*digits.train.tensors(), cache=None)


def test_judge_reads_unseen_digits(digits, judge):
    for split in (digits.valid, digits.test):
        images, labels = split.tensors()
        assert accuracy(judge.labels(images), labels) >= 0.97


def test_judge_tells_maps_features_and_logits(digits, judge):
    images, labels = digits.valid.tensors()
    maps, features, logits = judge.look(images)
    assert maps.shape == (len(images), 7 * 4 * 4) and features.shape == (len(images), 64) and logits.shape == (len(images), 10)
    assert torch.equal(judge.features(images), features) and torch.equal(judge.labels(images), logits.argmax(1))
    assert torch.allclose(judge.network.name(features), logits, atol=1e-6)


def test_maps_are_the_first_seven_channels_of_the_middle_size(judge):
    "Made plain for once: the middle size gives its channel's number, everywhere."
    from copy import deepcopy
    plain = deepcopy(judge)
    plain.network.levels[1].register_forward_hook(lambda module, given, out: torch.arange(1.0, out.shape[1] + 1)[:, None, None].expand_as(out))
    assert torch.equal(plain.look(torch.zeros(2, 1, 8, 8))[0], torch.arange(1.0, 8).repeat_interleave(4 * 4).expand(2, -1))


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 7, 7), (3, 28, 28), (1, 9, 13)])
def test_judge_of_any_images(shape):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(40, *shape, generator=generator) * 2 - 1, torch.arange(40) % 3
    with torch.no_grad(): judge = Judge(images, labels, cache=None, updates=3)  # whoever calls it
    assert judge.look(images)[2].shape == (40, 3) and judge.features(images).isfinite().all()


def test_judge_of_images_of_one_kind(digits):
    "Where there is one class, it learns to tell quarter turns; the description says so."
    images = digits.train.tensors()[0]
    judge = Judge(images, torch.full((len(images),), 3), cache=None)
    unseen = digits.valid.tensors()[0]
    turned = [float((judge.labels(unseen.rot90(k, (2, 3))) == k).float().mean()) for k in range(4)]
    assert min(turned) > 0.7 and "quarter turns" in judge.description, turned
    with pytest.raises(ValueError, match=r"images: got \[8, 6\] pixels, wanted squares"): Judge(images[:, :, :, :6], torch.zeros(len(images), dtype=torch.long), cache=None)


def test_judge_sees_large_images_from_afar():
    images = torch.rand(12, 3, 100, 50, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert as_seen(images).shape == (12, 3, 32, 16) and as_seen(images[..., :30, :30]).equal(images[..., :30, :30])
    judge = Judge(images, torch.arange(12) % 2, cache=None, updates=2)
    maps, features, logits = judge.look(images)
    assert maps.shape[0] == 12 and features.shape == (12, 64) and logits.shape == (12, 2)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 40, 20)])
def test_many_images_are_looked_at_by_parts(judge, monkeypatch, shape):
    "No copy of all is made to look for NaN, to clip, or to see large ones from afar; what is seen and refused is the same."
    images = 3 * torch.randn(1203, *shape, generator=generator()).requires_grad_()
    expected = torch.cat([as_seen(images[k:k + 1]) for k in range(0, 1203, 100)])
    sizes, called = [], {name: getattr(torch.Tensor, name) for name in ("isfinite", "clamp", "double", "float")}
    for name, call in called.items(): monkeypatch.setattr(torch.Tensor, name, lambda x, *a, call=call, **k: (sizes.append(len(x) if x.ndim > 1 else 0), call(x, *a, **k))[1])
    seen = as_seen(images)
    monkeypatch.undo()
    assert 0 < max(sizes) <= 500 and torch.equal(seen[::100], expected) and seen.shape == (1203, *((1, 32, 16) if shape[1] > 32 else shape)) and not seen.requires_grad
    assert torch.equal(seen.abs().amax() <= 1, torch.tensor(True))
    with torch.no_grad(): images[3, 0, 1, 1], images[600, 0, 0, 0], images[600, 0, 1, 0], images[1202, 0, 3, 3] = math.nan, math.inf, math.nan, -math.inf
    for call in (as_seen, judge.look):
        with pytest.raises(ValueError, match="^images: 3 of 1203 rows hold NaN or infinity, wanted finite numbers$"): call(images)


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (2, 1, 0, 8), (2, 8, 8), (2, 64), (8,), ()])
def test_judge_refuses_other_shapes(judge, shape):
    with pytest.raises(ValueError, match=r"images: got shape \["): judge.look(torch.zeros(shape))


def test_judge_is_kept_and_found_again(tmp_path, monkeypatch):
    from lzn_nb import metrics
    images, labels = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    first = Judge(images, labels, tmp_path, 20)
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    monkeypatch.setattr(metrics, "fit_judge", None)  # would fail if it were trained again
    assert torch.equal(Judge(images, labels, tmp_path, 20).features(images), first.features(images))
    monkeypatch.undo()
    Judge(images, 1 - labels, tmp_path, 20); Judge(images + 0.01, labels, tmp_path, 20)
    assert len(list(tmp_path.iterdir())) == 3  # other labels or images, another judge
    for file in tmp_path.iterdir(): file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="cache: .* is damaged"): again = Judge(images, labels, tmp_path, 20)
    assert torch.equal(again.features(images), first.features(images))
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cache: cannot keep"): Judge(images, labels, tmp_path / "file", 1)


def test_judge_is_a_function_of_the_training_images(digits, judge):
    images, _ = digits.valid.tensors()
    np.random.seed(1); torch.manual_seed(1)
    again = Judge(*digits.train.tensors(), cache=None)
    assert torch.equal(again.features(images), judge.features(images)) and torch.equal(again.labels(images), judge.labels(images))


def test_judge_sees_what_a_viewer_sees(digits, judge):
    "Overshoot is clipped, where the pixels are on the device and whether they carry gradients is of no account."
    images, labels = digits.valid.tensors()
    loud = torch.where(images > 0.99, images + 3, images).requires_grad_()
    assert torch.equal(judge.features(loud), judge.features(images)) and torch.equal(judge.labels(loud), judge.labels(images))


def test_judge_refuses_nan(digits, judge):
    images, labels = digits.valid.tensors()
    images[2, 0, 3, 3] = math.nan
    for call in (judge.labels, judge.features, lambda x: Judge(x, labels, None)):
        with pytest.raises(ValueError, match="images: 1 of 180 rows"): call(images)


# -- distances, scores, balls -------------------------------------------------------------------
def test_kernel_distance_is_that_of_clean_fid_on_all_pairs():
    fid = pytest.importorskip("cleanfid.fid")
    a, b = normal(60, 5), normal(60, 5, seed=1) + 0.5
    assert kernel_distance(a, b, block=7) == pytest.approx(fid.kernel_distance(a.numpy(), b.numpy(), num_subsets=1, max_subset_size=60), rel=1e-9)


def test_figures_are_those_of_torchmetrics():
    "KID, IS and FID of another code, through an extractor that hands on the features."
    image = pytest.importorskip("torchmetrics.image")
    class HandOn(torch.nn.Module):
        num_features = 6
        def forward(self, x): return x.flatten(1).double()
    a, b = normal(80, 6), 1.3 * normal(80, 6, seed=1) + 0.4
    as_images = lambda x: x[:, :, None, None]
    kid = image.kid.KernelInceptionDistance(feature=HandOn(), subsets=1, subset_size=80)
    fid = image.fid.FrechetInceptionDistance(feature=HandOn(), input_img_size=(6, 1, 1)).set_dtype(torch.float64)
    for metric in (kid, fid):
        metric.update(as_images(a), real=True); metric.update(as_images(b), real=False)
    assert float(kid.compute()[0]) == pytest.approx(kernel_distance(a, b), rel=1e-4, abs=1e-5)
    assert float(fid.compute()) == pytest.approx(frechet_distance(a, b), rel=1e-5)
    score = image.inception.InceptionScore(feature=HandOn(), splits=1)
    score.update(as_images(a))
    assert float(score.compute()[0]) == pytest.approx(inception_score(a), rel=1e-5)


def test_identical_sets_are_at_distance_nothing():
    a = normal(50, 4)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9) and clip_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert precision_recall(a, a) == (1, 1)


def test_kernel_distance_of_a_set_with_itself():
    "It is unbiased, so identical sets are a little below 0: 2/n times the mean over different points less the mean over a point and itself."
    assert kernel_distance(x := torch.tensor([[0.0], [1.0]]), x) == pytest.approx(2 / 2 * (1 - (1 + 8) / 2))
    a = normal(50, 4)
    kernel = [[(sum(p * q for p, q in zip(x, y)) / 4 + 1) ** 3 for y in a.tolist()] for x in a.tolist()]
    same = sum(kernel[k][k] for k in range(50))
    expected = 2 / 50 * ((sum(map(sum, kernel)) - same) / (50 * 49) - same / 50)
    assert expected < 0 and kernel_distance(a, a) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_change_nothing(block):
    a, b = normal(23, 3), normal(31, 3, seed=1) + 1
    assert kernel_distance(a, b, block) == pytest.approx(kernel_distance(a, b), rel=1e-12)
    assert clip_distance(a, b, block=block) == pytest.approx(clip_distance(a, b), rel=1e-12)
    assert inside_share(a, b, 3, block) == inside_share(a, b, 3)


def test_balls_by_brute_force():
    drawn, real = normal(40, 2), 0.7 * normal(50, 2, seed=1) + 0.3
    def share(points, centres):
        radii = [sorted(math.dist(c, o) for o in centres.tolist())[3] for c in centres.tolist()]
        return sum(any(math.dist(p, c) <= r for c, r in zip(centres.tolist(), radii)) for p in points.tolist()) / len(points)
    assert precision_recall(drawn, real) == pytest.approx((share(drawn, real), share(real, drawn)))
    with pytest.raises(ValueError, match="k: got 3 for 3 images"): precision_recall(drawn, real[:3])


def test_inception_score_averages_over_splits():
    logits = normal(30, 4)
    parts = [inception_score(logits[k:k + 10]) for k in (0, 10, 20)]
    assert inception_score(logits, split=10) == pytest.approx(sum(parts) / 3)


def test_inception_score_is_averaged_over_splits_of_5000():
    "Sure answers: a split of one class scores 1, one with as many of two classes 2; the last ten images are a split of their own."
    kinds = torch.tensor([0] * 5000 + [1, 2] * 2500 + [3] * 10)
    assert inception_score(1000.0 * torch.nn.functional.one_hot(kinds)) == pytest.approx((1 + 2 + 1) / 3)


@pytest.mark.parametrize("split", [0, -1, 2.5, True, None, "2"])
def test_sizes_of_parts_are_whole_numbers(split):
    a, b = normal(9, 3), normal(8, 3)
    wanted = f"got {split!r}, wanted an integer ≥ 1"
    with pytest.raises(ValueError, match=f"split: {wanted}"): inception_score(a, split)
    for measure in (kernel_distance, clip_distance, lambda a, b, block: inside_share(a, b, block=block)):
        with pytest.raises(ValueError, match=f"block: {wanted}"): measure(a, b, block=split)
    for measure in (inside_share, precision_recall):
        with pytest.raises(ValueError, match=f"k: {wanted}"): measure(a, b, k=split)
    assert inside_share(a, b, np.int64(2)) == inside_share(a, b, 2)


@pytest.mark.parametrize("x, kind", [(np.ones((9, 3)), "ndarray"), ([[1.0]] * 9, "list"), (None, "NoneType")])
def test_what_is_no_tensor_is_refused(x, kind, judge):
    a, wanted = normal(9, 3), f"got {kind}, wanted a tensor"
    for measure in (frechet_distance, kernel_distance, clip_distance):
        with pytest.raises(ValueError, match=f"^a: {wanted}"): measure(x, a)
        with pytest.raises(ValueError, match=f"^b: {wanted}"): measure(a, x)
    for name, call in {"drawn": lambda: precision_recall(x, a), "real": lambda: precision_recall(a, x), "logits": lambda: inception_score(x), "z": lambda: gaussianity(x),
                       "train": lambda: linear_probe(x, torch.arange(9), a, torch.arange(9)), "images": lambda: judge.labels(x)}.items():
        with pytest.raises(ValueError, match=f"^{name}: {wanted}"): call()


def test_clip_distance_by_hand():
    "Two directions at a right angle are at distance √2; the kernel has width 10 and the figure is a thousandfold."
    east, north = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    assert clip_distance(east, north) == pytest.approx(1000 * (2 - 2 * math.exp(-2 / (2 * 10**2))), rel=1e-9) == pytest.approx(19.9003, abs=1e-4)
    assert clip_distance(east, -east) == pytest.approx(1000 * (2 - 2 * math.exp(-4 / 200)))
    # with a point between: (1 + 1 + 2e)/4 + 1 - 2 (1 + e)/2 with e = exp(-1/100)
    both, e = torch.cat([east, north]), math.exp(-1 / 100)
    assert clip_distance(both, east) == pytest.approx(1000 * ((2 + 2 * e) / 4 + 1 - (1 + e)), rel=1e-9)


def test_clip_distance_knows_directions_only():
    a, b = normal(20, 5), normal(20, 5, seed=1)
    assert clip_distance(3 * a, b) == pytest.approx(clip_distance(a, b)) == pytest.approx(clip_distance(b, a))


@pytest.mark.parametrize("measure", [kernel_distance, clip_distance, precision_recall])
def test_features_that_cannot_be_compared_are_refused(measure):
    with pytest.raises(ValueError, match="got width 3, wanted 4"): measure(*((normal(10, 4), normal(10, 3)) if measure is not precision_recall else (normal(10, 3), normal(10, 4))))
    with pytest.raises(ValueError, match="rows hold NaN"): measure(normal(10, 4), normal(10, 4) / 0)


@pytest.mark.parametrize("call, what", [
    (lambda images, labels: Judge(images, labels.float(), cache=None), r"labels: got torch.float32 \[20\], wanted whole numbers"), (lambda images, labels: Judge(images, labels - 5, cache=None), "labels: got"),
    (lambda images, labels: Judge(images, labels[:9], cache=None), r"labels: got torch.int64 \[9\], .*one for each of 20 images"), (lambda images, labels: Judge(images, labels, cache=None, updates=0), "updates: got 0"),
    (lambda images, labels: compare_images(images.expand(-1, 3, -1, -1), images, Judge(images, labels, cache=None, updates=1)), r"images: got shape \[20, 3, 8, 8\], wanted \[n,1,h,w\]")])
def test_what_a_judge_cannot_take_is_named(digits, call, what):
    with pytest.raises(ValueError, match=what): call(digits.train.images[:20], torch.arange(20) % 4)


def test_comparison_says_by_what_and_how(digits, judge):
    drawn, real = digits.valid.tensors()[0], digits.train.tensors()[0]
    results = compare_images(drawn, real, judge, evaluations=8)
    assert [result.name for result in results] == [f"proxy-{name}" for name in ("FID", "sFID", "KID", "IS", "precision", "recall", "CMMD")]
    assert results[-1].value == clip_distance(judge.features(drawn), judge.features(real))
    judge_without_name = type("Named", (), {"name": "", "description": "other features", "look": judge.look})()
    assert "CMMD" not in [result.name for result in compare_images(drawn, real, judge_without_name)]  # that is CLIP's
    assert results[0].value == frechet_distance(judge.features(drawn), judge.features(real))
    assert str(results[0]).startswith("| proxy-FID | ") and "drawn 180, real 1,258" in str(results[0]) and "evaluations 8" in str(results[0])


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
