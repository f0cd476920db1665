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


@pytest.mark.parametrize("log", [True, False])
def test_gradcheck(log):
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 1])
    for options in (dict(solver="euler", steps=7), dict(steps=7, window=5.0)):
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
    loss = alignment_loss(randn(50, 3), LatentZones(randn(4, 3), steps=20), torch.zeros(50, dtype=torch.long), cutoff=0.0)
    assert loss <= np.log(4) + 1e-9  # without the cut-off the first step alone gives the prior, 1/4


def test_cutoff_leaves_out_the_first_steps():
    log_prob = torch.tensor([[0.0], [-3.0], [-2.0], [-4.0], [-5.0]])
    assert [float(best_log_prob(log_prob, cutoff)) for cutoff in (0.0, 0.2, 0.59, 0.6, 0.99)] == [0.0, -2.0, -2.0, -4.0, -5.0]


def test_training_on_it_brings_zones_inside():
    "Anchors that start beside the next class's label move until their zones lie in their own label's zone."
    corners = 1.5 * torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    labels, zones = torch.arange(24) % 4, LatentZones(corners, solver="euler", steps=30)
    anchors = (corners[(labels + 1) % 4] + 0.3 * randn(24, 2).float()).requires_grad_()
    generator, optimizer = torch.Generator().manual_seed(0), torch.optim.Adam([anchors], 0.2)
    right = lambda: float((zones.decode(LatentZones(anchors.detach(), steps=20).encode(alpha=0.0)) == labels).float().mean())
    assert right() < 0.2
    for _ in range(150):
        optimizer.zero_grad()
        alignment_loss(LatentZones(anchors, steps=20).encode(generator=generator), zones, labels, log=False).backward()
        optimizer.step()
    assert right() > 0.9


@pytest.mark.parametrize("change, message", [
    (dict(cutoff=1.0), "cutoff: got 1.0"), (dict(cutoff=-0.1), "cutoff: got -0.1"), (dict(target=torch.tensor([0, 5])), "target: got"),
    (dict(target=torch.tensor([0])), "target: got 1"), (dict(z=torch.zeros(2, 3)), r"z: got .*\[2, 3\]"), (dict(z=torch.zeros(0, 2), target=torch.zeros(0).long()), "z: got no"),
    (dict(z=torch.full((2, 2), float("nan"))), "z")])
def test_bad_requests(change, message):
    arguments = dict(z=torch.zeros(2, 2), zones=LatentZones(torch.eye(2)), target=torch.tensor([0, 1])) | change
    with pytest.raises(ValueError, match=message): alignment_loss(arguments.pop("z"), arguments.pop("zones"), arguments.pop("target"), **arguments)
