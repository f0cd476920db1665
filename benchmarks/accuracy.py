"""Error of the latents per evaluation, on six families of anchors whose exact latents are known."""
import math
from collections.abc import Callable
from statistics import mean

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import machine
from benchmarks.families import FAMILIES, family, relative_error, truth
from benchmarks.published import dpm_latents, euler_latents
from lzn_nb.zones import LatentZones


def published_euler(anchors: Tensor, noise: Tensor, steps: int) -> Tensor:
    return euler_latents(anchors, None, noise, steps, checkpoint=False, form="attention")


def published_dpm(anchors: Tensor, noise: Tensor, steps: int) -> Tensor:
    return dpm_latents(anchors, None, noise, steps, checkpoint=False, form="attention")


def ours(anchors: Tensor, noise: Tensor, steps: int) -> Tensor:
    return LatentZones(anchors, solver="adams", steps=steps).encode(noise=noise)


# Each with its numbers of evaluations. DPM-Solver lowers its order at the end of fewer than 10 steps, not of 10: 9 can be better.
SOLVERS = {"euler": (published_euler, (5, 10, 20)), "dpm": (published_dpm, (5, 9, 10, 20)), "ours": (ours, (5, 10, 20))}
PUBLISHED = ("euler", "dpm")


def matrix_products(function: Callable, *args) -> float:
    "How many products of the shape [n,q] x [q,n] the latents of all n anchors take, from the multiplications that are done."
    n, q = args[0].shape
    product = lambda _, a, b, *rest, **options: 2 * a[0] * a[1] * b[1]
    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: product}) as counter: function(*args)
    return counter.get_total_flops() / (2 * n * n * q)


def errors_of(name: str, seed: int, n: int | None, truth_steps: int) -> dict:
    "{solver: {evaluations: relative error}} for the first `n` anchors of one family and seed."
    anchors, noise = (x[:n] for x in family(name, seed))
    exact = truth(anchors, noise, truth_steps)
    return {solver: {steps: relative_error(function(anchors, noise, steps), exact) for steps in counts}
            for solver, (function, counts) in SOLVERS.items()}


def over_seeds(runs: list[dict]) -> dict:
    "The same with {mean, min, max} over the seeds; keys are strings, as in the JSON."
    def spread(solver: str, steps: int) -> dict:
        found = [run[solver][steps] for run in runs]
        return {"mean": mean(found), "min": min(found), "max": max(found)}
    return {solver: {str(steps): spread(solver, steps) for steps in counts} for solver, (_, counts) in SOLVERS.items()}


def precision_of(name: str, seed: int, n: int | None, steps: int) -> dict:
    "Relative distance of the float32 latents, and of the gradient of a random linear function of them, to those in float64."
    anchors, noise = (x[:n].float() for x in family(name, seed))
    weight = torch.randn(anchors.shape, generator=torch.Generator().manual_seed(seed))

    def run(dtype: torch.dtype) -> list[Tensor]:
        x = anchors.to(dtype).requires_grad_()
        z = ours(x, noise.to(dtype), steps)
        return [z.detach().double(), torch.autograd.grad((z * weight).sum(), x)[0].double()]

    latents, gradient = (relative_error(single, double) for single, double in zip(run(torch.float32), run(torch.float64)))
    return {"latents": latents, "gradient": gradient}


def best_published(row: dict, most: int) -> float:
    "Mean error of the better published solver in one family, with `most` evaluations or fewer."
    return min(error["mean"] for solver in PUBLISHED for steps, error in row[solver].items() if int(steps) <= most)


def geometric(values) -> float:
    values = list(values)
    return math.exp(mean(math.log(v) for v in values))


def summary(families: dict, counts: tuple[int, ...]) -> dict:
    "What the errors say in a few numbers; factors above 1 are in our favour."
    few, many = str(counts[-2]), str(counts[-1])
    overall = {solver: {str(steps): geometric(row[solver][str(steps)]["mean"] for row in families.values()) for steps in steps_of}
               for solver, (_, steps_of) in SOLVERS.items()}
    against = lambda mine, most: {name: best_published(row, most) / row["ours"][mine]["mean"] for name, row in families.items()}
    fewer, equal = against(few, int(many)), against(many, int(many))
    return {
        "geometric_mean": overall,
        "fewer_against_more": {"ours": int(few), "published": int(many), "families": fewer, "geometric_mean": geometric(fewer.values())},
        "equal": {"evaluations": int(many), "families": equal, "of_family_best": geometric(equal.values()),
                  "of_better_solver": min(overall[s][many] for s in PUBLISHED) / overall["ours"][many]},
        "worse": {str(k): [name for name, factor in against(str(k), k).items() if factor < 1] for k in counts},
    }


def measure(families: list[str] | None = None, seeds: tuple[int, ...] = (0, 1, 2), n: int | None = None, truth_steps: int = 500,
            tell: Callable = lambda text: None) -> dict:
    "The table `accuracy`: everything in float64 on the CPU, the published solvers in their attention form."
    names, found, single = families or list(FAMILIES), {}, {}
    for name in names:
        tell(f"accuracy: {name}")
        found[name] = over_seeds([errors_of(name, seed, n, truth_steps) for seed in seeds])
        runs = [precision_of(name, seed, n, 10) for seed in seeds]
        single[name] = {key: {"mean": mean(run[key] for run in runs), "max": max(run[key] for run in runs)} for key in runs[0]}
    anchors, noise = (x[:n] for x in family(names[0], seeds[0]))
    products = {solver: {str(steps): matrix_products(function, anchors, noise, steps) for steps in counts}
                for solver, (function, counts) in SOLVERS.items()}
    protocol = {"n": len(anchors), "seeds": list(seeds), "truth_steps": truth_steps, "dtype": "float64", "precision_steps": 10}
    return {"table": "accuracy", **machine.describe(), "protocol": protocol, "families": found, "products": products,
            "precision": single, "summary": summary(found, SOLVERS["ours"][1])}
