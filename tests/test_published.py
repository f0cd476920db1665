"The published solvers as baseline, and the exact latents: golden numbers, agreement of their forms, closed forms."
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import published
from benchmarks.families import FAMILIES, family, relative_error, truth
from benchmarks.published import (FORMS, dpm_decode, dpm_latents, euler_alignment, euler_decode, euler_latents, posterior,
                                  posterior_mean_broadcast)
from lzn_nb.flow import posterior_mean
from lzn_nb.zones import LatentZones

GOLDENS = Path(__file__).parent / "goldens"
EULER, DPM, LABELS, VIEWS = (np.load(GOLDENS / f"{name}.npz", allow_pickle=False) for name in ("latent_euler", "latent_dpm", "label_flow", "contrastive"))
LATENTS = [("euler", case) for case in EULER["cases"]] + [("dpm", case) for case in DPM["cases"]]
SOLVERS = {"euler": (EULER, euler_latents), "dpm": (DPM, dpm_latents)}


def randn(*shape, seed=0, dtype=torch.float64): return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(x, ref, rtol=1e-6, atol=1e-9):
    "Within atol + rtol times the largest entry of the truth, over the whole array."
    x = x.detach().double().numpy()
    error, bound = np.abs(x - ref).max(), atol + rtol * np.abs(ref).max()
    assert error <= bound, f"off by {error:.2e}, allowed {bound:.2e}"


def golden(file, case, dtype=torch.float64):
    "Arrays of a case by name: floating ones as tensors in `dtype`, None for one that the case lacks."
    def get(name):
        if f"{case}__{name}" not in file.files: return None
        array = torch.tensor(file[f"{case}__{name}"])
        return array.to(dtype) if array.is_floating_point() else array
    return get


# -- golden numbers --------------------------------------------------------------------------------

@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("solver, case", LATENTS)
def test_latents_and_gradients(solver, case, form):
    file, latents = SOLVERS[solver]
    get = golden(file, case)
    anchors = get("anchors").requires_grad_()
    z = latents(anchors, get("query_index"), get("noise"), int(get("steps")), form=form)
    close(z, file[f"{case}__z_f64"])
    for name, functional in (("grad_sumsq", z.square().sum()), ("grad_lin", (get("w") * z).sum())):
        close(torch.autograd.grad(functional, anchors, retain_graph=True)[0], file[f"{case}__{name}_f64"])


@pytest.mark.parametrize("solver, case", LATENTS)
def test_float32_loses_no_more_than_the_published_run(solver, case):
    file, latents = SOLVERS[solver]
    get = golden(file, case, torch.float32)
    z = latents(get("anchors"), get("query_index"), get("noise"), int(get("steps")))
    close(z, file[f"{case}__z_f64"], rtol=0, atol=5e-3 if solver == "euler" else 4e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", DPM["reverse_cases"])
def test_dpm_decoding(case, form):
    get = golden(DPM, case)
    z, anchors, weights = get("z").requires_grad_(), get("anchors").requires_grad_(), get("weights")
    final, probs = dpm_decode(z, anchors, int(get("steps")), None if weights is None else weights.log(), form=form)
    close(final, DPM[f"{case}__final_f64"])
    close(probs, DPM[f"{case}__prob_f64"])
    grad_z, grad_anchors = torch.autograd.grad(final.square().sum(), (z, anchors))
    close(grad_z, DPM[f"{case}__grad_z_f64"])
    close(grad_anchors, DPM[f"{case}__grad_anchors_f64"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weighted", ["unw", "w"])
@pytest.mark.parametrize("case", LABELS["cases"])
def test_euler_decoding_and_probability_loss(case, weighted, form):
    get, ref = golden(LABELS, case), lambda name: LABELS[f"{case}__{name}_{weighted}_f64"]
    z, anchors = get("z").requires_grad_(), get("anchors").requires_grad_()
    log_weights = get("weights").log() if weighted == "w" else None
    final, probs = euler_decode(z, anchors, int(get("steps")), log_weights, form=form)
    close(final, ref("final"))
    close(probs, ref("prob"))
    loss = euler_alignment(z, anchors, get("label"), int(get("steps")), float(LABELS[f"{case}__cutoff"]), log_weights, log=False, form=form)
    close(loss, ref("loss"))
    for gradient, name in zip(torch.autograd.grad(loss, (z, anchors)), ("grad_z", "grad_anchors")): close(gradient, ref(name))


@pytest.mark.parametrize("case", VIEWS["cases"])
def test_two_views_and_both_loss_forms(case):
    get = golden(VIEWS, case)
    a, b, n, steps = get("anchors_a").requires_grad_(), get("anchors_b").requires_grad_(), len(get("anchors_a")), int(get("steps"))
    z = euler_latents(a, None, float(get("prior_scale")) * get("noise"), steps)
    close(z, VIEWS[f"{case}__z_f64"])
    final, probs = euler_decode(z, b, steps)
    close(final, VIEWS[f"{case}__final_f64"])
    close(probs, VIEWS[f"{case}__prob_f64"])
    for name, log in (("prob", False), ("ce", True)):
        loss = euler_alignment(z, b, torch.arange(n), steps, float(get("cutoff")), log=log)
        close(loss, VIEWS[f"{case}__loss_{name}_f64"])
        if f"{case}__grad_a_{name}_f64" not in VIEWS.files: continue
        for gradient, side in zip(torch.autograd.grad(loss, (a, b), retain_graph=True), "ab"): close(gradient, VIEWS[f"{case}__grad_{side}_{name}_f64"])


def test_the_log_of_a_probability_underflows_as_published():
    "The library works with log-probabilities instead; the baseline keeps the published fault."
    get = golden(VIEWS, "underflow", torch.float32)
    z = euler_latents(get("anchors_a"), None, float(get("prior_scale")) * get("noise"), int(get("steps")))
    loss = euler_alignment(z, get("anchors_b"), torch.arange(len(z)), int(get("steps")), float(get("cutoff")))
    assert loss.isposinf()


# -- forms -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("t", [0.0, 0.3, 0.9, 0.999])
def test_three_forms_of_the_posterior_mean_agree(t):
    anchors, s, log_weights = randn(30, 5), randn(20, 5, seed=1), randn(30, seed=2).log_softmax(0)
    s = t * anchors[:20] + (1 - t) * s
    wanted = posterior_mean(s / (1 - t), t / (1 - t), anchors, log_weights).numpy()
    close(posterior_mean_broadcast(s, t, anchors, log_weights), wanted, 1e-9)
    for form in FORMS: close(posterior(s, t, anchors, log_weights, form)[0], wanted, 1e-9)


@pytest.mark.parametrize("latents, steps", [(euler_latents, 7), (dpm_latents, 7), (dpm_latents, 12)])
def test_forms_and_recomputation_change_nothing(latents, steps):
    noise, index = randn(9, 6, seed=1), torch.arange(9) * 2

    def run(**options):
        anchors = randn(20, 6).requires_grad_()
        z = latents(anchors, index, noise, steps, **options)
        return z, torch.autograd.grad(z.square().sum(), anchors)[0]

    wanted = run(checkpoint=False)
    for options in (dict(), dict(form="attention"), dict(form="attention", checkpoint=False)):
        for x, ref in zip(run(**options), wanted): close(x, ref.detach().numpy(), 1e-7)


@pytest.mark.parametrize("steps, orders", [(1, [1]), (2, [1, 1]), (3, [1, 2, 1]), (9, [1, 2, 3, 3, 3, 3, 3, 2, 1]), (10, [1, 2] + 8 * [3])])
def test_dpm_lowers_its_order_at_the_end_of_few_steps_only(monkeypatch, steps, orders):
    seen, update = [], published.dpm_update
    monkeypatch.setattr(published, "dpm_update", lambda s, times, means, stop, order: seen.append(order) or update(s, times, means, stop, order))
    dpm_latents(randn(6, 3), None, randn(6, 3, seed=1), steps)
    assert seen == orders


def test_unknown_form():
    with pytest.raises(ValueError, match="form: got 'sparse'"): posterior(randn(2, 3), 0.5, randn(4, 3), randn(4), "sparse")


# -- exact latents ---------------------------------------------------------------------------------

def test_two_anchors_in_closed_form():
    "Along the line through both, the flow keeps quantiles: Φ(z) = Σ w_l Φ(y - λ a_l); across it nothing moves."
    anchors = torch.tensor([[-0.7, 0.0], [0.7, 0.0]], dtype=torch.float64)
    for seed in range(20):
        noise, lam = randn(2, 2, seed=seed), 12 / 1.4
        y = noise[:, 0] + lam * anchors[:, 0]
        cdf = sum(torch.special.ndtr(y - lam * a) for a in anchors[:, 0]) / 2
        z = truth(anchors, noise)
        close(z[:, 0], torch.special.ndtri(cdf).numpy(), 1e-8)
        close(z[:, 1], noise[:, 1].numpy(), 1e-12)


@pytest.mark.parametrize("name, bound", [("gaussian-q200", 1e-8), ("clusters-q16", 1e-7), ("gaussian-q2", 1e-5)])
def test_truth_is_where_the_library_converges(name, bound):
    "Third order: four times the steps, some 64 times nearer to the truth, which itself moves by 1e-8 at most."
    anchors, noise = (x[:100] for x in family(name, 0))
    exact = truth(anchors, noise)
    assert relative_error(truth(anchors, noise, 250), exact) < 1e-8
    assert relative_error(truth(anchors, noise, 250, reach=16.0), exact) < 5e-8
    coarse, fine = (relative_error(LatentZones(anchors, steps=steps, reach=12.0).encode(noise=noise), exact) for steps in (500, 2000))
    assert fine < bound and fine < coarse / 30


@pytest.mark.parametrize("anchors", [torch.tensor([[0.0, 1.0], [0.0, 1.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0]])])
def test_truth_wants_distinct_anchors(anchors):
    with pytest.raises(ValueError, match="anchors: "): truth(anchors.double(), torch.zeros_like(anchors).double())


def test_families():
    for name in FAMILIES:
        anchors, noise = family(name, 3)
        assert anchors.shape == noise.shape == (300, int(name.rpartition("q")[2])) and anchors.dtype == noise.dtype == torch.float64
        assert torch.equal(anchors, family(name, 3)[0]) and not torch.equal(anchors, family(name, 4)[0])
    x = family("clusters-q200", 0)[0]
    inside, between = (x[0] - x[10]).norm(), (x[0] - x[1]).norm()
    assert abs(inside / (0.3 * math.sqrt(400)) - 1) < 0.15 and abs(between / math.sqrt(400 * (1.5**2 + 0.3**2)) - 1) < 0.15
    with pytest.raises(ValueError, match="name: got 'torus'"): family("torus", 0)


def test_latents_do_not_depend_on_the_unit_of_length():
    anchors, noise = (x[:60] for x in family("gaussian-q16", 1))
    close(truth(0.3 * anchors, noise), truth(anchors, noise).numpy(), 1e-10)


def test_errors_of_the_published_solvers():
    "Twenty evaluations among 300 Gaussian anchors in 16 dimensions: Euler is off by 4 %, DPM-Solver by 0.4 %."
    anchors, noise = family("gaussian-q16", 0)
    exact = truth(anchors, noise, 250)
    for latents, low, high in ((euler_latents, 0.03, 0.05), (dpm_latents, 0.003, 0.006)):
        assert low < relative_error(latents(anchors, None, noise, 20, checkpoint=False, form="attention"), exact) < high
