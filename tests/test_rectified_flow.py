"""Rectified flow: the published sampler's numbers, a loss that is what it says, and times and shapes that cannot be mistaken."""
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import solve_ivp

from lzn_nb.rectified_flow import curvature, euler, euler_steps, interpolate, invert, line_end, line_start, rectified_flow_loss, rk45, sample

GOLDENS = np.load(Path(__file__).parent / "goldens/samplers.npz")
EPS = float(GOLDENS["eps"])


@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(99)      # another stream than the generators below: equal seeds would correlate data and noise


# -- published numbers ------------------------------------------------------------------------
def golden_velocity(x, t, latent=None, label=None):
    "The analytic velocity that stands in for a decoder in the goldens."
    t = t[:, None, None, None]
    v = (1.5 * t - 0.8) * x + GOLDENS["k"].item() * torch.sin(2 * x + 3 * t)
    if latent is not None: v = v + 0.25 * latent.mean(1)[:, None, None, None]
    if label is not None: v = v + 0.05 * label.argmax(1).to(x)[:, None, None, None]
    return v


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", GOLDENS["euler_steps"].tolist())
@pytest.mark.parametrize("condition", GOLDENS["conditions"].tolist())
def test_published_euler(condition, steps, dtype):
    given = {name: torch.tensor(GOLDENS[name], dtype=dtype) for name in ("latent", "label") if name in condition}
    for function, start, name in ((sample, "x0", "sample"), (invert, "x1", "inverse")):
        found = function(golden_velocity, torch.tensor(GOLDENS[start], dtype=dtype), steps=steps, **given).double().numpy()
        wanted = GOLDENS[f"euler_{condition}_N{steps}__{name}_f64"]
        assert np.abs(found - wanted).max() <= (1e-5 if dtype == torch.float32 else 1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("condition", GOLDENS["conditions"].tolist())
def test_many_steps_come_near_the_true_path(condition):
    given = {name: torch.tensor(GOLDENS[name], dtype=torch.float64) for name in ("latent", "label") if name in condition}
    x0, truth = torch.tensor(GOLDENS["x0"], dtype=torch.float64), GOLDENS[f"rk45_{condition}__sample_truth_f64"]
    errors = [np.abs(sample(golden_velocity, x0, steps=n, **given).numpy() - truth).max() for n in (100, 200)]
    assert errors[1] < 0.02 and errors[0] / errors[1] == pytest.approx(2, rel=0.1)


def golden_given(condition, dtype=torch.float64): return {name: torch.tensor(GOLDENS[name], dtype=dtype) for name in ("latent", "label") if name in condition}


ENDS = [(sample, "x0", "sample", (EPS, 1.0)), (invert, "x1", "inverse_x0", (1.0, EPS))]


@pytest.mark.parametrize(("function", "start", "name", "times"), ENDS)
@pytest.mark.parametrize("condition", GOLDENS["conditions"].tolist())
def test_published_rk45_where_the_batch_is_one_vector(condition, function, start, name, times):
    "As published: one error for the whole batch, the state in double precision, the velocity in single. The stored result, and its number of evaluations."
    given, x, asked = golden_given(condition, torch.float32), torch.tensor(GOLDENS[start], dtype=torch.float64), []
    def velocity(flat, t):
        asked.append(t)
        return golden_velocity(flat.reshape(x.shape).float(), t.float().expand(len(x)), **given).double().reshape(1, -1)
    end = rk45(velocity, x.reshape(1, -1), *times).reshape(x.shape)
    if function is invert: end = line_start(end, x, EPS)
    assert np.abs(end.numpy() - GOLDENS[f"rk45_{condition}__{name}"]).max() <= 1e-4
    assert abs(len(asked) - int(GOLDENS[f"rk45_{condition}__{name.split('_')[0]}_nfe"])) <= 6


def by_scipy(condition, start, times, dtype):
    "SciPy's RK45 as in the goldens, but with the velocity in `dtype`: the end, and how often the velocity was asked for."
    given, x = golden_given(condition, dtype), GOLDENS[start]
    velocity = lambda t, flat: golden_velocity(torch.tensor(flat.reshape(x.shape), dtype=dtype), torch.full((len(x),), t, dtype=dtype), **given).double().numpy().ravel()
    found = solve_ivp(velocity, times, x.astype(float).ravel(), method="RK45", rtol=1e-5, atol=1e-5)
    return torch.tensor(found.y[:, -1].reshape(x.shape)), found.nfev


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("function", "start", "name", "times"), ENDS)
@pytest.mark.parametrize("condition", GOLDENS["conditions"].tolist())
def test_rk45_of_each_image_is_as_near_to_the_truth_as_the_published_one(condition, function, start, name, times, dtype):
    "With an error for each image, at least as near as one for all of them at once, SciPy's in the same precision, which in single precision is the stored result; for at most 6 evaluations more."
    counts, x = [], torch.tensor(GOLDENS[start], dtype=dtype)
    found = function(golden_velocity, x, steps="rk45", tell=lambda n, images: counts.append(n), **golden_given(condition, dtype)).double()
    scipy, evaluations = by_scipy(condition, start, times, dtype)
    if function is invert: scipy = line_start(scipy, x.double(), EPS)
    published, truth = (torch.tensor(GOLDENS[f"rk45_{condition}__{name}{suffix}"]) for suffix in ("", "_truth_f64"))
    if dtype == torch.float32: assert (scipy - published).abs().max() < 1e-5 and evaluations == int(GOLDENS[f"rk45_{condition}__{name.split('_')[0]}_nfe"])
    assert (found - truth).abs().max() <= (scipy - truth).abs().max() <= 4e-4 and abs(counts[0] - evaluations) <= 6


@pytest.mark.parametrize("condition", GOLDENS["conditions"].tolist())
def test_rk45_and_back(condition):
    given = golden_given(condition, torch.float32)
    noise = invert(golden_velocity, torch.tensor(GOLDENS["x1"]).float(), steps="rk45", **given)
    back = sample(golden_velocity, noise, steps="rk45", **given).double().numpy()
    assert np.linalg.norm((back - GOLDENS["x1"]).reshape(len(back), -1), axis=1).mean() <= 1.2 * float(GOLDENS[f"rk45_{condition}__roundtrip_l2_mean"])


@pytest.mark.parametrize("condition", GOLDENS["conditions"].tolist())
def test_published_predictions_on_the_way(condition):
    steps = min(GOLDENS["euler_steps"].tolist())
    given, eps = golden_given(condition), float(GOLDENS["eps"])
    velocity, (x0, x1) = lambda x, t: golden_velocity(x, t, **given), (torch.tensor(GOLDENS[name], dtype=torch.float64) for name in ("x0", "x1"))
    ends = [line_end(x, x0, t) for t, x, _ in euler_steps(velocity, x0, eps, 1.0, steps)]
    starts = [line_start(x, x1, t) for t, x, _ in euler_steps(velocity, x1, 1.0, eps, steps)]
    for found, name in ((ends, "sample_all_x1"), (starts, "inverse_all_x0")):
        wanted = GOLDENS[f"euler_{condition}_N{steps}__{name}_f64"]
        assert np.abs(torch.stack(found).numpy() - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("tol", [1e-3, 1e-6])
def test_rk45_bounds_the_error_of_each_image(tol):
    "One image with a steep velocity among many easy ones, whose mean would hide it."
    hard = torch.tensor([0.0] * 63 + [8.0], dtype=torch.float64)[:, None]
    end = rk45(lambda x, t: hard * x.cos() * t[:, None], torch.ones(64, 1, dtype=torch.float64), 0.0, 1.0, tol)
    alone = rk45(lambda x, t: 8 * x.cos() * t[:, None], torch.ones(1, 1, dtype=torch.float64), 0.0, 1.0, 1e-11)
    assert (end[:63] == 1).all() and abs(end[63] - alone[0]) < 10 * tol


@pytest.mark.parametrize("steps", [3, "rk45"])
@pytest.mark.parametrize("function", [sample, invert])
def test_chunks_change_nothing_and_are_counted(function, steps):
    given, x, counts = {name: value[:3].repeat(2, 1) for name, value in golden_given("latent_label").items()}, torch.randn(6, 3, 4, 4, dtype=torch.float64), []
    given["latent"] = torch.randn(6, 5, dtype=torch.float64)
    whole = function(golden_velocity, x, steps=steps, **given)
    parts = function(golden_velocity, x, steps=steps, chunk=4, tell=lambda n, images: counts.append((n, images)), **given)
    assert torch.allclose(whole, parts, atol=0 if steps == 3 else 1e-3, rtol=0)
    assert [images for _, images in counts] == [4, 2] and all(n == 3 if steps == 3 else n > 10 for n, _ in counts)


def test_progress_is_shown(capsys):
    sample(lambda x, t: -x, torch.zeros(6, 1, 2, 2), steps=4, chunk=3, progress=True)
    assert "6/6" in capsys.readouterr().err.replace("6.0/6", "6/6")
    sample(lambda x, t: -x, torch.zeros(6, 1, 2, 2), steps="rk45")
    assert not capsys.readouterr().err


@pytest.mark.parametrize("steps", [2, "rk45"])
def test_no_images_give_none(steps): assert sample(lambda x, t: x, torch.zeros(0, 1, 2, 2), steps=steps).shape == (0, 1, 2, 2)


@pytest.mark.parametrize(("options", "message"), [({"steps": "rk4"}, "steps: got 'rk4', wanted an integer ≥ 1, or 'rk45'"), ({"steps": 0}, "steps: got 0"), ({"steps": "rk45", "tol": 0}, "tol: got 0"),
                                                  ({"steps": "rk45", "tol": "fine"}, "tol: got 'fine'"), ({"chunk": 0}, "chunk: got 0"), ({"chunk": 2.5}, "chunk: got 2.5"), ({"t_min": 1}, "t_min: got 1")])
def test_wrong_ways_to_sample_are_refused(options, message):
    for function in (sample, invert):
        with pytest.raises(ValueError, match=message): function(lambda x, t: x, torch.zeros(2, 1, 2, 2), **options)


def test_velocity_that_is_not_finite_is_said():
    with pytest.raises(FloatingPointError, match="velocity: not finite"): sample(lambda x, t: x / 0, torch.ones(2, 1, 2, 2), steps="rk45")


# -- loss -------------------------------------------------------------------------------------
class Recorder:
    "A decoder that remembers what it was asked."
    def __call__(self, x, t, **given):
        self.x, self.t, self.given = x, t, given
        return torch.zeros_like(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_is_the_mean_square_of_what_the_lines_do(dtype):
    x1, decoder = torch.rand(3000, 2, 3, 3, dtype=dtype) * 2 - 1, Recorder()
    loss = rectified_flow_loss(decoder, x1, t_min=0.1, generator=torch.Generator().manual_seed(0))
    t = decoder.t.reshape(-1, 1, 1, 1)
    x0 = (decoder.x - t * x1) / (1 - t)
    assert decoder.x.dtype == loss.dtype == dtype and loss.shape == ()
    few = decoder.t < 0.99       # beyond, dividing by 1 - t loses the digits
    assert stats.kstest(x0[few][:, 0, 0, 0], "norm").pvalue > 0.01
    assert stats.kstest(decoder.t, stats.uniform(0.1, 0.9).cdf).pvalue > 0.01 and 0.1 <= decoder.t.min() and decoder.t.max() < 1
    assert abs(np.corrcoef(decoder.t[few], x0[few].mean((1, 2, 3)))[0, 1]) < 0.06
    assert loss.item() == pytest.approx(1 + x1.square().mean().item(), rel=0.02)      # noise and data are independent


def test_loss_of_one_image_can_be_zero():
    x1 = torch.rand(1, 3, 4, 4, dtype=torch.float64).expand(50, 3, 4, 4)
    exact = lambda x, t: (x1 - x) / (1 - t).reshape(-1, 1, 1, 1)
    assert rectified_flow_loss(exact, x1, generator=torch.Generator().manual_seed(0)) < 1e-20


def test_loss_hands_conditions_on_and_gradients_back():
    latent, label, x1 = torch.randn(8, 5, requires_grad=True), torch.eye(8), torch.zeros(8, 1, 4, 4)
    seen = Recorder()
    rectified_flow_loss(seen, x1, latent=latent, label=label)
    assert seen.given["latent"] is latent and seen.given["label"] is label
    rectified_flow_loss(lambda x, t, latent: latent.sum(1).reshape(-1, 1, 1, 1).expand_as(x), x1, latent=latent).backward()
    assert latent.grad.abs().min() > 0


def test_loss_draws_from_its_generator_alone():
    x1, state = torch.zeros(4, 1, 4, 4), torch.get_rng_state()
    losses = [rectified_flow_loss(Recorder(), x1, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2] and torch.equal(state, torch.get_rng_state())


def test_lines_have_their_ends():
    x0, x1 = torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2)
    assert torch.equal(interpolate(x0, x1, torch.zeros(5)), x0) and torch.equal(interpolate(x0, x1, torch.ones(5)), x1)
    mixed = interpolate(x0, x1, torch.tensor([0.0, 1, 0, 1, 0.5]))
    assert torch.equal(mixed[[0, 2]], x0[[0, 2]]) and torch.equal(mixed[[1, 3]], x1[[1, 3]])


# -- sampler ----------------------------------------------------------------------------------
@pytest.mark.parametrize(("function", "times"), [(sample, [0.2, 0.4, 0.6, 0.8]), (invert, [1.0, 0.8, 0.6, 0.4])])
def test_times_of_the_evaluations(function, times):
    asked = []
    def decoder(x, t, **given): asked.append(t); return torch.zeros_like(x)
    function(decoder, torch.zeros(3, 1, 2, 2, dtype=torch.float64), steps=4, t_min=0.2)
    assert all(t.shape == (3,) and t.dtype == torch.float64 and len(t.unique()) == 1 for t in asked)
    assert [t[0].item() for t in asked] == pytest.approx(times)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_straight_paths_need_no_steps(steps):
    goal = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    straight = lambda x, t: (goal - x) / (1 - t).reshape(-1, 1, 1, 1)
    assert torch.allclose(sample(straight, torch.randn(4, 1, 3, 3).double(), steps=steps), goal, atol=1e-12)
    drift = lambda x, t: goal
    assert torch.allclose(invert(drift, sample(drift, goal, steps=steps), steps=steps), goal, atol=1e-12)


def test_sampling_keeps_no_graph_and_its_input():
    weight, x0 = torch.ones((), requires_grad=True), torch.ones(2, 1, 2, 2)
    for function in (sample, invert): assert not function(lambda x, t: weight * x, x0, steps=2).requires_grad
    assert torch.equal(x0, torch.ones(2, 1, 2, 2))
    assert euler(lambda x, t: weight * x, x0, 0.0, 1.0, 2).requires_grad      # for those who want gradients


# -- refusals ---------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [0, -1, 2.0, True, None, "3"])
def test_steps_must_be_whole(steps):
    with pytest.raises(ValueError, match="steps: got"): sample(Recorder(), torch.zeros(1, 2), steps=steps)


@pytest.mark.parametrize("t_min", [-0.1, 1.0, 2, float("nan")])
def test_time_must_be_one(t_min):
    for function in (sample, invert, rectified_flow_loss):
        with pytest.raises(ValueError, match="t_min: got"): function(Recorder(), torch.zeros(1, 2), t_min=t_min)


def test_wrong_images_and_answers_are_refused():
    with pytest.raises(ValueError, match="x1: got torch.int64"): rectified_flow_loss(Recorder(), torch.zeros(2, 1, 4, 4).long())
    for wrong in (lambda x, t: x[:, :1], lambda x, t: x.mean(), lambda x, t: x[:, :, :2]):
        with pytest.raises(ValueError, match="decoder: answered with shape"): rectified_flow_loss(wrong, torch.zeros(2, 3, 4, 4))
    with pytest.raises(ValueError, match="decoder: answered with shape"): sample(lambda x, t: x[:, :1], torch.zeros(2, 3, 4, 4), steps=2)


def test_curvature_in_closed_form():
    "0 where the velocity stays what it was; on a circle with speed ω, the velocity's variance on the arc beside its mean."
    noise = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert curvature(lambda x, t: noise, noise) < 1e-20
    turn = lambda x, t, w: w * torch.stack([-x[:, 1], x[:, 0]], 1)
    for w in (0.1, 1.0, 3.0):
        chord = 2 * np.sin(w / 2)  # an arc of length w
        assert curvature(turn, noise, steps=4000, t_min=0.0, w=w) == pytest.approx((w**2 - chord**2) / chord**2, rel=0.02)
    with pytest.raises(ValueError, match="t_min: got 2"): curvature(turn, noise, t_min=2, w=1.0)
