"""Time and memory of latents and alignment, forward and backward, against the matrix products in them and the published solver."""
from collections.abc import Callable
from statistics import mean, median

import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.process import fresh, gauge, seconds, too_large
from benchmarks.published import euler_alignment, euler_decode, euler_latents
from lzn_nb.alignment import alignment_loss
from lzn_nb.zones import LatentZones

PARTS = ("encode", "alignment", "every")
CUTOFF = 0.2


def inputs(n: int, q: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    "Anchors, latents or noise, and the weights of a random linear function, each `[n,q]` float32."
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(n, q, generator=generator).to(device) for _ in range(3))


# -- what is measured ------------------------------------------------------------------------------

def ours(part: str, n: int, q: int, steps: int, device: str) -> Callable:
    "One forward and backward pass of the library, from the anchors on; it returns their gradient."
    anchors, z, weight = inputs(n, q, device)
    target = torch.arange(n, device=device)

    def encode() -> Tensor:
        x = anchors.clone().requires_grad_()
        (LatentZones(x, steps=steps).encode(noise=z) * weight).sum().backward()
        return x.grad

    def alignment() -> Tensor:
        x, points = anchors.clone().requires_grad_(), z.clone().requires_grad_()
        alignment_loss(points, LatentZones(x, steps=steps), target, cutoff=CUTOFF).backward()
        return x.grad

    def every() -> Tensor:
        x, points = anchors.clone().requires_grad_(), z.clone().requires_grad_()
        LatentZones(x, steps=steps).flow(points, target).log_prob.exp().mean().backward()
        return x.grad

    return {"encode": encode, "alignment": alignment, "every": every}[part]


def published(part: str, n: int, q: int, steps: int, device: str) -> Callable:
    "The same with the published Euler, by way of all differences, each evaluation recomputed in the backward pass."
    anchors, z, weight = inputs(n, q, device)
    target = torch.arange(n, device=device)

    def encode() -> Tensor:
        x = anchors.clone().requires_grad_()
        (euler_latents(x, None, z, steps) * weight).sum().backward()
        return x.grad

    def alignment() -> Tensor:
        x, points = anchors.clone().requires_grad_(), z.clone().requires_grad_()
        euler_alignment(points, x, target, steps, CUTOFF).backward()
        return x.grad

    def every() -> Tensor:
        x, points = anchors.clone().requires_grad_(), z.clone().requires_grad_()
        euler_decode(points, x, steps)[1][:, target, target].mean().backward()
        return x.grad

    return {"encode": encode, "alignment": alignment, "every": every}[part]


def bare(n: int, q: int, steps: int, device: str) -> Callable:
    """The matrix products alone, into tensors that are there already: two for an evaluation, five for its way back.

    Forward X Aᵀ and P A; backward X Aᵀ once more, G Aᵀ, D A, Pᵀ G and Dᵀ X, where P are probabilities and D derivatives
    by the logits, `[n,n]`, X states and G derivatives by the slope, `[n,q]`.
    """
    a, x, g = inputs(n, q, device)
    p, d = (torch.rand(n, n, device=device).div_(n) for _ in range(2))
    square, long = torch.empty(n, n, device=device), torch.empty(n, q, device=device)

    def products() -> None:
        for _ in range(steps):
            torch.mm(x, a.T, out=square)
            torch.mm(p, a, out=long)
        for _ in range(steps):
            torch.mm(x, a.T, out=square)
            torch.mm(g, a.T, out=square)
            torch.mm(d, a, out=long)
            torch.mm(p.T, g, out=long)
            torch.mm(d.T, x, out=long)

    return products


def flops(n: int, q: int, steps: int) -> float:
    "Floating-point operations of `bare`: 2 n² q for each of 7 products."
    return 14 * n * n * q * steps


def published_bytes(n: int, q: int, steps: int) -> float:
    "About what the published solver needs at its peak: several tensors `[n,n,q]` and the probabilities of all steps."
    return 4 * n * n * (4.2 * q + 2 * steps)


# -- tasks for processes of their own --------------------------------------------------------------

def in_turns(part: str, n: int, q: int, steps: int, pairs: int, device: str) -> dict:
    "Bare products and ours in turns, so that both see the same state of the machine: lists of seconds, bare first and last."
    products, work = bare(n, q, steps, device), ours(part, n, q, steps, device)
    for _ in range(2): products(), work()
    times = {"bare": [seconds(products, device)], "ours": []}
    for _ in range(pairs):
        times["ours"].append(seconds(work, device))
        times["bare"].append(seconds(products, device))
    return times


def alone(part: str, n: int, q: int, steps: int, device: str) -> dict:
    "Seconds and peak memory of one call of ours, after a small one to start the machinery."
    ours(part, 16, q, 2, device)()
    return gauge(ours(part, n, q, steps, device), device)


def published_between_ours(part: str, n: int, q: int, steps: int, device: str, times: int = 5) -> dict:
    "Seconds and peak memory of one call of the published solver, and the median of ours before and after: the machine may change its speed."
    if why := too_large(published_bytes(n, q, steps), device): return {"skipped": why}
    work, around = ours(part, n, q, steps, device), []
    published(part, 16, q, 2, device)()
    for _ in range(2): work()
    for _ in range(times): around.append(seconds(work, device))
    row = gauge(published(part, n, q, steps, device), device)
    for _ in range(times): around.append(seconds(work, device))
    return {**row, "ours_seconds": median(around)}


# -- the table -------------------------------------------------------------------------------------

def compare(times: dict) -> dict:
    "Ratio of each of our times to the mean of the two bare ones around it: median and range."
    around = [mean(pair) for pair in zip(times["bare"], times["bare"][1:])]
    ratios = [mine / products for mine, products in zip(times["ours"], around)]
    return {"ours_seconds": median(times["ours"]), "bare_seconds": median(times["bare"]),
            "ratio": median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def middle_run(runs: list[dict]) -> dict:
    "Of several `published_between_ours` the one with the median ratio, and the range of all; or the one that says why there is none."
    if skipped := [run for run in runs if "skipped" in run]: return {"published": skipped[0]}
    ratio = lambda run: run["seconds"] / run["ours_seconds"]
    in_order = sorted(runs, key=ratio)
    middle = in_order[len(runs) // 2]
    return {"published": middle, "published_runs": runs, "times_faster": ratio(middle), "times_faster_min": ratio(in_order[0]), "times_faster_max": ratio(in_order[-1])}


def measure_part(part: str, n: int, q: int, steps: int, pairs: int, device: str, baseline_runs: int, time_cap: float, tell: Callable) -> dict:
    tell(f"speed: {part}, n = {n}, q = {q}: ours and the bare products in turns")
    size = {"part": part, "n": n, "q": q, "steps": steps, "device": device}
    times = fresh("benchmarks.speed:in_turns", pairs=pairs, **size)
    if "skipped" in times: return times
    row = {**compare(times), "times": times, "ours": fresh("benchmarks.speed:alone", **size)}
    row["gflops_per_second"] = flops(n, q, steps) / row["bare_seconds"] / 1e9
    if baseline_runs == 0: return {**row, "published": {"skipped": "not asked for"}}
    runs = []
    while len(runs) < baseline_runs and not any("skipped" in run for run in runs):
        tell(f"speed: {part}, n = {n}, q = {q}: the published solver, run {len(runs) + 1} of {baseline_runs}, ours before and after (n = 1000 takes minutes on a CPU)")
        runs.append(fresh("benchmarks.speed:published_between_ours", time_cap=time_cap, **size))
    row |= middle_run(runs)
    if "times_faster" in row: row["times_less_memory"] = row["published"]["peak_bytes"] / max(row["ours"]["peak_bytes"], 4096)
    return row


def measure(n: int = 1000, q: int = 200, steps: int = 20, pairs: int = 9, device: str = "cpu", baseline: bool = True,
            time_cap: float = 1800, tell: Callable = lambda text: None, baseline_runs: int = 3) -> dict:
    "The table `speed`, in float32, with all the threads PyTorch takes by itself."
    rows = {part: measure_part(part, n, q, steps, pairs, device, baseline_runs if baseline else 0, time_cap, tell) for part in PARTS}
    protocol = {"n": n, "q": q, "steps": steps, "pairs": pairs, "baseline_runs": baseline_runs, "dtype": "float32", "device": device, "cutoff": CUTOFF}
    return {"table": "speed", **machine.describe(device), "protocol": protocol, "rows": rows}
